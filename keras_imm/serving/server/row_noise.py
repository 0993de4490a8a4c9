"""Normal noise of each row's own seed, in NumPy: that of exported SavedModels.

`row_normal` is `keras_imm.serving.row_noise.row_normal` without TensorFlow: the same
random bits, and the same numbers to rounding.

Reference: Salmon et al., Parallel random numbers: as easy as 1, 2, 3, 2011.
"""

import numpy as np

_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_KEY_STEPS = (np.uint32(0x9E3779B9), np.uint32(0xBB67AE85))
_ROUNDS = 10
_SMALLEST = np.float32(1e-7)  # of the uniform number whose logarithm is taken
_TURN = np.float32(2.0 * np.pi)


def row_normal(seeds: np.ndarray, size: int, stream: int = 0) -> np.ndarray:
    """Standard normal numbers, a row for each seed.

    Args:
        seeds: int64 array of shape (batch,); all 64 bits count.
        size: Numbers in a row.
        stream: Which of a seed's streams to take, in [0, 2^32).

    Returns:
        float32 array of shape (batch, size).
    """
    keys = seeds.astype("int64").view("uint64")[:, None]
    shape = (len(seeds), -(-size // 4))
    counter = np.broadcast_to(np.arange(shape[1], dtype="uint32"), shape)
    zeros = np.zeros(shape, "uint32")
    words = philox(_halves(keys), (counter, zeros, zeros + np.uint32(stream), zeros))
    normals = [*_box_muller(*words[:2]), *_box_muller(*words[2:])]
    return np.stack(normals, axis=-1).reshape(len(seeds), -1)[:, :size]


def philox(key: tuple, counter: tuple) -> tuple:
    """Philox 4x32-10: four random words for each key and counter.

    Args:
        key: Two uint32 arrays that broadcast against those of the counter.
        counter: Four uint32 arrays of one shape.

    Returns:
        Four uint32 arrays of that shape.
    """
    key_0, key_1 = key
    x_0, x_1, x_2, x_3 = counter
    for _ in range(_ROUNDS):
        low_0, high_0 = _halves(_MULTIPLIERS[0] * x_0.astype("uint64"))
        low_1, high_1 = _halves(_MULTIPLIERS[1] * x_2.astype("uint64"))
        x_0, x_1, x_2, x_3 = high_1 ^ x_1 ^ key_0, low_1, high_0 ^ x_3 ^ key_1, low_0
        key_0, key_1 = key_0 + _KEY_STEPS[0], key_1 + _KEY_STEPS[1]
    return x_0, x_1, x_2, x_3


def _halves(words: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Low and high 32 bits."""
    return words.astype("uint32"), (words >> np.uint64(32)).astype("uint32")


def _uniform(words: np.ndarray) -> np.ndarray:
    """23 bits of each word as a float32 in [0, 1)."""
    bits = words & np.uint32(0x7FFFFF) | np.uint32(0x3F800000)
    return bits.view("float32") - np.float32(1.0)


def _box_muller(words_1: np.ndarray, words_2: np.ndarray) -> tuple:
    """Two normal numbers from two random words."""
    uniform = np.maximum(_uniform(words_1), _SMALLEST)
    radius = np.sqrt(np.float32(-2.0) * np.log(uniform))
    angle = _TURN * _uniform(words_2)
    return radius * np.sin(angle), radius * np.cos(angle)
