"""From an image to tokens."""

from typing import Any

import keras
from keras import ops

from keras_imm.layers.validation import check_divides
from keras_imm.validation import check_integer


@keras.saving.register_keras_serializable(package="keras_imm")
class PatchEmbedding(keras.layers.Layer):
    """Cuts an image into square patches and maps each to a token.

    Equal to a strided convolution whose kernel and stride are the patch, written as
    a matrix product: the kernel has shape `(patch_size**2 * channels, hidden_size)`,
    its rows in the order (row in patch, column in patch, channel).

    Args:
        patch_size: Integer. Side of a patch in pixels; divides height and width.
        hidden_size: Integer. Width of a token.
        **kwargs: Other arguments of `keras.layers.Layer`, such as `name`, `dtype`.

    Call arguments:
        images: Tensor of shape `(batch, height, width, channels)`.

    Returns:
        A tensor of shape `(batch, tokens, hidden_size)` in the compute dtype, where
        `tokens = (height // patch_size) * (width // patch_size)` run row by row.

    Raises:
        ValueError: If an argument is not a positive integer, or if the patch does not
            divide the image the layer is built on.

    Example:

    ```python
    layer = keras_imm.layers.PatchEmbedding(patch_size=2, hidden_size=64)
    tokens = layer(np.zeros((1, 8, 6, 3), "float32"))  # (1, 12, 64)
    ```

    Reference:
        - [Peebles & Xie, 2023](https://arxiv.org/abs/2212.09748), Section 3.2
    """

    def __init__(self, patch_size: int, hidden_size: int, **kwargs: Any):
        check_integer("patch_size", patch_size, at_least=1)
        check_integer("hidden_size", hidden_size, at_least=1)
        super().__init__(**kwargs)
        self.patch_size = int(patch_size)
        self.hidden_size = int(hidden_size)
        self.projection = keras.layers.Dense(
            self.hidden_size, dtype=self.dtype_policy, name="projection"
        )

    def build(self, images_shape) -> None:
        _, height, width, channels = images_shape
        patch = self.patch_size
        check_divides("patch_size", patch, "the image height", height)
        check_divides("patch_size", patch, "the image width", width)
        rows, columns = height // patch, width // patch
        self.split_shape = (-1, rows, patch, columns, patch, channels)
        self.patches_shape = (-1, rows * columns, patch * patch * channels)
        self.projection.build(self.patches_shape)

    def call(self, images) -> Any:
        patches = ops.transpose(
            ops.reshape(images, self.split_shape), (0, 1, 3, 2, 4, 5)
        )
        return self.projection(ops.reshape(patches, self.patches_shape))

    def compute_output_shape(self, images_shape) -> tuple:
        batch, height, width, _ = images_shape
        tokens = (height // self.patch_size) * (width // self.patch_size)
        return (batch, tokens, self.hidden_size)

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        config.update(patch_size=self.patch_size, hidden_size=self.hidden_size)
        return config
