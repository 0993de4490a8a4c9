"""What every sampler must do."""

import keras
import numpy as np
import pytest
from backends import FLOATS, dtype_of
from gaussian_flow import SIGMA_DATA, gaussian_model
from keras import ops

from contracts.serializable import SerializableContract
from keras_imm import samplers
from keras_imm.flow_map import Network
from keras_imm.samplers.sampler import checked_noises

STEPS = (1, 2, 5, 16)


def standard_noise(draws, count=3, seed=0):
    return samplers.standard_noise(seed, draws, count, (2, 2, 1))


class SamplerContract(SerializableContract):
    """`make()` returns a `keras_imm.samplers.Sampler`.

    Attributes:
        std_tolerance: Of the standard deviation of samples in 64 steps of exact flow
            maps and velocities of Gaussian data, relative.
    """

    std_tolerance = 0.02

    @pytest.fixture
    def sampler(self, instance):
        assert isinstance(instance, samplers.Sampler)
        return instance

    def walked(self, sampler, noise, num_steps, dtype="float32"):
        """Samples by a loop over `step`, one call after the other."""
        model = gaussian_model()
        network = Network(model.flow)
        noise = [
            ops.convert_to_tensor((SIGMA_DATA * each).astype(dtype)) for each in noise
        ]
        times = samplers.uniform_grid(num_steps, 0.0, 1.0).astype(dtype)

        def step(*state):
            return sampler.step(network, *state)

        def noise_at(i):
            return noise[1:][min(i, len(noise) - 2)] if len(noise) > 1 else None

        return samplers.walk(step, noise[0], times, noise_at)

    @pytest.mark.parametrize("dtype", FLOATS)
    @pytest.mark.parametrize("num_steps", [1, 3])
    def test_shape_and_dtype_are_kept(self, sampler, num_steps, dtype):
        noise = standard_noise(1 + sampler.noises(num_steps))
        x = self.walked(sampler, noise, num_steps, dtype)
        assert tuple(x.shape) == (3, 2, 2, 1)
        assert dtype_of(x) == dtype

    def test_one_step_goes_from_noise_to_data(self, sampler):
        """Whatever the sampler, all that is left of the noise is data."""
        noise = standard_noise(1 + sampler.noises(1))
        x = ops.convert_to_numpy(self.walked(sampler, noise, 1))
        assert np.all(np.isfinite(x))
        assert np.any(np.abs(x - SIGMA_DATA * noise[0]) > 1e-2)

    @pytest.mark.parametrize("num_steps", [*range(1, 20), 1000])
    def test_noises_are_a_number_of_draws(self, sampler, num_steps):
        assert 0 <= checked_noises(sampler, num_steps) <= num_steps

    def test_evaluations_are_counted(self, sampler):
        model = gaussian_model()
        model.compile("sgd", run_eagerly=True)
        calls, call = [], model.backbone.call

        def counted(inputs, **kwargs):
            calls.append(0)
            return call(inputs, **kwargs)

        model.backbone.call = counted
        model.generate(num_steps=3, sampler=sampler, verbose=0)
        assert len(calls) == 3 * sampler.evaluations_per_step

    def test_many_steps_make_the_data(self, sampler):
        """Gaussian data, of which flow map and velocity are exact."""
        num_steps = 64
        images = gaussian_model().generate(
            num_steps=num_steps,
            sampler=sampler,
            noise=standard_noise(1 + sampler.noises(num_steps), count=2000),
            batch_size=2000,
            verbose=0,
        )
        # Of 8000 numbers the deviation is known to 0.8%.
        np.testing.assert_allclose(images.std(), 1.25, rtol=self.std_tolerance)

    @pytest.mark.parametrize("num_steps", STEPS)
    def test_generate_is_the_walk_compiled_and_eagerly(self, sampler, num_steps):
        noise = standard_noise(1 + sampler.noises(num_steps))
        expected = ops.convert_to_numpy(self.walked(sampler, noise, num_steps))
        if len(noise) == 1:
            noise = noise[0]
        for options in ({}, {"run_eagerly": True}):
            model = gaussian_model()
            model.compile("sgd", **options)
            found = model.generate(
                num_steps=num_steps, sampler=sampler, noise=noise, verbose=0
            )
            np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize("options", [{}, {"run_eagerly": True}])
    def test_a_seed_repeats_its_samples(self, sampler, options):
        model = gaussian_model()
        model.compile("sgd", **options)
        request = {"num_samples": 2, "num_steps": 3, "sampler": sampler, "verbose": 0}
        first, again, other = (model.generate(seed=s, **request) for s in (1, 1, 2))
        np.testing.assert_array_equal(first, again)
        assert np.all(first != other)

    @pytest.mark.skipif(
        keras.backend.backend() != "tensorflow",
        reason="other backends export in a process of its own, which takes seconds",
    )
    def test_it_can_be_exported(self, sampler, tmp_path):
        import tensorflow as tf

        from keras_imm.serving import export_saved_model

        model = gaussian_model()
        path = export_saved_model(
            model,
            tmp_path,
            (1, 3),
            sampler=sampler,
            default_num_steps=3,
            value_range=(-3.0, 3.0),
            warmup=False,
        )
        served = tf.saved_model.load(str(path)).signatures
        images = served["generate_3_steps"](seed=tf.constant([5, 5, 6], tf.int64))
        images = images["image"].numpy().astype(int)
        assert np.all(images[0] == images[1]) and np.any(images[0] != images[2])
        takes_noise_once = sampler.noises(3) == 0
        assert ("generate_from_noise" in served) == takes_noise_once
        if takes_noise_once:
            noise = standard_noise(1)[0]
            found = served["generate_from_noise"](noise=tf.constant(noise))["image"]
            expected = model.generate(
                noise=noise, num_steps=3, sampler=sampler, verbose=0
            )
            np.testing.assert_allclose(found, expected, atol=1e-5)
