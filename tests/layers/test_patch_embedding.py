import keras
import numpy as np
import pytest
from keras import ops

from keras_imm.layers import PatchEmbedding


def test_equals_a_strided_convolution_on_a_non_square_image():
    rng = np.random.default_rng(0)
    images = rng.standard_normal((2, 4, 6, 3))
    kernel = rng.standard_normal((2, 2, 3, 5))  # row, column, channel, output
    bias = rng.standard_normal(5)
    expected = [
        np.einsum("brci,rcio->bo", images[:, r : r + 2, c : c + 2], kernel) + bias
        for r in range(0, 4, 2)
        for c in range(0, 6, 2)
    ]
    layer = PatchEmbedding(2, 5)
    layer.build((None, 4, 6, 3))
    layer.projection.kernel.assign(kernel.reshape(12, 5))
    layer.projection.bias.assign(bias)
    tokens = ops.convert_to_numpy(layer(images.astype("float32")))
    np.testing.assert_allclose(tokens, np.stack(expected, axis=1), atol=1e-5)


def test_kernel_is_xavier_over_the_flattened_patch():
    keras.utils.set_random_seed(0)
    layer = PatchEmbedding(2, 64)
    layer.build((None, 8, 8, 4))
    limit = np.sqrt(6 / (16 + 64))
    largest = np.abs(ops.convert_to_numpy(layer.projection.kernel)).max()
    assert 0.98 * limit < largest <= limit


def test_patch_must_divide_the_image():
    with pytest.raises(ValueError, match=r"`patch_size` must divide.*width.*is 7.*=2"):
        PatchEmbedding(2, 8).build((None, 8, 7, 1))


@pytest.mark.parametrize("argument", ["patch_size", "hidden_size"])
def test_wrong_arguments(argument):
    arguments = {"patch_size": 2, "hidden_size": 8, argument: 1.5}
    with pytest.raises(ValueError, match=f"`{argument}` must be an integer.*=1.5"):
        PatchEmbedding(**arguments)
