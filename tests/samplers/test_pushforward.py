"""Algorithm 4 step by step."""

import numpy as np
from contracts.sampler import SamplerContract
from keras import ops
from recorded_network import TIMES, RecordedNetwork, noise

from keras_imm import samplers


class TestPushforward(SamplerContract):
    make = samplers.Pushforward


def walk(network, x, times=TIMES):
    def step(*state):
        return samplers.Pushforward().step(network, *state)

    times = np.asarray(times, "float32")
    return samplers.walk(step, ops.convert_to_tensor(x), times, lambda i: None)


def test_each_step_starts_where_and_when_the_last_one_ended():
    network, x = RecordedNetwork(), noise()
    samples = walk(network, x)
    np.testing.assert_allclose(
        network.steps, [(0.9, 0.6), (0.6, 0.3), (0.3, 0.1)], rtol=1e-6
    )
    for step, (t, s) in enumerate(network.steps):
        np.testing.assert_allclose(network.inputs[step], x, rtol=1e-6)
        x = 2 * x + np.float32(t - s)
    np.testing.assert_allclose(ops.convert_to_numpy(samples), x, rtol=1e-6)


def test_one_step_is_one_flow_map():
    network = RecordedNetwork()
    walk(network, noise(), (0.9, 0.1))
    np.testing.assert_allclose(network.steps, [(0.9, 0.1)], rtol=1e-6)


def test_steps_of_an_exact_flow_map_are_one_jump():
    from gaussian_flow import flow, gaussian_model

    x = samplers.standard_noise(0, 1, 50, (2, 2, 1))[0]
    expected = flow("flow_matching", 0.5 * x, 1.0, 0.0, data_std=1.25)
    for num_steps in (1, 4, 20):
        found = gaussian_model().generate(
            noise=x, num_steps=num_steps, sampler="pushforward", verbose=0
        )
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
