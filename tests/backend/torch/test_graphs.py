"""Traced functions: the graphs that PyTorch runs in place of Python."""

import gc
import threading
import warnings

import keras
import numpy as np
import pytest
from keras.ops import convert_to_numpy as numpy

from keras_imm import backend

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "torch", reason="graphs are PyTorch's"
)


def trace(function, **options):
    from keras_imm.backend.torch.graphs import TracedFunction

    return TracedFunction(function, **options)


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


def test_products_are_added_in_one_pass():
    """Of tensors of one dtype, where nobody else needs the product."""
    import torch

    def function(x, scale, shift):
        once = shift + x * scale
        needed = x * scale[1:]
        return once + (needed + shift) * needed + (2.0 * x) + x.double() * scale

    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(shape) for shape in ((3, 4), (2, 1, 4), (3, 1))]
    given = [torch.tensor(array, dtype=torch.float32) for array in arrays]
    call = trace(function)
    call(*given)  # traces
    result, counts = operations(call, *given)
    x, scale, shift = (numpy(one).astype("float64") for one in given)
    expected = function(*map(torch.tensor, (x, scale, shift)))
    assert result.dtype == torch.float64
    np.testing.assert_allclose(numpy(result), numpy(expected), rtol=1e-5, atol=1e-6)
    assert counts["aten::addcmul"] == 2
    assert counts["aten::mul"] == 3  # what is needed twice, by 2, and of two dtypes


def test_products_of_what_changes_meanwhile_are_computed_before():
    import torch

    def function(x, y):
        x = x + 0.0
        product = x * y
        x.add_(1.0)
        return x + product

    result = trace(function)(torch.tensor([2.0]), torch.tensor([3.0]))
    assert result.tolist() == [9.0]


def test_views_of_views_are_views_of_what_lies_in_one_piece():
    import torch

    def function(x, weights):
        (kernel,) = weights
        joined = torch.matmul(x, kernel).view(2, 12).view(4, 3, 2)
        apart = kernel.T.view(2, 3, 4).view(6, 4)  # strides of a transposed matrix
        return joined.sum(0) @ apart[:2]

    x, kernel = torch.randn(4, 4), torch.randn(4, 6)
    call = trace(function)
    result = call(x, [kernel])
    torch.testing.assert_close(result, function(x, [kernel]))
    _, counts = operations(call, x, [kernel])
    _, written = operations(function, x, [kernel])
    assert counts["aten::view"] == written["aten::view"] - 1


@pytest.mark.slow("compiles")
@pytest.mark.parametrize("first", [False, True])
def test_compiled_graphs_take_tensors_however_they_lie(first, no_warnings):
    """Transposed and expanded ones, in the call that compiles and in later ones."""
    import torch

    def function(x, weights):
        return torch.sin(x @ weights[0]).reshape(-1) + 1.0

    x, kernel = torch.randn(4, 4), torch.randn(4, 4)
    layouts = [(x, kernel), (x.T, kernel), (x, kernel.T), (x[:1].expand(4, 4), kernel)]
    call = trace(function, jit_compile=True)
    for one, other in layouts[::-1] if first else layouts:
        result = call(one, [other])
        expected = function(one.double(), [other.double()])
        np.testing.assert_allclose(numpy(result), numpy(expected), atol=1e-5)


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


@pytest.mark.parametrize("shifts", [False, True])
def test_a_tensor_that_somebody_holds_is_read_in_every_call(shifts, no_warnings):
    """Also where it is cast, as constants are; integers of draws are shifted."""
    import torch

    held = torch.ones(2)

    def function(x):
        x = x >> 1 if shifts else x
        return x.to(torch.float64) + held.to(torch.float64)

    call = trace(function)
    x = torch.tensor([2, 4])
    start = np.array([1.0, 2.0]) if shifts else np.array([2.0, 4.0])
    for value in (1.0, 5.0):
        held.fill_(value)
        np.testing.assert_array_equal(numpy(call(x)), start + value)


@pytest.fixture
def no_warnings():
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*PyTorch")
        yield


def test_an_error_of_the_function_is_raised_as_it_is(no_warnings):
    """And the next call, which has none, is traced."""
    import torch

    class Mistake(Exception):
        pass

    mistakes, calls = [Mistake("mine")], []

    def function(x):
        calls.append(0)
        if mistakes:
            raise mistakes[0]
        return 2.0 * x

    call = trace(function)
    with pytest.raises(Mistake) as raised:
        call(torch.ones(3))
    assert raised.value is mistakes.pop()
    assert raised.value.__context__ is None
    calls.clear()
    for value in (1.0, 2.0):
        found = numpy(call(torch.full((3,), value)))
        np.testing.assert_array_equal(found, [2 * value] * 3)
    assert len(calls) == 1


def test_after_a_wrong_shape_the_right_one_is_traced(no_warnings):
    import torch

    calls = []

    def function(x, y):
        calls.append(0)
        return torch.matmul(x, y)

    call = trace(function)
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        call(torch.ones(2, 3), torch.ones(2, 3))
    calls.clear()
    for _ in range(3):
        assert call(torch.ones(2, 3), torch.ones(3, 2)).shape == (2, 2)
    assert len(calls) == 1


