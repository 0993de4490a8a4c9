import keras
import numpy as np
import pytest
from keras import ops

from keras_imm.latents import denormalize, normalize

MEAN = np.array([0.86488, -0.27787343, 0.21616915, 0.3738409])
STD = np.array([4.85503674, 5.31922414, 3.93725398, 3.9870003])


@pytest.fixture
def z():
    return np.random.default_rng(0).normal(1, 4, (2, 3, 5, 4)).astype("float32")


def test_arrays_and_tensors_are_scaled_as_the_paper_says(z):
    expected = (z.astype("float64") - MEAN) / STD * 0.5
    of_array = normalize(z)
    assert isinstance(of_array, np.ndarray)
    assert of_array.dtype == "float32"
    np.testing.assert_allclose(of_array, expected, atol=1e-6)
    of_tensor = normalize(ops.convert_to_tensor(z))
    assert ops.is_tensor(of_tensor)
    np.testing.assert_allclose(ops.convert_to_numpy(of_tensor), expected, atol=1e-6)


def test_latents_with_those_moments_reach_sigma_data(z):
    standard = (z - z.mean((0, 1, 2))) / z.std((0, 1, 2))
    scaled = normalize(standard * STD + MEAN, sigma_data=0.7)
    np.testing.assert_allclose(scaled.mean((0, 1, 2)), 0, atol=1e-6)
    np.testing.assert_allclose(scaled.std((0, 1, 2)), 0.7, atol=1e-6)


@pytest.mark.parametrize("to_kind", [np.asarray, ops.convert_to_tensor])
def test_denormalize_undoes_it(z, to_kind):
    there_and_back = denormalize(normalize(to_kind(z), 0.3), 0.3)
    np.testing.assert_allclose(ops.convert_to_numpy(there_and_back), z, atol=1e-5)


def test_half_precision_becomes_float32(z):
    half = z.astype("float16")
    assert normalize(half).dtype == "float32"
    tensor = normalize(ops.convert_to_tensor(half))
    assert keras.backend.standardize_dtype(tensor.dtype) == "float32"


def test_wrong_arguments_are_named(z):
    with pytest.raises(ValueError, match=r"shape \(..., 4\).*shape \(2, 3, 5, 3\)"):
        normalize(z[..., :3])
    with pytest.raises(ValueError, match=r"shape \(..., 4\)"):
        denormalize(1.0)
    with pytest.raises(ValueError, match="sigma_data=0"):
        normalize(z, sigma_data=0)
