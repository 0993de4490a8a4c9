import keras
import numpy as np
import pytest
from backends import FLOATS, dtype_of
from keras import ops

from keras_imm.layers import PositionalEmbedding

TIMES = np.array([0.0, 0.5, 37.3, 994.0, 1000.0])


def features(times, dim, max_period=10000.0):
    """The equation in float64, one frequency at a time."""
    half = dim // 2
    angles = [np.float64(times) * max_period ** (-i / (half - 1)) for i in range(half)]
    return np.stack([np.sin(a) for a in angles] + [np.cos(a) for a in angles], axis=1)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(("dim", "max_period"), [(4, 10000.0), (32, 50.0)])
def test_equals_the_equation(dtype, dim, max_period):
    layer = PositionalEmbedding(dim, max_period=max_period, dtype=dtype)
    result = layer(ops.convert_to_tensor(TIMES, dtype))
    assert dtype_of(result) == dtype
    times = TIMES.astype(dtype)
    # An angle near 1000 is rounded to 3e-5 in float32.
    np.testing.assert_allclose(
        ops.convert_to_numpy(result),
        features(times, dim, max_period),
        atol=1e-4 if dtype == "float32" else 1e-12,
    )


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_is_float32_under_half_precision(policy):
    times = np.array([994.0, 994.2], "float32")  # one number in either half precision
    result = PositionalEmbedding(32, dtype=policy)(times)
    assert dtype_of(result) == "float32"
    np.testing.assert_allclose(
        ops.convert_to_numpy(result), features(times, 32), atol=1e-4
    )


def test_nothing_is_trained():
    layer = PositionalEmbedding(32)
    layer.build((None,))
    assert layer.trainable_variables == []
    assert layer.compute_output_shape((7,)) == (7, 32)


def test_spec_of_the_output():
    spec = PositionalEmbedding(np.int64(32), dtype="mixed_bfloat16")(keras.Input(()))
    assert (spec.shape, spec.dtype) == ((None, 32), "float32")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"embedding_dim": 2}, "`embedding_dim` must be an integer of at least 4.*=2"),
        ({"embedding_dim": 5}, "`embedding_dim` must be even.*=5"),
        ({"embedding_dim": 8.0}, "`embedding_dim` must be an integer.*=8.0"),
        ({"embedding_dim": 8, "max_period": 0}, "`max_period` must be .* above 0.*=0"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        PositionalEmbedding(**arguments)
