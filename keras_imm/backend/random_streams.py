"""Integer seeds, and the states of the generators that they start."""

import contextlib
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
from keras import ops

# Odd, and far from the counters that PyTorch's generators add to the seeds.
_STRIDE = 0x5F356495


def mix_seeds(*seeds: int) -> int:
    """A 31-bit seed that depends on all the given ones.

    Keras's generators under PyTorch add a counter to the seed: without this, seed 0
    at its second draw would be seed 1 at its first.

    Args:
        *seeds: Integers, at least 0.

    Returns:
        An integer in [0, 2^31).
    """
    return int(np.random.SeedSequence(seeds).generate_state(1)[0] >> 1)


def random_states(layer: keras.layers.Layer | None) -> list[keras.Variable]:
    """States of every random stream in a layer: its own and its sublayers'."""
    if layer is None:
        return []
    return [
        v
        for v in layer.non_trainable_variables
        if v.name.startswith("seed_generator_state")
    ]


def draw_normal(shape: tuple, stream: keras.random.SeedGenerator) -> Any:
    """Standard-normal noise, from a stream that moves on.

    Args:
        shape: Shape of the result.
        stream: The stream.

    Returns:
        Tensor of Keras's float dtype.
    """
    return keras.random.normal(shape, seed=stream)


def assign_state(state: keras.Variable, value: Any) -> None:
    """Sets a random stream to a state of two integers in [0, 2^31)."""
    state.assign(ops.convert_to_tensor(np.asarray(value), state.dtype))


@contextlib.contextmanager
def streams_of_device(states: list[keras.Variable], device: Any) -> Iterator[None]:
    """Inside, random streams draw what is this device's alone.

    The states come in and go out the same on all devices. Device 0 draws what one
    device alone would.

    Args:
        states: The streams' states.
        device: Index of the device, an integer or an integer tensor.
    """
    seeds = [state.value[:1] * 1 for state in states]
    for state, seed in zip(states, seeds, strict=True):
        own = ops.cast(seed, "int64") + ops.cast(device, "int64") * _STRIDE
        own = ops.cast(own % 2**31, state.dtype)
        state.assign(ops.concatenate([own, state.value[1:]]))
    try:
        yield
    finally:
        for state, seed in zip(states, seeds, strict=True):
            state.assign(ops.concatenate([seed, state.value[1:]]))
