"""Compiled functions: the same results, for every kind of argument they were given."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_imm import compilation


def sum_of_present(x, y, others):
    total = 0.0
    for value in (x, y, *others):
        if value is not None:
            total = 2.0 * total + value
    return total


@pytest.fixture
def compiled():
    return compilation.compile_function(sum_of_present)


def numpy(x):
    return np.asarray(ops.convert_to_numpy(x))


def test_absent_arguments_are_told_apart(compiled):
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


def test_shapes_and_dtypes_are_told_apart(compiled):
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

    compiled = compilation.compile_function(function)
    for value in range(4):
        np.testing.assert_array_equal(numpy(compiled(ops.full((2,), value))), value + 1)
    assert len(calls) == 1


def test_nothing_is_recorded_for_a_gradient():
    if keras.backend.backend() != "torch":
        pytest.skip("only PyTorch records on the tensors themselves")
    import torch

    weight = torch.ones(3, requires_grad=True)
    compiled = compilation.compile_function(lambda x: 2.0 * x)
    assert not compiled(weight).requires_grad


def test_computed_once_is_the_same_and_kept_by_jax_alone():
    x = np.arange(4.0, dtype="float32")

    def function(x):
        y = compilation.computed_once(ops.square(x))
        return ops.sum(y * y + y)

    assert float(compilation.compile_function(function)(ops.array(x))) == 112.0
    assert float(function(ops.array(x))) == 112.0
    if keras.backend.backend() != "jax":
        assert compilation.computed_once(given := ops.array(x)) is given
        return
    import jax

    np.testing.assert_allclose(jax.grad(function)(x), 4 * x**3 + 2 * x)
    lowered = jax.jit(function).lower(x).as_text()
    on_cpu = jax.default_backend() == "cpu"
    assert ("optimization_barrier" in lowered) == on_cpu
