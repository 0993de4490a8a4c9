"""Seeds that do not run into each other, and streams that devices draw from."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_imm import backend
from keras_imm.backend.random_streams import (
    assign_state,
    mix_seeds,
    random_states,
    streams_of_device,
)

drawn_per_device = pytest.mark.skipif(
    keras.backend.backend() == "jax",
    reason="JAX draws once for all devices, and splits what it drew",
)


def test_mixed_seeds_are_distinct_integers_of_31_bits():
    seeds = [mix_seeds(*pair) for pair in np.ndindex(40, 40)]
    seeds += [mix_seeds(seed) for seed in range(40)]
    # NumPy's seed sequence ignores zeros at the end: (n, 0) is (n,).
    assert len(set(seeds)) == 40 * 40
    assert all(type(seed) is int and 0 <= seed < 2**31 for seed in seeds)
    assert mix_seeds(3, 5) == mix_seeds(3, 5)
    assert len({seed >> 27 for seed in seeds}) == 16  # spread over all of them


def test_neighbouring_seeds_do_not_share_draws():
    """Under PyTorch Keras adds its counter to the seed."""
    drawn = []
    for seed in range(4):
        stream = keras.random.SeedGenerator(mix_seeds(seed))
        for _ in range(4):
            drawn.append(ops.convert_to_numpy(keras.random.normal((64,), seed=stream)))
    correlation = np.corrcoef(drawn) - np.eye(16)
    assert np.abs(correlation).max() < 0.5


def test_random_states_are_those_of_all_sublayers():
    block = keras.Sequential([make(), keras.layers.Dense(2), make()])
    block.build((None, 3))
    states = random_states(block)
    assert [ops.convert_to_numpy(state).tolist() for state in states] == [[11, 0]] * 2
    assert random_states(keras.layers.Dense(2)) == random_states(None) == []


def test_an_assigned_state_draws_the_same_again():
    layer = make()
    (state,) = random_states(layer)
    before = ops.convert_to_numpy(state).copy()
    first = ops.convert_to_numpy(keras.random.normal((8,), seed=layer.seed_generator))
    second = ops.convert_to_numpy(keras.random.normal((8,), seed=layer.seed_generator))
    assert np.abs(first - second).max() > 0.1
    assign_state(state, before.tolist())
    again = ops.convert_to_numpy(keras.random.normal((8,), seed=layer.seed_generator))
    np.testing.assert_array_equal(again, first)


def draws(layer, device, count=2):
    with streams_of_device(random_states(layer), device):
        return [
            ops.convert_to_numpy(keras.random.normal((64,), seed=layer.seed_generator))
            for _ in range(count)
        ]


def make():
    return keras.layers.Dropout(0.5, seed=11)


@drawn_per_device
def test_the_first_device_draws_what_one_device_alone_does():
    alone = make()
    expected = [
        ops.convert_to_numpy(keras.random.normal((64,), seed=alone.seed_generator))
        for _ in range(2)
    ]
    np.testing.assert_array_equal(draws(make(), 0), expected)


@drawn_per_device
def test_devices_draw_apart():
    drawn = np.concatenate([draws(make(), device) for device in range(8)])
    correlation = np.corrcoef(drawn) - np.eye(16)
    assert np.abs(correlation).max() < 0.5


@drawn_per_device
def test_states_end_the_same_on_every_device():
    states = []
    for device in (0, 1, 5):
        layer = make()
        draws(layer, device)
        (state,) = random_states(layer)
        states.append(ops.convert_to_numpy(state).tolist())
    assert states == [[11, 2]] * 3


@drawn_per_device
def test_a_step_that_fails_leaves_the_seed_as_it_was():
    layer = make()
    try:
        with streams_of_device(random_states(layer), 3):
            raise KeyboardInterrupt
    except KeyboardInterrupt:
        pass
    assert ops.convert_to_numpy(random_states(layer)[0]).tolist() == [11, 0]


@pytest.mark.parametrize("shape", [(3,), (5, 8, 8, 1)])
@pytest.mark.parametrize("start", [[7, 0], [2**31 - 2, 5], [3, 2**31 - 3]])
def test_noise_of_a_stream_is_what_keras_draws(shape, start):
    """The same bits, and the stream is where Keras leaves it."""
    own, expected = (keras.random.SeedGenerator(1) for _ in range(2))
    for stream in (own, expected):
        assign_state(stream.state, start)
    for _ in range(2):
        noise = backend.draw_normal(shape, own)
        keras_noise = keras.random.normal(shape, seed=expected)
        assert ops.dtype(noise) == ops.dtype(keras_noise)
        np.testing.assert_array_equal(
            *map(ops.convert_to_numpy, (noise, keras_noise)), strict=True
        )
        np.testing.assert_array_equal(
            *(ops.convert_to_numpy(s.state.value) for s in (own, expected))
        )


def test_a_draw_in_a_stateless_scope_leaves_the_stream_where_it_is():
    stream = keras.random.SeedGenerator(4)
    state = ops.convert_to_tensor([9, 2], stream.state.dtype)
    with keras.StatelessScope(state_mapping=[(stream.state, state)]) as scope:
        noise = backend.draw_normal((6,), stream)
    assert ops.convert_to_numpy(scope.get_current_value(stream.state)).tolist() == [
        9,
        3,
    ]
    assert ops.convert_to_numpy(stream.state.value).tolist() == [4, 0]
    assert ops.convert_to_numpy(state).tolist() == [9, 2]
    assign_state(stream.state, [9, 2])
    expected = keras.random.normal((6,), seed=stream)
    np.testing.assert_array_equal(*map(ops.convert_to_numpy, (noise, expected)))
