import keras
import numpy as np
import pytest
from keras import ops

from keras_imm.layers import TimestepEmbedding


def embed(times, layer, frequency_dim=256):
    """The equations in float64, with the layer's own Dense weights."""
    index = np.arange(frequency_dim // 2)
    angles = np.outer(np.float64(times), 10000.0 ** (-index / (frequency_dim // 2)))
    features = np.concatenate([np.cos(angles), np.sin(angles)], axis=1)
    first, first_bias, second, second_bias = (
        ops.convert_to_numpy(variable).astype("float64")
        for variable in layer.trainable_variables
    )
    hidden = features @ first + first_bias
    return (hidden / (1 + np.exp(-hidden))) @ second + second_bias


def test_equals_the_equations_over_the_whole_range_of_times():
    times = np.array([0.0, 0.5, 37.3, 1000.0], "float32")
    layer = TimestepEmbedding(48)
    layer.build((None,))
    rng = np.random.default_rng(0)
    for variable in layer.trainable_variables:
        variable.assign(0.2 * rng.standard_normal(variable.shape))
    result = ops.convert_to_numpy(layer(times))
    # 1000 is exact in float32, its angles are rounded to 3e-5.
    np.testing.assert_allclose(result, embed(times, layer), atol=1e-4)


@pytest.mark.parametrize(
    ("policy", "times"),
    [("mixed_float16", [994.0, 994.2]), ("mixed_bfloat16", [991.0, 993.0])],
)
def test_keeps_times_apart_that_half_precision_does_not(policy, times):
    keras.utils.set_random_seed(0)
    layer = TimestepEmbedding(48, dtype=policy)
    result = layer(np.array(times, "float32"))
    result = ops.convert_to_numpy(ops.cast(result, "float32"))
    expected = embed(times, layer)
    error = np.linalg.norm(result - expected)
    assert error < 0.25 * np.linalg.norm(expected[1] - expected[0])


def test_published_initialisation():
    keras.utils.set_random_seed(0)
    layer = TimestepEmbedding(128)
    layer.build((None,))
    for dense in (layer.hidden_dense, layer.output_dense):
        kernel = ops.convert_to_numpy(dense.kernel)
        assert np.std(kernel) == pytest.approx(0.02, rel=0.03)
        assert not ops.convert_to_numpy(dense.bias).any()
    assert len(layer.trainable_variables) == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"hidden_size": 0}, "`hidden_size` must be an integer of at least 1.*=0"),
        ({"hidden_size": 8, "frequency_dim": 7}, "`frequency_dim` must be even.*=7"),
        ({"hidden_size": 8, "max_period": -1}, "`max_period` must be a finite.*=-1"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        TimestepEmbedding(**arguments)
