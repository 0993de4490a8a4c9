"""The few things the tests do differently on each backend."""

import keras
import numpy as np
import pytest
from keras import ops

# The float types a backend computes in, as parameters of a test.
FLOATS = [
    "float32",
    pytest.param(
        "float64",
        marks=pytest.mark.skipif(
            keras.backend.backend() == "jax",
            reason="JAX has no float64 unless jax_enable_x64 is set",
        ),
    ),
]


def dtype_of(x) -> str:
    return keras.backend.standardize_dtype(x.dtype)


def computed(function):
    """What a function without arguments returns.

    Under JAX it is compiled as a whole, which takes less time than to compile each of
    its operations.
    """
    if keras.backend.backend() != "jax":
        return function()
    import jax

    def pure():
        with keras.StatelessScope():
            return function()

    return jax.jit(pure)()


def value_and_gradient(function, x):
    """A scalar function's value and gradient at the NumPy array x, as NumPy."""
    x = ops.convert_to_tensor(x)
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape() as tape:
            tape.watch(x)
            value = function(x)
        gradient = tape.gradient(value, x)
    elif keras.backend.backend() == "jax":
        import jax

        value, gradient = jax.jit(jax.value_and_grad(function))(x)
    else:
        x = x.detach().clone().requires_grad_()
        value = function(x)
        value.backward()
        gradient = x.grad
    return np.asarray(ops.convert_to_numpy(value)), ops.convert_to_numpy(gradient)