def test_what_cannot_be_traced_for_one_shape_is_traced_for_others():
    import torch

    calls = []

    def function(x):
        calls.append(tuple(x.shape))
        return x if x.shape == (2,) and float(x.sum()) > 0 else -x

    call = trace(function)
    with pytest.warns(UserWarning, match="PyTorch cannot trace it") as warned:
        for _ in range(3):
            np.testing.assert_array_equal(numpy(call(torch.ones(2))), [1.0, 1.0])
            np.testing.assert_array_equal(numpy(call(torch.ones(3))), -np.ones(3))
    ours = [w for w in warned if issubclass(w.category, UserWarning)]
    assert len(ours) == 1
    assert calls.count((3,)) == 1
    assert calls.count((2,)) == 1 + 3


def test_threads_may_trace_at_once(no_warnings):
    import torch

    calls, results, start = [], {}, threading.Barrier(8)

    def function(x):
        calls.append(tuple(x.shape))
        for _ in range(20):
            x = torch.nn.functional.layer_norm(torch.sin(x), x.shape[-1:])
        return x

    call = trace(function)

    def work(index):
        x = torch.arange(2.0 + index // 2)
        start.wait()
        results[index] = call(x), function(x)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index in range(8):
        torch.testing.assert_close(*results[index])
    traced_and_called = 1 + 2  # once in a graph, and by each thread itself
    for size in range(2, 6):
        assert calls.count((size,)) == traced_and_called


@pytest.fixture
def compiler(monkeypatch):
    """A compiler that raises the next of a list of errors, or doubles the results.

    Returns the list, where None is for a graph that compiles, and the sizes it saw.
    """
    from keras_imm.backend.torch import graphs

    errors, sizes = [], []

    def compile_graph(module, tensors):
        sizes.append(len(tensors[0]))
        error = errors.pop(0) if errors else None
        if error is not None:
            raise error
        return lambda *args: [2.0 * result for result in module(*args)]

    monkeypatch.setattr(graphs, "compile_graph", compile_graph)
    return errors, sizes


def doubles(call, size):
    """Whether the compiled graph runs."""
    import torch

    found = numpy(call(torch.ones(size)))
    np.testing.assert_array_equal(found, np.full(size, found[0]))
    return {3.0: False, 6.0: True}[float(found[0])]


def test_shapes_that_cannot_be_compiled_run_as_traced_and_others_compiled(compiler):
    errors, sizes = compiler
    errors += [RuntimeError("no such kernel"), None, RuntimeError("no such kernel")]
    calls = []
    call = trace(lambda x: calls.append(len(x)) or 3.0 * x, jit_compile=True)
    with pytest.warns(UserWarning, match="could not compile.*no such kernel") as warned:
        for _ in range(2):
            assert [doubles(call, n) for n in (1, 2, 3, 4)] == [0, 1, 0, 1]
    assert sum("could not compile" in str(w.message) for w in warned) == 1
    assert calls == sizes == [1, 2, 3, 4]


def test_a_compiler_that_always_fails_is_asked_three_times(compiler):
    errors, sizes = compiler
    errors += [RuntimeError("a"), RuntimeError("b"), None, *3 * [RuntimeError("c")]]
    call = trace(lambda x: 3.0 * x, jit_compile=True)
    with pytest.warns(UserWarning, match="could not compile"):
        found = [doubles(call, size) for size in range(1, 9)]
    assert found == [0, 0, 1, 0, 0, 0, 0, 0]
    assert sizes == [1, 2, 3, 4, 5, 6]
    assert doubles(call, 3)


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("name", ["OutOfMemoryError", "MemoryError"])
def test_memory_that_lacks_while_compiling_is_the_callers_error(
    compiler, no_warnings, name, wrapped
):
    """Also where Inductor wraps it; the function is not called layer by layer."""
    import torch
    from torch._inductor.exc import InductorError

    error = getattr(torch, name, MemoryError)("of this card")
    errors, sizes = compiler
    calls = []
    call = trace(lambda x: calls.append(len(x)) or 3.0 * x, jit_compile=True)
    for _ in range(4):
        errors.append(InductorError(error, None) if wrapped else error)
        with pytest.raises(type(error)) as raised:
            call(torch.ones(2))
        assert raised.value is error
    assert calls == sizes == 4 * [2]
    assert doubles(call, 2)


@pytest.fixture
def cuda_graphs():
    from keras_imm.backend.torch.graphs import use_cuda_graphs

    use_cuda_graphs()
    yield
    use_cuda_graphs(False)


def test_cuda_graphs_are_asked_for_where_they_are_switched_on(monkeypatch):
    import torch._inductor

    from keras_imm.backend.torch.graphs import use_cuda_graphs

    asked = []

    def compile_with_inductor(module, tensors, options=None):
        asked.append(options or {})
        return module

    monkeypatch.setattr(torch._inductor, "compile", compile_with_inductor)
    for enabled in (None, True, False):
        if enabled is not None:
            use_cuda_graphs(enabled)
        call = trace(lambda x: 3.0 * x, jit_compile=True)
        np.testing.assert_array_equal(numpy(call(torch.ones(2))), [3.0, 3.0])
    assert [options.get("triton.cudagraphs", False) for options in asked] == [0, 1, 0]


def test_results_of_a_cuda_graph_outlive_the_next_call(cuda_graphs, monkeypatch):
    """It writes all results to the same memory, from whichever thread it runs."""
    import torch._inductor

    place = torch.zeros(1000)

    def compile_with_inductor(module, tensors, options=None):
        def replay(x):
            place.copy_(x)
            for _ in range(10):
                place.mul_(2.0)
            return [place, None]

        return replay

    monkeypatch.setattr(torch._inductor, "compile", compile_with_inductor)
    call = trace(lambda x: [1024.0 * x, None], jit_compile=True)
    first = call(torch.ones(1000))[0]
    results = {}

    def work(value):
        results[value] = [call(torch.full((1000,), value))[0] for _ in range(50)]

    threads = [threading.Thread(target=work, args=(float(i),)) for i in range(2, 6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    np.testing.assert_array_equal(numpy(first), np.full(1000, 1024.0))
    for value, found in results.items():
        for one in found:
            np.testing.assert_array_equal(numpy(one), np.full(1000, 1024 * value))


@pytest.mark.slow("compiles C++")
def test_inductor_knows_the_switch_and_leaves_a_cpu_alone(cuda_graphs, no_warnings):
    import torch

    call = trace(lambda x: torch.sin(x) * 3.0, jit_compile=True)
    for size in (4, 4, 5):
        x = torch.arange(float(size))
        np.testing.assert_allclose(numpy(call(x)), 3 * np.sin(numpy(x)), rtol=1e-6)


def live_graphs():
    import torch

    gc.collect()
    return sum(issubclass(type(one), torch.fx.GraphModule) for one in gc.get_objects())


@pytest.mark.slow("trains or builds for seconds")
def test_graphs_of_the_last_shapes_are_kept():
    import torch

    from keras_imm.backend.torch.graphs import KEPT_GRAPHS

    calls = []

    def function(x):
        calls.append(len(x))
        return 2.0 * x

    call, before = trace(function), live_graphs()
    call(torch.ones(1))
    for size in range(2, 2 * KEPT_GRAPHS):
        call(torch.ones(size))
        call(torch.ones(1))  # is used, so it is kept
        assert len(calls) == size
    assert live_graphs() - before == KEPT_GRAPHS
    call(torch.ones(2))
    assert len(calls) == 2 * KEPT_GRAPHS


@pytest.mark.slow("trains or builds for seconds")
def test_a_trained_model_keeps_a_bounded_number_of_graphs(
    make_model, images, labels, monkeypatch
):
    """For draws, for losses and gradients, and for sampling."""
    from keras_imm.backend.torch import graphs

    monkeypatch.setattr(graphs, "KEPT_GRAPHS", 2)
    model, before = make_model({}), live_graphs()
    for size in (4, 8, 12, 16):
        model.fit(images[:size], labels[:size], batch_size=size, verbose=0)
    assert live_graphs() - before == 4
    for size in (1, 2, 3, 4):
        model.generate(labels[:size], num_steps=1, seed=0)
    assert live_graphs() - before == 6


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


# -- Tensors that lie otherwise than when a graph was traced


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("first", ["in one piece", "transposed"])
def test_tensors_that_lie_otherwise(first, jit_compile, no_warnings):
    """A view that the one allows and the other does not is of what is in one piece."""
    import torch

    def flat(x):
        return x.view(x.shape[0], -1) * 2.0

    compiled = backend.compile_function(flat, jit_compile)
    whole = torch.arange(24.0).reshape(2, 3, 4)
    inputs = {"in one piece": whole, "transposed": whole.transpose(1, 2)}
    inputs["transposed"] = whole.reshape(2, 4, 3).transpose(1, 2)
    for name in (first, *inputs):
        x = inputs[name]
        expected = x.reshape(2, 12) * 2.0
        assert torch.equal(compiled(x), expected), name


def test_values_are_known_unless_they_are_traced():
    import torch
    from torch.fx.experimental.proxy_tensor import make_fx

    class Asking(torch.nn.Module):
        def forward(self, x):
            asked.append(backend.known_value(x))
            return x + 1

    asked, x, ask = [], torch.arange(3), Asking()
    ask(x)
    np.testing.assert_array_equal(asked.pop(), [0, 1, 2])
    np.testing.assert_array_equal(backend.known_value([0, 1]), [0, 1])
    torch.func.vmap(ask)(x)
    make_fx(ask)(x)
    make_fx(ask, tracing_mode="fake")(x)
    torch.jit.trace(ask, x, check_trace=False)
    assert len(asked) >= 4 and set(map(type, asked)) == {type(None)}
    for x in (torch.empty(3, device="meta"), keras.KerasTensor((3,)), None):
        assert backend.known_value(x) is None
