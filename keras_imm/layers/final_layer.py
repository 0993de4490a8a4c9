"""From tokens back to an image."""

from typing import Any

import keras
from keras import ops

from keras_imm.backend import optimization_barrier
from keras_imm.layers.validation import check_divides, check_image_shape
from keras_imm.validation import check_integer


@keras.saving.register_keras_serializable(package="keras_imm")
class FinalLayer(keras.layers.Layer):
    """Turns tokens back into an image: adaptive normalization, Dense, unpatchify.

    Both Dense layers start at zero, so a new network returns exactly zero. The
    channels of the last one are ordered (row in patch, column in patch, channel).

    Args:
        image_shape: Three positive integers: height, width and channels.
        patch_size: Integer. Side of a patch in pixels; divides height and width.
        **kwargs: Other arguments of `keras.layers.Layer`, such as `name`, `dtype`.

    Call arguments:
        tokens: Tensor of shape `(batch, tokens, hidden_size)`, row by row.
        conditioning: Tensor of shape `(batch, 1, hidden_size)`: the conditioning
            vector after its SiLU.

    Returns:
        A tensor of shape `(batch, height, width, channels)` in the compute dtype.

    Raises:
        ValueError: If an argument is out of its range, or if the patch does not
            divide the image.

    Example:

    ```python
    layer = keras_imm.layers.FinalLayer(image_shape=(8, 6, 3), patch_size=2)
    tokens = np.zeros((1, 12, 64), "float32")
    image = layer(tokens, np.zeros((1, 1, 64), "float32"))  # (1, 8, 6, 3)
    ```

    Reference:
        - [Peebles & Xie, 2023](https://arxiv.org/abs/2212.09748), Section 3.2
    """

    def __init__(
        self, image_shape: tuple[int, int, int], patch_size: int, **kwargs: Any
    ):
        check_image_shape("image_shape", image_shape)
        check_integer("patch_size", patch_size, at_least=1)
        height, width, channels = image_shape
        check_divides("patch_size", patch_size, "the image height", height)
        check_divides("patch_size", patch_size, "the image width", width)
        super().__init__(**kwargs)
        self.image_shape = tuple(map(int, image_shape))
        self.patch_size = patch_size
        rows, columns = height // patch_size, width // patch_size
        self.patches_shape = (-1, rows, columns, patch_size, patch_size, channels)
        self.projection = keras.layers.Dense(
            patch_size * patch_size * channels,
            kernel_initializer="zeros",
            dtype=self.dtype_policy,
            name="projection",
        )

    def build(self, tokens_shape, conditioning_shape) -> None:
        self.modulation = keras.layers.Dense(
            2 * tokens_shape[-1],
            kernel_initializer="zeros",
            dtype=self.dtype_policy,
            name="modulation",
        )
        self.modulation.build(conditioning_shape)
        self.projection.build(tokens_shape)

    def call(self, tokens, conditioning) -> Any:
        shift, scale = ops.split(self.modulation(conditioning), 2, axis=-1)
        normed = ops.layer_normalization(optimization_barrier(tokens), epsilon=1e-6)
        patches = self.projection((1 + scale) * normed + shift)
        patches = ops.transpose(
            ops.reshape(patches, self.patches_shape), (0, 1, 3, 2, 4, 5)
        )
        return ops.reshape(patches, (-1, *self.image_shape))

    def compute_output_shape(self, tokens_shape, conditioning_shape) -> tuple:
        return (tokens_shape[0], *self.image_shape)

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        config.update(image_shape=self.image_shape, patch_size=self.patch_size)
        return config
