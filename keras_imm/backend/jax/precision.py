"""How JAX multiplies float32."""

from contextlib import AbstractContextManager

import jax


def full_precision() -> AbstractContextManager:
    """Inside, float32 products and convolutions are computed in full float32.

    The precision is part of the program: a function keeps the one that it was traced
    with, and `jax.jit` traces again where it is called with another. Only this thread
    is concerned.

    Returns:
        A context manager.
    """
    return jax.default_matmul_precision("highest")


def multiplies_in_tf32() -> bool:
    """Whether factors of float32 products are rounded to TensorFloat-32."""
    precision = jax.config.jax_default_matmul_precision
    return precision in (None, "default", "fastest", "tensorfloat32")
