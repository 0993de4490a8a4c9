"""Traced functions under PyTorch: graphs of ATen operations."""

import threading
import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import keras
import numpy as np
import torch
from torch._C._functorch import is_functorch_wrapped_tensor
from torch.fx.experimental.proxy_tensor import get_proxy_mode, make_fx
from torch.utils import _pytree as pytree

from keras_imm.backend import keras_private
from keras_imm.backend.recently_used import RecentlyUsed
from keras_imm.backend.torch.graph_passes import call_python_functions, simplify

compiles_loops = False

# Shapes of arguments whose graphs a function keeps: those that were used last.
KEPT_GRAPHS = 16

# After so many graphs in a row that could not be compiled no more are.
FAILED_COMPILATIONS = 3

# Whether compiled graphs become CUDA graphs: see `use_cuda_graphs`.
_CUDA_GRAPHS = False

# Tracing changes what all threads of PyTorch share.
_TRACING = threading.RLock()


def compile_function(function: Callable, jit_compile: bool = False) -> Callable:
    """Compiles a function whose result depends on its tensor arguments alone.

    The compiled function is traced once for each set of shapes and dtypes of its
    arguments: a new value costs nothing. Under PyTorch the last `KEPT_GRAPHS` sets
    are kept.

    Args:
        function: Function of positional arguments: tensors, None, or lists of
            these. Tensors in lists, such as weights, have the same shapes and dtypes
            in every call. It returns a tensor, or lists and tuples of tensors and None.
        jit_compile: Whether TensorFlow compiles through XLA and PyTorch through
            what `torch.compile` ends in. JAX always compiles through XLA.

    Returns:
        The compiled function. It keeps no gradient: `jax.jit` under JAX,
        `tf.function` under TensorFlow, and under PyTorch a graph of ATen operations.
        Where values of tensors decide what a function does it cannot be a graph: under
        PyTorch it is then called as it is, with a warning.
    """
    graphs = TracedFunction(function, jit_compile)

    # Or a gradient could not be taken through what the caller computes from them.
    def copy(result):
        return result.clone() if torch.is_tensor(result) else result

    def compiled(*args):
        results = graphs(*args)
        with torch.no_grad():
            if torch.is_tensor(results):
                return results.clone()
            return pytree.tree_map(copy, results)

    return compiled


class TracedFunction:
    """As `compile_function`, for results that nobody differentiates or changes.

    Unless `jit_compile`, they are tensors made in inference mode, which autograd cannot
    keep for a backward pass.

    Where tracing fails the function is called as it is. If that fails too the error is
    the caller's own and is raised; if not, a warning says what cannot be traced, and
    arguments of these shapes are handed to the function from then on. A graph that
    cannot be compiled runs as it was traced, with a warning; memory that is lacking is
    the caller's own error in any case.

    Args:
        function: As in `compile_function`.
        jit_compile: As in `compile_function`.
        untraced: What is called where `function` cannot be traced, with the same
            arguments. Defaults to `function`.
        otherwise: What that means, for the warning.
        keep_rounding: Whether results are those of the function to the last bit, unless
            they are compiled.
        said: Warnings that were given, which several functions may share.
    """

    def __init__(
        self,
        function: Callable,
        jit_compile: bool = False,
        untraced: Callable | None = None,
        otherwise: str = "A model runs layer by layer",
        keep_rounding: bool = False,
        said: set[str] | None = None,
    ):
        self._function = function
        self._keep_rounding = keep_rounding
        self._otherwise = otherwise
        self._attempts = FAILED_COMPILATIONS if jit_compile else 0
        self._untraced = torch.no_grad()(untraced or function)
        self._kept = RecentlyUsed(KEPT_GRAPHS)
        self._said = set() if said is None else said

    def __call__(self, *args: Any) -> Any:
        """What the function returns."""
        signature, tensors = _signature(args)
        tensors = _in_one_piece(tensors)  # as they were when the graph was traced
        run = self._kept.get(signature)
        if run is None:
            run, error = self._traced(signature, args, tensors)
            if error is not None:
                return self._call_untraced(signature, args, error)
        return run(args, tensors)

    def _traced(
        self, signature: tuple, args: tuple, tensors: list
    ) -> tuple[Callable | None, Exception | None]:
        """What to run, unless another thread has made it, or why there is nothing."""
        with _TRACING:
            run = self._kept.get(signature)
            if run is None:
                try:
                    run = self._trace(args, tensors)
                except Exception as error:
                    if _lacks_memory(error):
                        raise
                    return None, error
                self._kept.put(signature, run)
            return run, None

    def _call_untraced(self, signature: tuple, args: tuple, error: Exception) -> Any:
        results = self._untraced(*args)
        with _TRACING:
            self._kept.put(signature, lambda args, _: self._untraced(*args))
        self._warn_once(
            f"{self._otherwise} where its inputs have these shapes, which is slower: "
            f"PyTorch cannot trace it. {type(error).__name__}: {error}"
        )
        return results

    def _warn_once(self, message: str) -> None:
        if message not in self._said:
            self._said.add(message)
            warnings.warn(message, stacklevel=4)

    @torch.no_grad()
    def _trace(self, args: tuple, tensors: list) -> Callable:
        structure, absent, is_tensor = None, None, False

        def of_tensors(*tensors):
            given = iter(tensors)

            def fill(arg):
                if isinstance(arg, list):
                    return [fill(one) for one in arg]
                return None if arg is None else next(given)

            nonlocal structure, absent, is_tensor
            returned = self._function(*map(fill, args))
            is_tensor = torch.is_tensor(returned)
            results, structure = pytree.tree_flatten(returned)
            absent = [one is None for one in results]
            return [one for one in results if one is not None]

        # On tensors without values: nothing is computed, kept or drawn.
        graph = make_fx(of_tensors, tracing_mode="fake", _allow_non_fake_inputs=True)(
            *tensors
        )
        simplify(graph)
        compiled = self._compile(graph, tensors) if self._attempts else None
        mode = torch.no_grad if compiled else torch.inference_mode
        run_graph = compiled or call_python_functions(graph, self._keep_rounding)

        def run(_, tensors):
            with mode():
                results = run_graph(*tensors)
            if is_tensor:
                return results[0]
            present = iter(results)
            return pytree.tree_unflatten(
                [None if one else next(present) for one in absent], structure
            )

        return run

    def _compile(self, graph: Any, tensors: list) -> Callable | None:
        """None where the compiler fails, which it may not for other shapes."""
        try:
            compiled = compile_graph(graph, tensors)
        except Exception as error:
            # What Inductor raises has the error that it met.
            cause = getattr(error, "inner_exception", error)
            if _lacks_memory(cause):
                raise cause from None
            self._attempts -= 1
            self._warn_once(
                "PyTorch could not compile a graph, which runs as it was traced. "
                f"{type(error).__name__}: {str(error)[:1000]}"
            )
            return None
        self._attempts = FAILED_COMPILATIONS
        return compiled


