"""Fixed sine-cosine positions of a grid of tokens."""

from typing import Any

import keras
import numpy as np
from keras import ops

from keras_imm.layers.timestep_embedding import sinusoidal_frequencies
from keras_imm.validation import check_integer


def sincos_position_table(rows: int, columns: int, hidden_size: int) -> np.ndarray:
    """The fixed position table of a grid of tokens.

    The first half of the channels encodes a token's column, the second half its row;
    each half is `[sin(p f), cos(p f)]` over `hidden_size / 4` frequencies `f` from 1
    down to about 1 / 10000.

    Args:
        rows: Integer. Number of rows of the grid.
        columns: Integer. Number of columns of the grid.
        hidden_size: Integer, a multiple of 4.

    Returns:
        A float64 array of shape `(rows * columns, hidden_size)`, row by row.
    """
    frequencies = sinusoidal_frequencies(hidden_size // 4, 10000.0)
    row, column = np.mgrid[:rows, :columns].reshape(2, -1, 1)
    return np.concatenate(
        [
            np.sin(column * frequencies),
            np.cos(column * frequencies),
            np.sin(row * frequencies),
            np.cos(row * frequencies),
        ],
        axis=1,
    )


@keras.saving.register_keras_serializable(package="keras_imm")
class SinCosPositionEmbedding(keras.layers.Layer):
    """Adds a fixed sine-cosine position table to a grid of tokens.

    Args:
        grid_shape: Two positive integers: rows and columns of the grid.
        **kwargs: Other arguments of `keras.layers.Layer`, such as `name`, `dtype`.

    Call arguments:
        tokens: Tensor of shape `(batch, rows * columns, hidden_size)`, row by row;
            `hidden_size` is a multiple of 4.

    Returns:
        A tensor of the same shape in the compute dtype.

    Raises:
        ValueError: If `grid_shape` is not two positive integers, or if the tokens the
            layer is built on do not fit it.

    Example:

    ```python
    layer = keras_imm.layers.SinCosPositionEmbedding(grid_shape=(4, 3))
    tokens = layer(np.zeros((1, 12, 64), "float32"))
    ```

    Reference:
        - [Peebles & Xie, 2023](https://arxiv.org/abs/2212.09748), Section 3.2
    """

    def __init__(self, grid_shape: tuple[int, int], **kwargs: Any):
        if not isinstance(grid_shape, (tuple, list)) or len(grid_shape) != 2:
            raise ValueError(
                "`grid_shape` must be two positive integers (rows, columns). "
                f"Received: grid_shape={grid_shape!r}"
            )
        for side in grid_shape:
            check_integer("grid_shape", side, at_least=1)
        super().__init__(**kwargs)
        self.grid_shape = tuple(grid_shape)

    def build(self, tokens_shape) -> None:
        rows, columns = self.grid_shape
        _, tokens, hidden_size = tokens_shape
        if tokens != rows * columns or hidden_size % 4 != 0:
            raise ValueError(
                f"Tokens must have shape (batch, {rows * columns}, a multiple of 4) "
                f"for grid_shape={self.grid_shape}. Received: {tuple(tokens_shape)}"
            )
        table = sincos_position_table(rows, columns, hidden_size)
        self.table = self.add_weight(
            shape=table.shape,
            initializer=lambda shape, dtype: ops.convert_to_tensor(table, dtype),
            trainable=False,
            name="table",
        )

    def call(self, tokens) -> Any:
        return tokens + self.table

    def compute_output_shape(self, tokens_shape) -> tuple:
        return tokens_shape

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        config.update(grid_shape=self.grid_shape)
        return config
