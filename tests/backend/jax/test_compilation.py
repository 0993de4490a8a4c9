"""What JAX's compiler sees of a barrier."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_imm import backend

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "jax", reason="a barrier is the identity elsewhere"
)


def function(x):
    y = backend.optimization_barrier(ops.square(x))
    return ops.sum(y * y + y)


def test_a_barrier_is_differentiated_through():
    import jax

    x = np.arange(4.0, dtype="float32")
    np.testing.assert_allclose(jax.grad(function)(x), 4 * x**3 + 2 * x)


def test_a_barrier_is_kept_on_a_cpu_alone():
    import jax

    x = np.arange(4.0, dtype="float32")
    lowered = jax.jit(function).lower(x).as_text()
    on_cpu = jax.default_backend() == "cpu"
    assert ("optimization_barrier" in lowered) == on_cpu
