"""Integer seeds, and the states of the generators that they start."""

from typing import Any

import keras
import numpy as np
from keras import ops


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


def random_states(layer: keras.layers.Layer) -> list[keras.Variable]:
    """States of every random stream in a layer: its own and its sublayers'."""
    return [
        v
        for v in layer.non_trainable_variables
        if v.name.startswith("seed_generator_state")
    ]


def assign_state(state: keras.Variable, value: Any) -> None:
    """Sets a random stream to a state of two integers in [0, 2^31)."""
    state.assign(ops.convert_to_tensor(np.asarray(value), state.dtype))
