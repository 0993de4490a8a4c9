"""Compiled functions and derivatives under TensorFlow."""

from collections.abc import Callable
from typing import Any

import tensorflow as tf

compiles_loops = True


def compile_function(function: Callable, jit_compile: bool = False) -> Callable:
    """`tf.function`: see the same function of `keras_imm.backend.torch`."""
    compiled = tf.function(
        function, jit_compile=jit_compile, reduce_retracing=True, autograph=False
    )

    def copy_of_one_device(argument):
        # Or the function would keep the variable that it was traced with.
        if isinstance(argument, tf.distribute.DistributedValues):
            return argument.values[0]
        return argument

    return lambda *args: compiled(*tf.nest.map_structure(copy_of_one_device, args))


def optimization_barrier(x: Any) -> Any:
    """The tensor: TensorFlow computes it once. See `keras_imm.backend.jax`."""
    return x


def jvp(function: Callable, primals: tuple, tangents: tuple) -> tuple[Any, Any]:
    """Value and derivative in a direction: see `keras_imm.backend.jax`."""
    with tf.autodiff.ForwardAccumulator(list(primals), list(tangents)) as accumulator:
        value = function(*primals)
        # Asked for while the value is in reach: it would be None afterwards.
        derivative = accumulator.jvp(value, tf.UnconnectedGradients.ZERO)
    return value, derivative
