"""Streams that devices draw from, each its own."""

import keras
import numpy as np
import pytest
from keras import ops
from keras_imm.seeds import random_states, streams_of_device

pytestmark = pytest.mark.skipif(
    keras.backend.backend() == "jax",
    reason="JAX draws once for all devices, and splits what it drew",
)


def draws(layer, device, count=2):
    with streams_of_device(layer, device):
        return [
            ops.convert_to_numpy(keras.random.normal((64,), seed=layer.seed_generator))
            for _ in range(count)
        ]


def make():
    return keras.layers.Dropout(0.5, seed=11)


def test_the_first_device_draws_what_one_device_alone_does():
    alone = make()
    expected = [
        ops.convert_to_numpy(keras.random.normal((64,), seed=alone.seed_generator))
        for _ in range(2)
    ]
    np.testing.assert_array_equal(draws(make(), 0), expected)


def test_devices_draw_apart():
    drawn = np.concatenate([draws(make(), device) for device in range(8)])
    correlation = np.corrcoef(drawn) - np.eye(16)
    assert np.abs(correlation).max() < 0.5


def test_states_end_the_same_on_every_device():
    states = []
    for device in (0, 1, 5):
        layer = make()
        draws(layer, device)
        (state,) = random_states(layer)
        states.append(ops.convert_to_numpy(state).tolist())
    assert states == [[11, 2]] * 3


def test_a_step_that_fails_leaves_the_seed_as_it_was():
    layer = make()
    try:
        with streams_of_device(layer, 3):
            raise KeyboardInterrupt
    except KeyboardInterrupt:
        pass
    assert ops.convert_to_numpy(random_states(layer)[0]).tolist() == [11, 0]
