"""Algorithm 5 step by step, and against walks in NumPy."""

import numpy as np
import pytest
import reference
from contracts.sampler import SamplerContract
from keras import ops
from recorded_network import TIMES, RecordedNetwork, noise

from keras_imm import samplers

SCHEDULES = ("flow_matching", "cosine")


class TestRestart(SamplerContract):
    make = samplers.Restart
    std_tolerance = 0.03  # of fresh noise alone


def walk(network, x, noise_at, times=TIMES):
    def step(*state):
        return samplers.Restart().step(network, *state)

    times = np.asarray(times, "float32")
    return samplers.walk(step, ops.convert_to_tensor(x), times, noise_at)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_step_goes_to_epsilon_and_all_but_the_last_are_renoised(schedule):
    network, x = RecordedNetwork(schedule), noise()
    # After the last draw, anything.
    draws = [noise(10), noise(11), np.full((5, 3), np.nan, "float32")]
    samples = walk(network, x, lambda i: ops.convert_to_tensor(draws[i]))
    np.testing.assert_allclose(
        network.steps, [(0.9, 0.1), (0.6, 0.1), (0.3, 0.1)], rtol=1e-6
    )
    for i, t in enumerate(TIMES[:-1]):
        np.testing.assert_allclose(network.inputs[i], x, rtol=1e-5, atol=1e-6)
        x = 2 * x + (t - 0.1)
        if i < 2:
            next_time = TIMES[i + 1]
            a, b = (f(schedule, next_time) for f in (reference.alpha, reference.sigma))
            x = a * x + b * draws[i]
    np.testing.assert_allclose(ops.convert_to_numpy(samples), x, rtol=1e-5, atol=1e-6)


def test_one_step_is_one_flow_map_without_noise():
    network = RecordedNetwork("cosine")
    walk(network, noise(), lambda i: None, (0.9, 0.1))
    np.testing.assert_allclose(network.steps, [(0.9, 0.1)], rtol=1e-6)


@pytest.mark.parametrize(("num_steps", "draws"), [(1, 0), (2, 1), (8, 7)])
def test_every_step_but_the_last_takes_noise(num_steps, draws):
    assert samplers.Restart().noises(num_steps) == draws


@pytest.mark.parametrize("guidance_scale", [None, 1.5])
def test_with_all_draws_it_is_a_walk_with_the_flow_map(make_model, guidance_scale):
    """So the same on every backend: NumPy makes the noise and the steps between."""
    model, count = make_model({}), 6
    labels = np.arange(count) % 3
    draws = samplers.standard_noise(4, 4, count, (4, 4, 1))
    times = np.linspace(0.994, 0.0, 5)
    x = 0.5 * draws[0]
    for i, t in enumerate(times[:-1]):
        data = model.flow_map(x, float(t), 0.0, labels, guidance_scale)
        x = ops.convert_to_numpy(data)
        if i < 3:
            s = times[i + 1]
            x = ((1 - s) * x + s * 0.5 * draws[i + 1]).astype("float32")
    request = {
        **{"labels": labels, "num_steps": 4, "sampler": "restart", "noise": draws},
        "guidance_scale": guidance_scale,
    }
    for batch_size in (256, 4):  # the second batch is filled up
        images = model.generate(**request, batch_size=batch_size)
        np.testing.assert_allclose(images, x, rtol=1e-4, atol=1e-4)


def test_noise_is_fresh_in_every_step_and_of_the_prior(make_model):
    """With the outputs at zero, Euler-FM returns its noise."""
    model = make_model()
    for v in model.trainable_variables:
        v.assign(np.zeros(v.shape, "float32"))
    count = 3000
    start = samplers.standard_noise(0, 1, count, (4, 4, 1))[0]
    images = model.generate(
        noise=start, num_steps=3, sampler="restart", batch_size=count, seed=0, verbose=0
    )
    # x_3 = (1 - b) ((1 - a) x_0 + a z_1) + b z_2, all of deviation 1/2 and independent.
    a, b = 0.994 * 2 / 3, 0.994 / 3
    weights = np.array([(1 - b) * (1 - a), (1 - b) * a, b])
    std = 0.5 * np.sqrt(np.sum(weights**2))
    np.testing.assert_allclose(images.std(), std, rtol=0.02)
    rest = images - weights[0] * 0.5 * start
    assert abs(np.corrcoef(rest.ravel(), start.ravel())[0, 1]) < 0.02
    np.testing.assert_allclose(
        rest.std(), 0.5 * np.sqrt(np.sum(weights[1:] ** 2)), rtol=0.02
    )
