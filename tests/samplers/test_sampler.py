"""The contract, for samplers that are defined outside of the package."""

import keras
import numpy as np
import pytest
from contracts.sampler import SamplerContract
from keras import ops

from keras_imm import samplers
from keras_imm.samplers.sampler import checked_noises


@keras.saving.register_keras_serializable(package="tests.samplers")
class RestartAbove(samplers.Sampler):
    """Restarts down to a time, and jumps from there on."""

    def __init__(self, time=0.5):
        self.time = time

    def step(self, network, x, t, s, index, noise):
        data = network.flow_map(x, t, network.min_time)
        jumped = network.flow_map(x, t, s)
        if noise is None:
            return jumped
        schedule = network.schedule
        renoised = schedule.alpha(s) * data + schedule.sigma(s) * noise
        return ops.where(s >= self.time, renoised, jumped)

    evaluations_per_step = 2

    def noises(self, num_steps):
        return num_steps - 1

    def get_config(self):
        return {"time": self.time}


@keras.saving.register_keras_serializable(package="tests.samplers")
class Midpoint(samplers.Sampler):
    """The midpoint rule."""

    evaluations_per_step = 2

    def step(self, network, x, t, s, index, noise):
        half = x + 0.5 * (s - t) * network.velocity(x, t)
        return x + (s - t) * network.velocity(half, 0.5 * (s + t))


class TestRestartAbove(SamplerContract):
    std_tolerance = 0.03

    @staticmethod
    def make():
        return RestartAbove(time=0.25)


class TestMidpoint(SamplerContract):
    make = Midpoint


@keras.saving.register_keras_serializable(package="tests.samplers")
class Noises(samplers.Sampler):
    """Takes as many draws as it is told, and adds them up."""

    def __init__(self, count):
        self.count = count

    def step(self, network, x, t, s, index, noise):
        # After the last draw, anything.
        return x if noise is None else ops.where(index < self.count, x + noise, x)

    def noises(self, num_steps):
        return self.count


def test_a_sampler_must_say_how_to_step(make_model):
    with pytest.raises(NotImplementedError, match="Sampler does not implement `step`"):
        make_model().generate(sampler=samplers.Sampler())


@pytest.mark.parametrize("count", [0, 3, 5])
def test_as_many_draws_as_noises(make_model, count):
    """Each step that takes noise is handed the draw of its index."""
    draws = samplers.standard_noise(1, 1 + count, 4, (4, 4, 1))
    for options in ({}, {"run_eagerly": True}):
        found = make_model(options).generate(
            noise=draws, num_steps=5, sampler=Noises(count), num_samples=4
        )
        np.testing.assert_allclose(found, 0.5 * draws.sum(0), atol=1e-5)


@pytest.mark.parametrize("count", [4, -1, 1.5, None, True])
def test_draws_are_at_most_as_many_as_steps(make_model, count):
    with pytest.raises(ValueError, match=r"`?[Nn]oises.*[Rr]eceived") as error:
        checked_noises(Noises(count), 3)
    assert str(count) in str(error.value) and "Noises" in str(error.value)
    with pytest.raises(ValueError, match="noises"):
        make_model().generate(num_steps=3, sampler=Noises(count))
    assert checked_noises(Noises(3), 3) == 3
