"""The noise of a seed, against Random123's known answers and TensorFlow's."""

import keras
import numpy as np
import pytest
from scipy import stats

from keras_imm.serving.server.row_noise import philox, row_normal

SEEDS = np.array([0, 1, 2**32 + 1, -1, 2**63 - 1, -(2**63), 123456789012345], "int64")


# kat_vectors of Random123: counter and key, and the four words.
@pytest.mark.one_backend("NumPy alone")
@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ([0] * 4, [0] * 2, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
)
def test_known_answers(counter, key, words):
    found = philox(
        tuple(np.array([k], "uint32") for k in key),
        tuple(np.array([c], "uint32") for c in counter),
    )
    assert " ".join(f"{word[0]:08x}" for word in found) == words


@pytest.mark.one_backend("NumPy alone")
def test_it_is_normal():
    x = row_normal(np.arange(2000), 50)
    assert x.dtype == np.float32 and x.shape == (2000, 50)
    assert stats.kstest(x.ravel(), "norm").pvalue > 1e-3
    assert abs(np.corrcoef(x[:-1].ravel(), x[1:].ravel())[0, 1]) < 0.01


@pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="TensorFlow's is the other side"
)
@pytest.mark.parametrize("size", [1, 4, 63])
@pytest.mark.parametrize("stream", [0, 5])
def test_it_is_that_of_exported_models(size, stream):
    import tensorflow as tf

    from keras_imm.serving import row_noise

    expected = row_noise.row_normal(tf.constant(SEEDS), size, stream).numpy()
    np.testing.assert_allclose(row_normal(SEEDS, size, stream), expected, atol=2e-6)
