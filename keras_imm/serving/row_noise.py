"""Normal noise that depends on each row's own seed alone.

TensorFlow's stateless operations take one seed for a whole tensor; a call of theirs for
each row costs more than a small network. This is their generator, Philox 4x32-10, for
all rows at once: `row_normal(seeds, size)[i]` is, to rounding, what
`tf.raw_ops.StatelessRandomNormalV2` makes of the key `seeds[i]` and the counter
`(0, stream)`.

Reference: Salmon et al., Parallel random numbers: as easy as 1, 2, 3, 2011.
"""

import math
from typing import Any

import tensorflow as tf

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
_SMALLEST = 1e-7  # of the uniform number whose logarithm is taken, as in TensorFlow


def row_normal(seeds: Any, size: int, stream: int = 0) -> Any:
    """Standard normal numbers, a row for each seed.

    Args:
        seeds: int64 tensor of shape (batch,); all 64 bits count.
        size: Numbers in a row.
        stream: Which of a seed's streams to take, in [0, 2^32).

    Returns:
        float32 tensor of shape (batch, size).
    """
    low, high = _halves(tf.bitcast(seeds, tf.uint64))
    blocks = tf.range(-(-size // 4), dtype=tf.int64)[tf.newaxis]
    shape = (tf.shape(seeds)[0], blocks.shape[1])
    counter = tf.broadcast_to(tf.cast(blocks, tf.uint32), shape)
    zeros = tf.zeros(shape, tf.uint32)
    words = philox(
        (low[:, tf.newaxis], high[:, tf.newaxis]),
        (counter, zeros, zeros + tf.constant(stream, tf.uint32), zeros),
    )
    normals = [*_box_muller(*words[:2]), *_box_muller(*words[2:])]
    return tf.reshape(tf.stack(normals, axis=-1), (shape[0], -1))[:, :size]


def philox(key: tuple, counter: tuple) -> tuple:
    """Philox 4x32-10: four random words for each key and counter.

    Args:
        key: Two uint32 tensors that broadcast against those of the counter.
        counter: Four uint32 tensors of one shape.

    Returns:
        Four uint32 tensors of that shape.
    """
    key_0, key_1 = key
    x_0, x_1, x_2, x_3 = counter
    multiplier_0, multiplier_1 = (tf.constant(m, tf.uint64) for m in _MULTIPLIERS)
    step_0, step_1 = (tf.constant(step, tf.uint32) for step in _KEY_STEPS)
    xor = tf.bitwise.bitwise_xor
    for _ in range(_ROUNDS):
        low_0, high_0 = _halves(multiplier_0 * tf.cast(x_0, tf.uint64))
        low_1, high_1 = _halves(multiplier_1 * tf.cast(x_2, tf.uint64))
        x_0, x_1 = xor(xor(high_1, x_1), key_0), low_1
        x_2, x_3 = xor(xor(high_0, x_3), key_1), low_0
        key_0, key_1 = key_0 + step_0, key_1 + step_1
    return x_0, x_1, x_2, x_3


def _halves(words: Any) -> tuple:
    """Lower and upper 32 bits of uint64 words."""
    upper = tf.bitwise.right_shift(words, tf.constant(32, tf.uint64))
    return tf.cast(words, tf.uint32), tf.cast(upper, tf.uint32)


def _uniform(words: Any) -> Any:
    """23 bits of each word as a float32 in [0, 1)."""
    mantissa = tf.bitwise.bitwise_and(words, tf.constant(0x7FFFFF, tf.uint32))
    one = tf.constant(0x3F800000, tf.uint32)
    return tf.bitcast(tf.bitwise.bitwise_or(mantissa, one), tf.float32) - 1.0


def _box_muller(words_1: Any, words_2: Any) -> tuple:
    """Two normal numbers from two random words."""
    radius = tf.sqrt(-2.0 * tf.math.log(tf.maximum(_uniform(words_1), _SMALLEST)))
    angle = 2.0 * math.pi * _uniform(words_2)
    return radius * tf.sin(angle), radius * tf.cos(angle)
