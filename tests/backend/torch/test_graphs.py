"""Traced functions: the graphs that PyTorch runs in place of Python."""

import keras
import numpy as np
import pytest
from keras.ops import convert_to_numpy as numpy

from keras_imm import backend

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "torch", reason="graphs are PyTorch's"
)


def trace(function, **options):
    from keras_imm.backend.torch.graphs import trace_function

    return trace_function(function, **options)


def operations(function, *args):
    """A call's result, and how often each ATen operation ran in it."""
    import torch

    with torch.profiler.profile() as profile:
        result = function(*args)
    return result, {event.key: event.count for event in profile.key_averages()}


def test_a_vector_that_is_no_bias_is_added_after_the_product():
    import torch

    def function(x, weights):
        kernel, vector = weights
        return torch.matmul(x, kernel).view(4, 8, 1) + vector

    x, kernel, vector = torch.randn(4, 3), torch.randn(3, 8), torch.randn(8)
    result = trace(function)(x, [kernel, vector])
    assert result.shape == (4, 8, 8)
    torch.testing.assert_close(result, function(x, [kernel, vector]))


def test_what_is_traced_has_shapes_and_no_values():
    """So that tracing takes no memory, and draws nothing."""
    import torch

    seen = []

    def function(x):
        seen.append(type(x).__name__)
        return torch.sin(x)

    result = trace(function)(torch.ones(3))
    assert seen == ["FakeTensor"]
    np.testing.assert_allclose(numpy(result), np.sin(np.ones(3)), rtol=1e-6)


def test_a_bias_is_added_in_the_product():
    """And detached, copied and unused values are gone; the result is the same."""
    import torch

    def function(x, weights):
        kernel, bias = weights
        torch.sin(x)
        first = torch.matmul(x.detach(), kernel) + bias
        wide = torch.matmul(x[None], kernel) + bias  # by way of a view
        return first + wide[0] + torch.matmul(x, kernel) + torch.matmul(x, kernel).T

    rng = np.random.default_rng(0)
    x, kernel = (torch.tensor(rng.standard_normal((4, 4))) for _ in range(2))
    bias = torch.tensor(rng.standard_normal(4))
    call = trace(function)
    call(x, [kernel, bias])  # traces
    result, counts = operations(call, x, [kernel, bias])
    expected = numpy(function(x, [kernel, bias]))
    np.testing.assert_allclose(numpy(result), expected, atol=1e-12)
    assert counts["aten::addmm"] == 2
    assert counts["aten::mm"] == 2
    assert not {"aten::sin", "aten::detach"} & set(counts)
    _, written = operations(function, x, [kernel, bias])
    assert {"aten::sin", "aten::detach"} <= set(written)  # the profiler sees them


def test_nothing_is_recorded_for_a_gradient():
    import torch

    weight = torch.ones(3, requires_grad=True)
    compiled = backend.compile_function(lambda x: 2.0 * x)
    assert not compiled(weight).requires_grad


def test_results_of_a_compiled_function_can_be_differentiated_through():
    import torch

    result = backend.compile_function(lambda x: 2.0 * x)(torch.ones(3))
    scale = torch.ones((), requires_grad=True)
    (scale * result).square().sum().backward()
    assert float(scale.grad) == 2 * 3 * 4.0


def test_a_function_that_asks_for_values_is_called_as_it_is():
    import torch

    def function(x):
        return x if float(x.sum()) > 0 else -x

    compiled = backend.compile_function(function)
    with pytest.warns(UserWarning, match="PyTorch cannot trace it"):
        result = compiled(-torch.ones(2))
    np.testing.assert_array_equal(numpy(result), [1.0, 1.0])
    result = compiled(torch.full((2,), 3.0))
    np.testing.assert_array_equal(numpy(result), [3.0, 3.0])


def test_loops_are_unrolled():
    from keras import ops

    assert not backend.compiles_loops
    calls = []

    def body(_, x):
        calls.append(0)
        return 2.0 * x

    compiled = backend.compile_function(lambda x: ops.fori_loop(0, 3, body, x))
    np.testing.assert_array_equal(numpy(compiled(ops.ones((2,)))), [8.0, 8.0])
    assert len(calls) == 3
