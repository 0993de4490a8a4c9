"""Compiled functions under TensorFlow."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
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


def as_argument(array: Any) -> Any:
    """The array. See `keras_imm.backend.torch`."""
    return array


def known_value(x: Any) -> np.ndarray | None:
    """What a tensor holds, or None. See `keras_imm.backend.torch`."""
    if isinstance(x, (tf.Tensor, tf.Variable, tf.distribute.DistributedValues)):
        return x.numpy() if isinstance(x, tf.__internal__.EagerTensor) else None
    return None if x is None or keras.utils.is_keras_tensor(x) else np.asarray(x)


def optimization_barrier(x: Any) -> Any:
    """The tensor: TensorFlow computes it once. See `keras_imm.backend.jax`."""
    return x
