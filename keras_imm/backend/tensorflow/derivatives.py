"""Derivatives in a direction under TensorFlow."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import tensorflow as tf

_moments = tf.nn.moments


def jvp(function: Callable, primals: tuple, tangents: tuple) -> tuple[Any, Any]:
    """Value and derivative in a direction: see `keras_imm.backend.jax`."""
    primals, tangents = list(primals), list(tangents)
    with (
        _differentiable_moments(),
        tf.autodiff.ForwardAccumulator(primals, tangents) as accumulator,
    ):
        value = function(*primals)
        # Asked for while the value is in reach: it would be None afterwards.
        derivative = accumulator.jvp(value, tf.UnconnectedGradients.ZERO)
    return value, derivative


@contextlib.contextmanager
def _differentiable_moments() -> Iterator[None]:
    """Inside, variances are differentiated with their means.

    `tf.nn.moments`, by which Keras normalizes, takes the mean in the variance for a
    constant. The first derivative is right all the same; the derivative of the
    derivative would be wrong without an error.
    """
    tf.nn.moments = _plain_moments
    try:
        yield
    finally:
        tf.nn.moments = _moments


def _plain_moments(
    x: Any,
    axes: Any,
    shift: Any = None,
    keepdims: bool = False,
    name: str | None = None,
) -> tuple[Any, Any]:
    """As `tf.nn.moments`; half precision is widened inside."""
    wide = tf.cast(x, tf.float32) if x.dtype in (tf.float16, tf.bfloat16) else x
    mean = tf.reduce_mean(wide, axes, keepdims=True)
    variance = tf.reduce_mean(tf.square(wide - mean), axes, keepdims=keepdims)
    if not keepdims:
        mean = tf.squeeze(mean, axes)
    return tf.cast(mean, x.dtype), tf.cast(variance, x.dtype)
