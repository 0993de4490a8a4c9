import keras
import numpy as np
import pytest

if keras.backend.backend() != "tensorflow":
    pytest.skip(
        "the noise of served models is TensorFlow's, whatever exports them",
        allow_module_level=True,
    )

import tensorflow as tf

from keras_imm.serving.row_noise import row_normal

SEEDS = [0, 1, 2**32 + 1, -1, 2**63 - 1, 123456789012345]


@pytest.mark.parametrize("size", [1, 4, 63])
@pytest.mark.parametrize("stream", [0, 5])
def test_rows_equal_tensorflows_own_operation(size, stream):
    found = row_normal(tf.constant(SEEDS, tf.int64), size, stream).numpy()
    for row, seed in zip(found, SEEDS, strict=True):
        expected = tf.raw_ops.StatelessRandomNormalV2(
            shape=[size],
            key=tf.bitcast(tf.constant([seed], tf.int64), tf.uint64),
            counter=tf.constant([0, stream], tf.uint64),
            alg=1,
        )
        np.testing.assert_allclose(row, expected, atol=5e-6)


def test_it_is_normal():
    from scipy import stats

    x = row_normal(tf.range(2000, dtype=tf.int64), 50).numpy()
    assert stats.kstest(x.ravel(), "norm").pvalue > 1e-3
    assert abs(np.corrcoef(x[:-1].ravel(), x[1:].ravel())[0, 1]) < 0.01
