"""Initial values of many variables by few compiled programs.

XLA compiles a program for every shape of zeros and of random values, and most of what
it compiles for the latter is the generator of random bits. Here NumPy makes the bits.
"""

import contextlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import keras
import numpy as np
from keras import initializers

from keras_imm.backend import keras_private

_SMALL = 2**16  # elements up to which a compilation takes longer than NumPy
_ROW = 1024
_ROTATIONS = (13, 15, 26, 6), (17, 29, 16, 24)


def initial_values_together() -> contextlib.AbstractContextManager:
    """Variables that are made inside are given their values at the end.

    The values are, bit for bit, those that each initializer gives alone. Nothing inside
    may read or assign the variables.
    """
    if keras.distribution.distribution() is not None:  # values are made in shards
        return contextlib.nullcontext()
    return keras_private.initialized_at_the_end(_given_values)


def _given_values(wanted: list[tuple[Callable, tuple, str]]) -> list[Callable]:
    """For each initializer, shape and dtype: itself, or one that has its value."""
    values, uniform, normal = {}, {}, {}
    for index, (initializer, shape, dtype) in enumerate(wanted):
        call = type(initializer).__call__
        if np.prod(shape, dtype=int) > _SMALL:
            continue
        if call is initializers.Zeros.__call__:
            values[index] = np.zeros(shape, dtype)
        elif call is initializers.Ones.__call__:
            values[index] = np.ones(shape, dtype)
        elif dtype != "float32" or not _draws_are_known(initializer):
            continue
        elif call is initializers.RandomNormal.__call__:
            normal[index] = initializer.mean, initializer.stddev
        elif call is initializers.RandomUniform.__call__:
            uniform[index] = initializer.minval, initializer.maxval
        elif keras_private.scales_uniform(initializer):
            limit = keras_private.uniform_limit(initializer, shape)
            uniform[index] = -limit, limit

    def bits(index):
        initializer, shape, _ = wanted[index]
        return _random_bits(initializer.seed, np.prod(shape, dtype=int))

    with jax.ensure_compile_time_eval():  # also where a function is traced
        for index, drawn in _drawn(_uniform, bits, uniform).items():
            values[index] = drawn.reshape(wanted[index][1])
        for index, drawn in _drawn(_normal, bits, dict.fromkeys(normal, ())).items():
            mean, stddev = map(np.float32, normal[index])
            values[index] = drawn.reshape(wanted[index][1]) * stddev + mean
        # A step that donates its state must own it.
        values = jax.device_put(values, may_alias=False)
    return [
        (lambda *_, value=values[index], **__: value) if index in values else one
        for index, (one, _, _) in enumerate(wanted)
    ]


def _draws_are_known(initializer: Any) -> bool:
    """Whether `_random_bits` are those that the initializer would take."""
    seed = getattr(initializer, "seed", None)
    return (
        isinstance(seed, int)
        and 0 <= seed < 2**32
        and jax.config.jax_default_prng_impl == "threefry2x32"
        and jax.config.jax_threefry_partitionable
    )


def _random_bits(seed: int, size: int) -> np.ndarray:
    """`jax.random.bits` of the key (seed, 0): Threefry-2x32 of 0 to size - 1.

    Reference:
        - Salmon et al., 2011, "Parallel random numbers: as easy as 1, 2, 3"
    """
    keys = np.array([seed, 0, seed ^ 0x1BD11BDA], "uint32")
    first = np.full(size, keys[0])
    second = np.arange(size, dtype="uint32") + keys[1]
    for i in range(5):
        for rotation in _ROTATIONS[i % 2]:
            first += second
            second = (second << rotation) | (second >> (32 - rotation))
            second ^= first
        first += keys[(i + 1) % 3]
        second += keys[(i + 2) % 3]
        second += np.uint32(i + 1)
    return first ^ second


def _drawn(draw: Callable, bits: Callable, arguments: dict) -> dict:
    """Draws of all variables by one call: from their index to flat values.

    Args:
        draw: Function of rows of bits and of one argument per row each.
        bits: From index to bits.
        arguments: From index to the arguments.
    """
    if not arguments:
        return {}
    given = {index: bits(index) for index in arguments}
    rows = {index: -(-len(own) // _ROW) for index, own in given.items()}
    padded = np.zeros((sum(rows.values()), _ROW), "uint32")
    columns = np.repeat(
        np.array(list(arguments.values()), "float32"), list(rows.values()), axis=0
    )
    start, places = 0, {}
    for index, own in given.items():
        places[index] = slice(start, start + rows[index])
        padded[places[index]].reshape(-1)[: len(own)] = own
        start += rows[index]
    drawn = np.asarray(draw(padded, *columns.T[..., None]))
    return {
        index: drawn[places[index]].reshape(-1)[: len(own)]
        for index, own in given.items()
    }


@jax.jit
def _uniform(bits: Any, low: Any, high: Any) -> Any:
    """As `jax.random.uniform` makes numbers of bits."""
    mantissas = (bits >> np.uint32(9)) | np.uint32(0x3F800000)
    floats = jax.lax.bitcast_convert_type(mantissas, np.float32) - np.float32(1)
    return jnp.maximum(low, floats * (high - low) + low)


@jax.jit
def _normal(bits: Any) -> Any:
    """As `jax.random.normal` makes numbers of bits."""
    low = np.nextafter(np.float32(-1), np.float32(0))
    uniform = _uniform(bits, low, np.float32(1))
    return np.float32(np.sqrt(2)) * jax.lax.erf_inv(uniform)
