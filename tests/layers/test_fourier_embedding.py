import keras
import numpy as np
import pytest
from backends import FLOATS, dtype_of
from keras import ops
from scipy import stats

from keras_imm.layers import FourierEmbedding

TIMES = np.array([0.0, 0.006, 0.5, 0.994])


def frequencies(layer):
    return ops.convert_to_numpy(layer.frequencies).astype("float64")


@pytest.mark.parametrize("dtype", FLOATS)
def test_equals_the_equation(dtype):
    layer = FourierEmbedding(32, dtype=dtype)
    result = layer(ops.convert_to_tensor(TIMES, dtype))
    assert dtype_of(result) == dtype
    # The frequencies are angular: 2 pi f.
    angles = np.outer(TIMES.astype(dtype), frequencies(layer))
    expected = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
    tolerance = 1e-4 if dtype == "float32" else 1e-12
    np.testing.assert_allclose(ops.convert_to_numpy(result), expected, atol=tolerance)


@pytest.mark.parametrize("scale", [16.0, 0.5])
def test_frequencies_are_normal_with_the_scale(scale):
    layer = FourierEmbedding(8000, scale=scale, seed=3)
    layer.build((None,))
    drawn = frequencies(layer) / (2 * np.pi)
    assert stats.kstest(drawn, stats.norm(scale=scale).cdf).pvalue > 0.01


def test_seed_decides_the_frequencies():
    first, same, other = (FourierEmbedding(32, seed=seed) for seed in (1, 1, 2))
    for index, layer in enumerate((first, same, other)):
        keras.utils.set_random_seed(index)
        layer.build((None,))
    np.testing.assert_array_equal(frequencies(first), frequencies(same))
    assert np.abs(frequencies(first) - frequencies(other)).min() > 0


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_is_float32_under_half_precision(policy):
    layer, single = (FourierEmbedding(32, dtype=dtype) for dtype in (policy, "float32"))
    times = np.array([0.994, 0.9941], "float32")
    result, expected = layer(times), single(times)
    assert dtype_of(result) == dtype_of(layer.frequencies) == "float32"
    np.testing.assert_array_equal(
        ops.convert_to_numpy(result), ops.convert_to_numpy(expected)
    )
    assert np.abs(np.diff(ops.convert_to_numpy(result), axis=0)).max() > 1e-3


def test_frequencies_are_not_trained_but_saved(tmp_path):
    layer = FourierEmbedding(8)
    model = keras.Sequential([keras.Input(()), layer])
    assert layer.trainable_variables == []
    layer.frequencies.assign([1.0, 2.0, 3.0, 4.0])  # as those of a published file
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(frequencies(loaded.layers[-1]), [1, 2, 3, 4])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"embedding_dim": 6.5}, "`embedding_dim` must be an integer.*=6.5"),
        ({"embedding_dim": 9}, "`embedding_dim` must be even.*=9"),
        ({"embedding_dim": 8, "scale": 0.0}, "`scale` must be .* above 0.*=0.0"),
        ({"embedding_dim": 8, "seed": -1}, "`seed` must be an integer of at le.*=-1"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        FourierEmbedding(**arguments)
