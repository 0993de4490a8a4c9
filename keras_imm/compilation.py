"""Compiling a pure function of tensors on each backend."""

from collections.abc import Callable

import keras


def compile_function(function: Callable, jit_compile: bool = False) -> Callable:
    """Compiles a function whose result depends on its tensor arguments alone.

    The compiled function is traced once for each set of shapes and dtypes: a new
    value of an argument costs nothing.

    Args:
        function: Function of positional arguments: tensors, None, or lists of
            tensors. It returns a tensor.
        jit_compile: Whether TensorFlow compiles through XLA and PyTorch through
            `torch.compile`. JAX always compiles through XLA.

    Returns:
        The compiled function. It keeps no gradient: `jax.jit` under JAX,
        `tf.function` under TensorFlow, and under PyTorch a graph of ATen operations.
    """
    return {
        "jax": _compile_jax,
        "tensorflow": _compile_tensorflow,
        "torch": _compile_torch,
    }[keras.backend.backend()](function, jit_compile)


def _compile_jax(function: Callable, jit_compile: bool) -> Callable:
    import jax

    return jax.jit(function)


def _compile_tensorflow(function: Callable, jit_compile: bool) -> Callable:
    import tensorflow as tf

    compiled = tf.function(
        function, jit_compile=jit_compile, reduce_retracing=True, autograph=False
    )

    def copy_of_one_device(argument):
        # Or the function would keep the variable that it was traced with.
        if isinstance(argument, tf.distribute.DistributedValues):
            return argument.values[0]
        return argument

    return lambda *args: compiled(*tf.nest.map_structure(copy_of_one_device, args))


def _compile_torch(function: Callable, jit_compile: bool) -> Callable:
    import torch
    from torch.fx.experimental.proxy_tensor import make_fx
    from torch.utils import _pytree as pytree

    graphs = {}

    @torch.no_grad()
    def compiled(*args):
        leaves, structure = pytree.tree_flatten(args)
        present = [i for i, leaf in enumerate(leaves) if leaf is not None]
        tensors = [leaves[i] for i in present]
        signature = tuple((x.shape, x.dtype, x.device) for x in tensors)
        key = (structure, tuple(present), signature)
        if key not in graphs:

            def of_tensors(tensors):
                full = [None] * len(leaves)
                for i, tensor in zip(present, tensors, strict=True):
                    full[i] = tensor
                return function(*pytree.tree_unflatten(full, structure))

            graph = make_fx(of_tensors)(tensors)
            graphs[key] = torch.compile(graph) if jit_compile else graph
        return graphs[key](tensors)

    return compiled