def _lacks_memory(error: Exception) -> bool:
    """Whether there was not enough memory on the device, or for Python."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError)


def _signature(args: tuple) -> tuple[tuple, list]:
    """What a graph depends on, and the tensors that it takes."""
    key, tensors = [], []
    for arg in args:
        if isinstance(arg, list):
            key.append(len(arg))
            if type(None) in map(type, arg):
                key += [i for i, one in enumerate(arg) if one is None]
                arg = [one for one in arg if one is not None]
            key.append("of list")
            tensors += arg
        elif arg is None:
            key.append(None)
        else:
            key += [arg.shape, arg.dtype, arg.device]
            tensors.append(arg)
    return tuple(key), tensors


def optimization_barrier(x: Any) -> Any:
    """The tensor: PyTorch computes it once. See `keras_imm.backend.jax`."""
    return x


def use_cuda_graphs(enabled: bool = True) -> None:
    """Sets whether graphs compiled from now on are recorded as CUDA graphs.

    A CUDA graph starts all kernels of a training or sampling step at once, so that none
    waits for the host. Inductor records it in the first call with new shapes, if it
    needs nothing on the CPU; from then on every call copies its inputs, the weights
    too, to where the graph reads them. The graph keeps the memory of what it computes,
    and with newer versions of PyTorch every thread that calls it records its own.

    Off unless this is called: it was not tried on a GPU yet. The stage `cuda_graphs` of
    benchmarks/accelerator.py compares time, memory and losses.

    Args:
        enabled: Whether they are.

    Example:

    ```python
    from keras_imm.backend.torch.graphs import use_cuda_graphs

    use_cuda_graphs()
    model.compile("adam")
    ```
    """
    global _CUDA_GRAPHS
    _CUDA_GRAPHS = enabled


def as_argument(array: Any) -> Any:
    """A NumPy array as a compiled function is best given it in many calls.

    Args:
        array: NumPy array, or tensor.

    Returns:
        Under PyTorch a tensor on Keras's device; elsewhere the array itself.
    """
    if isinstance(array, np.ndarray) and not array.flags.writeable:
        array = array.copy()  # PyTorch's tensors may be written to
    return torch.as_tensor(array, device=keras_private.torch_device())


def known_value(x: Any) -> np.ndarray | None:
    """What a tensor holds, where that is known without being waited for in a graph.

    Args:
        x: A tensor of the backend, an array, a number or a list; or None.

    Returns:
        NumPy array; None for None and for what stands for a tensor while a function is
        traced or exported, or is not all on this host.
    """
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return None
    if isinstance(x, torch.Tensor):
        is_plain = type(x) in (torch.Tensor, torch.nn.Parameter)
        is_plain = is_plain and not is_functorch_wrapped_tensor(x)  # of `torch.func`
        if not is_plain or x.is_meta or get_proxy_mode() is not None:
            return None
        return np.asarray(keras.ops.convert_to_numpy(x))
    return None if x is None or keras.utils.is_keras_tensor(x) else np.asarray(x)


def compile_graph(module: Any, tensors: list) -> Callable:
    """What `torch.compile` ends in, without its checks before every call."""
    from torch._inductor import compile as compile_with_inductor
    from torch._inductor import config

    options = None
    if _CUDA_GRAPHS:
        # Trees belong to a thread, and have steps that `torch.compile` counts.
        options = {"triton.cudagraphs": True, "triton.cudagraph_trees": False}
    # Arguments have the sizes and strides that it is compiled for: on a CPU asking for
    # each takes longer than a small network's layers. On a GPU it is asked too whether
    # kernels that others wrote return what they should.
    on_the_cpu = all(tensor.device.type == "cpu" for tensor in tensors)
    quickly = config.patch(size_asserts=False) if on_the_cpu else nullcontext()
    with quickly:
        compiled = compile_with_inductor(module, tensors, options)
    return _with_results_copied(compiled) if _CUDA_GRAPHS else compiled


def _with_results_copied(compiled: Callable) -> Callable:
    """A function for many threads whose next call does not write over its results."""
    lock = threading.Lock()

    def run(*tensors):
        with lock:
            return [
                result.clone() if torch.is_tensor(result) else result
                for result in compiled(*tensors)
            ]

    return run


def _in_one_piece(tensors: Sequence) -> Sequence:
    """Tensors as a compiled graph reads them, copied where they lie otherwise."""
    if all(map(torch.Tensor.is_contiguous, tensors)):
        return tensors
    return [tensor.contiguous() for tensor in tensors]
