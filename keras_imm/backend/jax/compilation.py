"""Compiled functions and derivatives under JAX."""

from collections.abc import Callable
from typing import Any

import jax

compiles_loops = True  # `keras.ops.fori_loop` inside a compiled function is one loop


def compile_function(function: Callable, jit_compile: bool = False) -> Callable:
    """`jax.jit`: see the same function of `keras_imm.backend.torch`."""
    return jax.jit(function)


def optimization_barrier(x: Any) -> Any:
    """Has a tensor with several uses computed once, and kept.

    XLA's compiler for CPUs under JAX puts a chain of sums into every loop that reads
    its end, and so computes the residual stream of a transformer from its beginning in
    each layer, forwards and backwards. Elsewhere nothing is changed.

    Args:
        x: A tensor.

    Returns:
        The same tensor.
    """
    if not isinstance(x, jax.core.Tracer) or jax.default_backend() != "cpu":
        return x
    return jax.lax.optimization_barrier(x)


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
