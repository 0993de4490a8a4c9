"""Compiled functions and derivatives under JAX."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import keras
import numpy as np

compiles_loops = True  # `keras.ops.fori_loop` inside a compiled function is one loop


def compile_function(function: Callable, jit_compile: bool = False) -> Callable:
    """`jax.jit`: see the same function of `keras_imm.backend.torch`."""
    return jax.jit(function)


def as_argument(array: Any) -> Any:
    """The array. See `keras_imm.backend.torch`."""
    return array


def known_value(x: Any) -> np.ndarray | None:
    """What a tensor holds, or None. See `keras_imm.backend.torch`."""
    if x is None or isinstance(x, jax.core.Tracer) or keras.utils.is_keras_tensor(x):
        return None
    return np.asarray(x) if getattr(x, "is_fully_addressable", True) else None


def optimization_barrier(x: Any) -> Any:
    """Has a tensor with several uses computed once, and kept.

    XLA's compiler for CPUs under JAX puts a chain of sums into every loop that reads
    its end, and so computes the residual stream of a transformer from its beginning in
    each layer, forwards and backwards. Programs for other platforms are the same with
    and without it: the platform that is lowered to is asked, not the one lowered on.

    Args:
        x: A tensor.

    Returns:
        The same tensor.
    """
    return _barrier().bind(x) if isinstance(x, jax.core.Tracer) else x


@functools.cache
def _barrier() -> Any:
    """A barrier for CPUs, the identity elsewhere.

    `jax.lax.platform_dependent` would leave a `case` in the program of every platform.
    """
    from jax.extend.core import Primitive  # not loaded by Keras, as the next
    from jax.interpreters import ad, batching, mlir

    barrier = Primitive("keras_imm_optimization_barrier")
    barrier.def_impl(lambda x: x)
    barrier.def_abstract_eval(lambda x: x)
    ad.deflinear2(barrier, lambda cotangent, _: [barrier.bind(cotangent)])
    batching.defvectorized(barrier)
    on_cpu = mlir.lower_fun(jax.lax.optimization_barrier, multiple_results=False)
    mlir.register_lowering(barrier, on_cpu, platform="cpu")
    mlir.register_lowering(barrier, lambda _, x: [x])
    return barrier


def jvp(function: Callable, primals: tuple, tangents: tuple) -> tuple[Any, Any]:
    """Value and derivative of a function in a direction.

    Args:
        function: Function of tensors that returns a tensor.
        primals: Where.
        tangents: The direction: as many tensors, of the same shapes and dtypes.

    Returns:
        The function's value, and its derivative along the tangents.
    """
    return jax.jvp(function, primals, tangents)
