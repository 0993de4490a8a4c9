import numpy as np
import pytest
from keras import ops

from keras_imm.layers import SinCosPositionEmbedding


@pytest.mark.parametrize("grid_shape", [(4, 4), (2, 5), (32, 3)])
def test_table_equals_the_equations(grid_shape):
    rows, columns = grid_shape
    expected = np.empty((rows, columns, 24))
    for row in range(rows):
        for column in range(columns):
            for i in range(6):
                frequency = 10000.0 ** (-i / 6)
                expected[row, column, i] = np.sin(column * frequency)
                expected[row, column, 6 + i] = np.cos(column * frequency)
                expected[row, column, 12 + i] = np.sin(row * frequency)
                expected[row, column, 18 + i] = np.cos(row * frequency)
    layer = SinCosPositionEmbedding(grid_shape)
    tokens = np.ones((1, rows * columns, 24), "float32")
    result = ops.convert_to_numpy(layer(tokens))[0]
    np.testing.assert_allclose(result, 1 + expected.reshape(-1, 24), atol=1e-6)
    assert not layer.trainable_variables


@pytest.mark.parametrize("grid_shape", [4, (4,), (4, 0)])
def test_wrong_grid(grid_shape):
    with pytest.raises(ValueError, match="`grid_shape` must be"):
        SinCosPositionEmbedding(grid_shape)


@pytest.mark.parametrize("tokens_shape", [(None, 15, 24), (None, 16, 22)])
def test_tokens_that_do_not_fit(tokens_shape):
    with pytest.raises(ValueError, match=r"\(batch, 16, a multiple of 4\)"):
        SinCosPositionEmbedding((4, 4)).build(tokens_shape)
