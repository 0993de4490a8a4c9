"""Traced functions under PyTorch: graphs of ATen operations."""

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree as pytree

compiles_loops = False


def compile_function(function: Callable, jit_compile: bool = False) -> Callable:
    """Compiles a function whose result depends on its tensor arguments alone.

    The compiled function is traced once for each set of shapes and dtypes of its
    arguments: a new value costs nothing.

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
    graphs = trace_function(function, jit_compile)

    def copy(result):
        # Or a gradient could not be taken through what the caller computes from it.
        return result.clone() if torch.is_tensor(result) else result

    def compiled(*args):
        results = graphs(*args)
        with torch.no_grad():
            return pytree.tree_map(copy, results)

    return compiled


def trace_function(function: Callable, jit_compile: bool = False) -> Callable:
    """As `compile_function`, for results that nobody differentiates or changes.

    Unless `jit_compile`, they are tensors made in inference mode, which autograd cannot
    keep for a backward pass.
    """
    graphs, untraceable = {}, []

    @torch.no_grad()
    def trace(args, tensors):
        structure = None

        def of_tensors(*tensors):
            given = iter(tensors)

            def fill(arg):
                if isinstance(arg, list):
                    return [fill(one) for one in arg]
                return None if arg is None else next(given)

            nonlocal structure
            results, structure = pytree.tree_flatten(function(*map(fill, args)))
            structure = structure, [one is None for one in results]
            return [one for one in results if one is not None]

        # On tensors without values: nothing is computed, kept or drawn.
        graph = make_fx(of_tensors, tracing_mode="fake", _allow_non_fake_inputs=True)(
            *tensors
        )
        _simplify(graph)
        return (_compile_graph if jit_compile else _call_python_functions)(
            graph, tensors
        ), structure

    def call(*args):
        if untraceable:
            with torch.no_grad():
                return function(*args)
        key, tensors = [], []
        for arg in args:
            if isinstance(arg, list):
                present = [one for one in arg if one is not None]
                absent = [i for i, one in enumerate(arg) if one is None]
                key += [len(arg), *absent, "absent"]
                tensors += present
            elif arg is None:
                key.append(None)
            else:
                key += [arg.shape, arg.dtype, arg.device]
                tensors.append(arg)
        key = tuple(key)
        if key not in graphs:
            try:
                graphs[key] = trace(args, tensors)
            except Exception as error:
                untraceable.append(error)
                warnings.warn(
                    "A model runs layer by layer, which is slower: PyTorch cannot "
                    f"trace it. {type(error).__name__}: {error}",
                    stacklevel=2,
                )
                return call(*args)
        graph, (structure, absent) = graphs[key]
        with torch.no_grad() if jit_compile else torch.inference_mode():
            results = iter(graph(*tensors))
        return pytree.tree_unflatten(
            [None if one else next(results) for one in absent], structure
        )

    return call


def optimization_barrier(x: Any) -> Any:
    """The tensor: PyTorch computes it once. See `keras_imm.backend.jax`."""
    return x


def _simplify(module: Any) -> None:
    """Takes out of a traced module what no result needs, and adds biases in products.

    Keras's Dense multiplies and then adds; PyTorch does both in one pass over memory.
    """
    aten = torch.ops.aten
    views = (aten.view.default, aten._unsafe_view.default)
    for node in module.graph.nodes:
        if node.target is aten.detach.default:
            node.replace_all_uses_with(node.args[0])
        if node.target is not aten.add.Tensor or node.kwargs:
            continue
        output, bias = node.args
        view = output if getattr(output, "target", None) in views else None
        product = view.args[0] if view else output
        if not (
            getattr(product, "target", None) is aten.mm.default
            and len(product.users) == len(output.users) == 1
            and _is_bias(bias, product)
            and _shape(node) == _shape(output)
            and _shape(output)[-1] == _shape(product)[-1]
        ):
            continue
        with module.graph.inserting_before(node):
            fused = module.graph.call_function(
                aten.addmm.default, (bias, *product.args)
            )
            if view:
                arguments = (fused, view.args[1])
                fused = module.graph.call_function(aten.view.default, arguments)
        node.replace_all_uses_with(fused)
    attention = aten._scaled_dot_product_flash_attention_for_cpu.default
    backward = aten._scaled_dot_product_flash_attention_for_cpu_backward.default
    for node in module.graph.nodes:
        # Keras has queries, keys and values copied, which this kernel does not need.
        if node.target is aten.clone.default and all(
            user.target in (attention, backward) for user in node.users
        ):
            node.replace_all_uses_with(node.args[0])
    module.graph.eliminate_dead_code()
    module.recompile()


def _compile_graph(module: Any, tensors: list) -> Callable:
    """What `torch.compile` ends in, without its checks before every call."""
    from torch._inductor import compile as compile_graph

    try:
        return compile_graph(module, tensors)
    except Exception as error:
        warnings.warn(
            "PyTorch could not compile a graph, which runs as it was traced. "
            f"{type(error).__name__}: {str(error)[:1000]}",
            stacklevel=2,
        )
        return module


def _call_python_functions(module: Any, tensors: list) -> Callable:
    """Has a graph call PyTorch's own functions, not ATen's handles.

    They take about 0.7 us less a call to parse their arguments, which tells where
    tensors are small.
    """
    aten = torch.ops.aten
    functions = {
        aten.add.Tensor: torch.add,
        aten.addmm.default: torch.addmm,
        aten.clone.default: torch.clone,
        aten.div.Tensor: torch.div,
        aten.mm.default: torch.mm,
        aten.mul.Tensor: torch.mul,
        aten.native_layer_norm.default: torch.native_layer_norm,
        aten.sub.Tensor: torch.sub,
        aten.sum.dim_IntList: torch.sum,
        aten.t.default: torch.t,
        aten.transpose.int: torch.transpose,
        aten.unsqueeze.default: torch.unsqueeze,
    }
    for node in module.graph.nodes:
        if node.target in functions:
            node.target = functions[node.target]
        elif node.target in (aten.view.default, aten._unsafe_view.default):
            node.op, node.target = "call_method", "view"
    module.recompile()
    return module


def _shape(node: Any) -> tuple | None:
    value = node.meta.get("val")
    return None if value is None else tuple(value.shape)


def _is_bias(node: Any, product: Any) -> bool:
    """Whether a node of a graph is a vector that fits the rows of a product."""
    vector, matrix = (getattr(n, "meta", {}).get("val") for n in (node, product))
    if vector is None or matrix is None:
        return False
    return vector.shape == matrix.shape[1:] and vector.dtype == matrix.dtype
