import numpy as np
import pytest
from keras import ops

from keras_imm.layers import FinalLayer


def test_equals_the_equations_on_a_non_square_image():
    rows, columns, patch, channels, size = 2, 8, 2, 4, 48
    rng = np.random.default_rng(0)
    tokens = rng.standard_normal((4, rows * columns, size))
    conditioning = rng.standard_normal((4, 1, size))
    layer = FinalLayer((rows * patch, columns * patch, channels), patch)
    layer.build(tokens.shape, conditioning.shape)
    shift_kernel, scale_kernel = rng.standard_normal((2, size, size))
    kernel = rng.standard_normal((size, patch, patch, channels))
    layer.modulation.kernel.assign(np.concatenate([shift_kernel, scale_kernel], 1))
    layer.projection.kernel.assign(kernel.reshape(size, -1))

    normed = tokens - tokens.mean(axis=-1, keepdims=True)
    normed = normed / np.sqrt(tokens.var(axis=-1, keepdims=True) + 1e-6)
    scale, shift = conditioning @ scale_kernel, conditioning @ shift_kernel
    modulated = normed * (1 + scale) + shift
    expected = np.empty((4, rows * patch, columns * patch, channels))
    for token in range(rows * columns):
        row, column = patch * (token // columns), patch * (token % columns)
        pixels = np.einsum("bd,drci->brci", modulated[:, token], kernel)
        expected[:, row : row + patch, column : column + patch] = pixels

    image = layer(tokens.astype("float32"), conditioning.astype("float32"))
    np.testing.assert_allclose(ops.convert_to_numpy(image), expected, atol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((8, 8), 2), r"`image_shape` must be three positive.*=\(8, 8\)"),
        (((8, 8, 1), 0), "`patch_size` must be an integer of at least 1.*=0"),
        (((9, 8, 1), 2), "`patch_size` must divide the image height.*is 9.*=2"),
        (((8, 9, 1), 2), "`patch_size` must divide the image width.*is 9.*=2"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        FinalLayer(*arguments)
