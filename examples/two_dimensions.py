"""The data and the network of examples/checkerboard.py."""

import keras
import numpy as np
from keras import ops

SCALE = 0.75**0.5


def checkerboard(rng, count):
    """Points on the dark squares of a 4 x 4 board, of standard deviation 0.5."""
    column = rng.integers(4, size=count)
    row = 2 * rng.integers(2, size=count) + column % 2
    points = np.stack([column, row], axis=1) + rng.random((count, 2))
    return ((points / 2 - 1) * SCALE).astype("float32")


class Batches(keras.utils.PyDataset):
    """Fresh points in every batch."""

    def __init__(self, batch_size, steps, seed):
        super().__init__()
        self.batch_size = batch_size
        self.steps = steps
        self.seed = seed

    def __len__(self):
        return self.steps

    def __getitem__(self, step):
        rng = np.random.default_rng([self.seed, step])
        return checkerboard(rng, self.batch_size)


class Waves(keras.layers.Layer):
    """Adds sines and cosines of its inputs, for what changes over short distances."""

    def __init__(self, frequencies, **kwargs):
        super().__init__(**kwargs)
        self.frequencies = tuple(frequencies)

    def call(self, inputs):
        angles = [frequency * inputs for frequency in self.frequencies]
        waves = [wave(a) for a in angles for wave in (ops.sin, ops.cos)]
        return ops.concatenate([inputs, *waves], axis=-1)

    def get_config(self):
        return {**super().get_config(), "frequencies": self.frequencies}


def build_backbone(width=128, depth=3):
    """A perceptron of `depth` hidden layers that sees the times beside the point."""
    x = keras.Input((2,), name="x")
    c_t = keras.Input((), name="c_t")
    c_s = keras.Input((), name="c_s")
    column = keras.layers.Reshape((1,))
    times = keras.layers.Concatenate()([column(c_t), column(c_s)])
    h = keras.layers.Concatenate()([Waves((1, 2, 4, 8))(x), Waves((1, 2))(times)])
    h = keras.layers.Dense(width, activation="silu")(h)
    for _ in range(depth - 1):
        h = keras.layers.Add()([h, keras.layers.Dense(width, "silu")(h)])
    return keras.Model([x, c_t, c_s], keras.layers.Dense(2)(h))
