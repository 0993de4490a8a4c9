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


def test_a_barrier_is_differentiated_forwards_and_in_batches():
    import jax

    x = np.arange(4.0, dtype="float32")
    _, derivative = jax.jit(lambda x: jax.jvp(function, (x,), (x,)))(x)
    np.testing.assert_allclose(derivative, np.sum((4 * x**3 + 2 * x) * x))
    second = jax.jit(jax.vmap(jax.grad(jax.grad(function))))(x)
    np.testing.assert_allclose(second, 12 * x**2 + 2)


@pytest.mark.parametrize("platform", ["cpu", "cuda", "rocm", "tpu"])
def test_a_barrier_is_kept_in_programs_for_cpus_alone(platform):
    import jax

    x = np.arange(4.0, dtype="float32")
    for differentiated, barriers in ((function, 1), (jax.grad(function), 2)):
        program = jax.jit(differentiated).trace(x).lower(lowering_platforms=(platform,))
        text = program.as_text()
        expected = barriers if platform == "cpu" else 0
        assert text.count("optimization_barrier") == expected
        assert "stablehlo.case" not in text
