"""Compiled functions: the same results, for every kind of argument they were given."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_imm import backend


def sum_of_present(x, y, others):
    total = 0.0
    for value in (x, y, *others):
        if value is not None:
            total = 2.0 * total + value
    return total


@pytest.fixture
def compiled():
    return backend.compile_function(sum_of_present)


def numpy(x):
    return np.asarray(ops.convert_to_numpy(x))


def test_absent_arguments_are_distinguished(compiled):
    one, two = ops.ones((3,)), 2.0 * ops.ones((3,))
    for arguments in (
        (one, two, []),
        (one, None, [two]),
        (None, one, [two]),
        (two, None, [None]),
        (None, two, [None]),
        (None, None, [one, two, one]),
    ):
        expected = numpy(sum_of_present(*arguments))
        np.testing.assert_array_equal(numpy(compiled(*arguments)), expected)


def test_shapes_and_dtypes_are_distinguished(compiled):
    for dtype in ("float32", "float16", "float32"):
        for size in (2, 5):
            x = ops.cast(np.arange(size), dtype)
            result = compiled(x, x, [])
            assert keras.backend.standardize_dtype(result.dtype) == dtype
            np.testing.assert_array_equal(numpy(result), 3.0 * np.arange(size))


def test_new_values_do_not_trace_again():
    calls = []

    def function(x):
        calls.append(0)
        return x + 1.0

    compiled = backend.compile_function(function)
    for value in range(4):
        np.testing.assert_array_equal(numpy(compiled(ops.full((2,), value))), value + 1)
    assert len(calls) == 1


def test_a_loop_is_compiled_as_one_where_the_backend_says_so():
    if not backend.compiles_loops:
        pytest.skip("PyTorch unrolls loops: tests/backend/torch/test_graphs.py")
    calls = []

    def body(_, x):
        calls.append(0)
        return 2.0 * x

    compiled = backend.compile_function(lambda x: ops.fori_loop(0, 50, body, x))
    result = numpy(compiled(np.ones(2, "float32")))
    np.testing.assert_array_equal(result, 2.0**50 * np.ones(2))
    assert len(calls) < 10


def test_an_optimization_barrier_is_the_identity():
    x = np.arange(4.0, dtype="float32")

    def function(x):
        y = backend.optimization_barrier(ops.square(x))
        return ops.sum(y * y + y)

    assert float(backend.compile_function(function)(ops.array(x))) == 112.0
    assert float(function(ops.array(x))) == 112.0
    given = ops.array(x)
    assert backend.optimization_barrier(given) is given


def test_jvp_of_a_function_of_two_arguments_is_the_closed_form():
    rng = np.random.default_rng(0)
    x, y, u, v = rng.standard_normal((4, 5)).astype("float32")
    tensors = [ops.convert_to_tensor(a) for a in (x, y, u, v)]

    def function(x, y):
        return ops.sin(x) * ops.square(y)

    value, derivative = backend.jvp(function, tuple(tensors[:2]), tuple(tensors[2:]))
    expected = np.cos(x) * y**2 * u + 2 * np.sin(x) * y * v
    np.testing.assert_allclose(numpy(value), np.sin(x) * y**2, rtol=1e-5)
    np.testing.assert_allclose(numpy(derivative), expected, rtol=1e-4, atol=1e-6)


def test_the_derivative_of_what_does_not_depend_on_the_argument_is_zero():
    x = ops.ones((3,))
    value, derivative = backend.jvp(lambda x: ops.ones((3,)), (x,), (x,))
    np.testing.assert_array_equal(numpy(value), np.ones(3))
    np.testing.assert_array_equal(numpy(derivative), np.zeros(3))
