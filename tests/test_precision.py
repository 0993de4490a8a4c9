import numpy as np
import pytest
from backends import FLOATS, dtype_of
from keras import ops

from keras_imm.precision import at_least_float32, maximum, mean, minimum


@pytest.mark.parametrize("dtype", ["bool", "int32", "float16", "bfloat16", "float32"])
def test_narrow_inputs_become_float32(dtype):
    x = at_least_float32(ops.ones((2,), dtype))
    assert dtype_of(x) == "float32"
    assert ops.convert_to_numpy(x).tolist() == [1.0, 1.0]


@pytest.mark.parametrize("x", [1, 0.5, [0.5, 1.0], np.int64(3), np.arange(3)])
def test_numbers_lists_and_integer_arrays_become_float32(x):
    y = at_least_float32(x)
    assert dtype_of(y) == "float32"
    assert ops.convert_to_numpy(y).tolist() == np.asarray(x, "float32").tolist()


@pytest.mark.parametrize("dtype", FLOATS)
def test_wide_inputs_stay(dtype):
    x = np.array([1.0, 1.0 / 3.0], dtype)
    for wide in (x, x[1], ops.convert_to_tensor(x)):
        assert dtype_of(at_least_float32(wide)) == dtype
    assert ops.convert_to_numpy(at_least_float32(x)).tolist() == x.tolist()


@pytest.mark.parametrize("dtype", FLOATS)
def test_maximum_and_minimum(dtype):
    x, y = np.array([[1, 2, 3, np.nan], [2, 2, 1, 0]], dtype)
    for function, expected in [(maximum, np.maximum), (minimum, np.minimum)]:
        for other in (ops.convert_to_tensor(y), 2.0, 1 / 3):  # 1 / 3: many digits
            z = function(ops.convert_to_tensor(x), other)
            assert dtype_of(z) == dtype
            if not isinstance(other, float):
                other = ops.convert_to_numpy(other)
            np.testing.assert_array_equal(ops.convert_to_numpy(z), expected(x, other))


@pytest.mark.parametrize("dtype", FLOATS)
def test_mean(dtype):
    x = np.random.default_rng(0).uniform(1, 2, (3, 4, 5)).astype(dtype)
    for axis in (None, (1, 2)):
        y = mean(ops.convert_to_tensor(x), axis)
        assert dtype_of(y) == dtype
        expected = np.mean(x.astype("float64"), axis)
        rtol = 4 * np.finfo(dtype).eps
        np.testing.assert_allclose(ops.convert_to_numpy(y), expected, rtol=rtol)
