"""Compiled steps and loops: as layer by layer, compiled once, on the device alone."""

import keras
import numpy as np
import pytest
from gaussian_flow import SIGMA_DATA, flow, gaussian_model, velocity
from keras import ops

from keras_imm import backend, samplers
from keras_imm.samplers import Generator, SamplingPlan

NAMES = sorted(samplers.SAMPLERS)


def counting(kind):
    """A sampler whose Python is counted: a compiled step runs it to trace only."""

    class Counting(kind):
        calls = []  # noqa: RUF012

        def step(self, network, x, t, s, index, noise):
            self.calls.append(tuple(x.shape))
            return super().step(network, x, t, s, index, noise)

    return Counting()


@pytest.mark.slow("trains or builds for seconds")
@pytest.mark.parametrize("name", NAMES)
def test_one_compilation_serves_1_to_15_steps(make_model, name):
    model, sampler = make_model({}), counting(samplers.SAMPLERS[name])
    request = {"labels": [0, 1, 2], "sampler": sampler, "seed": 0, "verbose": 0}
    for num_steps in (1, 2):  # without noise to draw, and with it
        model.generate(num_steps=num_steps, **request)
    traced = len(sampler.calls)
    assert traced >= 1
    if name != "restart":
        one = counting(samplers.SAMPLERS[name])
        make_model({}).generate(num_steps=1, **request | {"sampler": one})
        assert len(one.calls) == traced
    for num_steps in range(1, 16):
        model.generate(num_steps=num_steps, **request)
    # Nor do other values, weights and objects that are alike.
    other = request | {"labels": [2, 1, 0], "seed": 5, "weights": "raw"}
    model.generate(num_steps=7, time_grid="edm", **other)
    assert len(sampler.calls) == traced
    model.generate(num_steps=3, **request | {"sampler": type(sampler)()})
    assert len(sampler.calls) == traced


@pytest.mark.parametrize("name", NAMES)
def test_new_guidance_compiles_nothing(make_model, name):
    model, sampler = make_model({}), counting(samplers.SAMPLERS[name])
    request = {"labels": [0, 1, 2], "sampler": sampler, "seed": 0, "verbose": 0}
    request["num_steps"] = 3
    model.generate(guidance_scale=1.5, **request)
    traced = len(sampler.calls)
    model.generate(guidance_scale=3.0, **request)
    assert len(sampler.calls) == traced
    model.generate(guidance_scale=3.0, guidance_interval=(0.1, 0.5), **request)
    traced = len(sampler.calls)
    model.generate(guidance_scale=1.0, guidance_interval=(0.2, 0.9), **request)
    assert len(sampler.calls) == traced


class Scaled(samplers.Pushforward):
    def __init__(self, factor):
        self.factor = factor

    def step(self, *state):
        return self.factor * super().step(*state)


class ScaledWithConfig(Scaled):
    def get_config(self):
        return {"factor": self.factor}


@pytest.mark.parametrize("kind", [Scaled, ScaledWithConfig])
def test_samplers_of_other_arguments_are_compiled_anew(make_model, kind):
    """Two objects of a class may differ, whether a config says so or not."""
    model = make_model({})
    plain, doubled = (
        model.generate(num_steps=1, sampler=kind(factor), seed=0)
        for factor in (1.0, 2.0)
    )
    np.testing.assert_allclose(doubled, 2 * plain, rtol=1e-6)


@pytest.mark.skipif(
    keras.backend.backend() != "torch", reason="others keep gradients where asked to"
)
@pytest.mark.parametrize("run_eagerly", [False, True])
def test_no_step_is_kept_for_a_gradient(make_model, run_eagerly):
    model = make_model({"run_eagerly": run_eagerly})
    x = np.zeros((2, 4, 4, 1), "float32")
    assert not model.flow_map(x, 0.9, 0.1).requires_grad
    seen = []

    class Watched(samplers.Pushforward):
        def step(self, network, x, *state):
            seen.append(x)
            return super().step(network, x, *state)

    model.generate(num_steps=3, sampler=Watched())
    assert seen and not any(x.requires_grad for x in seen)


@pytest.mark.parametrize("name", NAMES)
def test_no_step_waits_for_the_host(make_model, monkeypatch, name):
    model = make_model({})
    reads, convert = [], ops.convert_to_numpy

    def request(num_steps):
        noises = samplers.get(name).noises(num_steps)
        if keras.backend.backend() != "torch":  # where Keras reads seeds
            noises = 0
        noise = samplers.standard_noise(0, 1 + noises, 3, (4, 4, 1))
        noise = noise if noises else noise[0]
        reads.clear()
        model.generate(num_steps=num_steps, sampler=name, noise=noise, seed=0)
        return len(reads)

    request(8)
    monkeypatch.setattr(
        keras.ops, "convert_to_numpy", lambda x: reads.append(0) or convert(x)
    )
    for reader in _readers():
        original = getattr(*reader)

        def counted(self, *arguments, original=original, **options):
            reads.append(0)
            return original(self, *arguments, **options)

        monkeypatch.setattr(*reader, counted)
    # Both above 1: with one step there may be no noise to draw.
    assert request(2) == request(8) >= 1


def _readers():
    """What gives a tensor's value to Python."""
    if keras.backend.backend() == "torch":
        import torch

        names = ("item", "numpy", "tolist", "__bool__", "__float__", "__int__")
        return [(torch.Tensor, name) for name in names]
    if keras.backend.backend() == "tensorflow":
        from tensorflow.python.framework import ops as tensorflow_ops

        kind = tensorflow_ops.EagerTensor
        return [(kind, name) for name in ("numpy", "__bool__", "__float__", "__int__")]
    from jax._src.array import ArrayImpl

    return [(ArrayImpl, name) for name in ("item", "__bool__", "__float__", "__int__")]


@pytest.mark.slow("trains or builds for seconds")
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("guidance", [{}, {"guidance_scale": 2.0}])
def test_compiled_equals_layer_by_layer(make_model, name, guidance):
    labels = np.arange(5) % 3
    models = [make_model({"run_eagerly": run_eagerly}) for run_eagerly in (False, True)]
    for num_steps in (1, 3, 17):
        draws = samplers.standard_noise(
            1, 1 + samplers.get(name).noises(num_steps), 5, (4, 4, 1)
        )
        compiled, eager = (
            model.generate(
                labels,
                num_steps=num_steps,
                sampler=name,
                noise=draws if len(draws) > 1 else draws[0],
                verbose=0,
                **guidance,
            )
            for model in models
        )
        np.testing.assert_allclose(compiled, eager, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("num_steps", [15, 16, 40])
@pytest.mark.parametrize("name", ["euler", "pushforward"])
def test_grids_of_any_length(name, num_steps):
    """The compiled loop is as long as the grid: every step is there, and no other."""
    noise = samplers.standard_noise(0, 1, 7, (2, 2, 1))[0]
    sampler = counting(samplers.SAMPLERS[name])
    model = gaussian_model()
    found = model.generate(num_steps=num_steps, noise=noise, sampler=sampler, verbose=0)
    if name == "pushforward":
        expected = flow("flow_matching", SIGMA_DATA * noise, 1.0, 0.0, 1.25)
    else:
        expected = SIGMA_DATA * noise.astype("float64")
        for i in range(num_steps):
            t = 1 - i / num_steps
            v = velocity("flow_matching", expected, t, 1.25)
            expected = expected - v / num_steps
    np.testing.assert_allclose(found, expected, rtol=3e-5, atol=1e-5)


def test_the_index_counts_the_steps():
    class Indexed(samplers.Sampler):
        def step(self, network, x, t, s, index, noise):
            return x + ops.cast(10**index, x.dtype)

    model = gaussian_model()
    noise = np.zeros((1, 2, 2, 1), "float32")
    for num_steps, expected in ((1, 1), (3, 111), (5, 11111)):
        found = model.generate(noise=noise, sampler=Indexed(), num_steps=num_steps)
        np.testing.assert_allclose(found, expected)


def test_times_begin_and_end_where_the_flow_map_does():
    class Times(samplers.Sampler):
        """Adds up s - t, and counts the steps to `min_time`."""

        def step(self, network, x, t, s, index, noise):
            last = ops.cast(s == network.min_time, x.dtype)
            return x + (s - t) + 100.0 * last

    model = gaussian_model(min_time=0.1, max_time=0.7)
    noise = np.zeros((1, 2, 2, 1), "float32")
    for num_steps in (1, 6, 16):
        found = model.generate(
            noise=noise, sampler=Times(), num_steps=num_steps, verbose=0
        )
        np.testing.assert_allclose(found, 100.0 - 0.6, rtol=1e-6)


def test_drawn_noise_is_of_the_prior_and_new_in_every_step():
    """Also between batches, and from the stream that the caller gives."""

    class Sum(samplers.Sampler):
        def step(self, network, x, t, s, index, noise):
            return noise if noise is not None else x

        def noises(self, num_steps):
            return num_steps

    for options in ({}, {"run_eagerly": True}):
        model = gaussian_model()
        model.compile("sgd", **options)
        draws = [
            model.generate(
                num_samples=600, num_steps=n, sampler=Sum(), seed=0, verbose=0
            )
            for n in (1, 2, 3)
        ]  # the last draw of each
        for each in draws:
            np.testing.assert_allclose(each.std(), SIGMA_DATA, rtol=0.05)
            parts = each[:256].ravel(), each[256:512].ravel()
            assert abs(np.corrcoef(parts)[0, 1]) < 0.15
        rows = np.reshape([each[:256] for each in draws], (3, -1))
        assert np.abs(np.corrcoef(rows) - np.eye(3)).max() < 0.15


@pytest.mark.parametrize("compiled", [True, False])
def test_a_generator_takes_the_values_of_its_variables(make_model, compiled):
    """The weights that it is handed, and not those of the layers."""
    model = make_model()
    generator = Generator(model.flow, compiled)
    plan = SamplingPlan(num_steps=2, sampler="pushforward", time_grid="uniform")
    x = ops.convert_to_tensor(samplers.standard_noise(0, 1, 3, (4, 4, 1))[0])
    values = [ops.copy(v.value) for v in model.flow.variables]
    first = generator.sample(values, plan, plan.times(model.flow), x, None)
    assert len(values) == len(generator.variables)
    for v in model.trainable_variables:
        v.assign(ops.zeros_like(v.value))
    again = generator.sample(values, plan, plan.times(model.flow), x, None)
    np.testing.assert_array_equal(*map(ops.convert_to_numpy, (first, again)))
    zeros = [v.value for v in model.flow.variables]
    still = generator.sample(
        zeros, plan, plan.times(model.flow), x, None
    )  # Euler-FM of an output of zero
    np.testing.assert_allclose(*map(ops.convert_to_numpy, (still, x)), atol=1e-6)


@pytest.mark.parametrize("kind", ["_step", "_loop"])
def test_functions_of_the_last_samplers_are_kept(kind):
    """Sixteen of them, counted from their last use."""
    generator = Generator(gaussian_model().flow)
    function_of = getattr(generator, kind)
    first, second = (function_of(Scaled(factor)) for factor in (0.0, 1.0))
    for factor in range(2, 16):
        function_of(Scaled(float(factor)))
    assert function_of(Scaled(0.0)) is first
    function_of(Scaled(16.0))
    assert function_of(Scaled(0.0)) is first
    assert function_of(Scaled(1.0)) is not second
    assert len(getattr(generator, f"{kind}s")) == 16


@pytest.mark.skipif(
    not backend.compiles_loops, reason="PyTorch draws noise without a compiled function"
)
def test_functions_that_draw_noise_are_kept_for_the_last_shapes(monkeypatch):
    made = []

    def compiled(function, jit_compile=False):
        made.append(function)
        return function

    monkeypatch.setattr(backend, "compile_function", compiled)
    generator = Generator(gaussian_model().flow)
    made.clear()
    stream = keras.random.SeedGenerator(0)
    for rows in [*range(1, 18), 17, 1]:  # the shape of one row has gone
        noise = generator.draw_noise(stream, (rows, 2, 2, 1))
        assert tuple(noise.shape) == (rows, 2, 2, 1)
    assert len(made) == 18
    assert len(generator._noises) == 16


class Shifted(samplers.Sampler):
    """Adds the largest of many numbers."""

    def __init__(self, numbers):
        self.numbers = numbers

    def step(self, network, x, t, s, index, noise):
        return 0.0 * x + float(np.max(self.numbers))

    def get_config(self):
        return {"numbers": self.numbers}


def test_samplers_of_other_arrays_are_compiled_anew(make_model):
    """Whose texts are alike: NumPy writes a long array without its middle."""
    zeros = np.zeros(3000)
    other = zeros.copy()
    other[1500] = 7.0
    model = make_model({})
    for numbers in (zeros, other, zeros):
        samples = model.generate(num_steps=1, sampler=Shifted(numbers))
        np.testing.assert_array_equal(samples, np.max(numbers))


def test_a_sampler_changed_after_its_first_use_is_compiled_anew(make_model):
    """Also in what its config does not say."""
    model, sampler = make_model({}), Scaled(1.0)
    request = {"labels": [0, 1], "num_steps": 1, "seed": 0, "sampler": sampler}
    before = model.generate(**request)
    sampler.factor = 3.0
    np.testing.assert_allclose(model.generate(**request), 3.0 * before, rtol=1e-6)


def test_noise_is_drawn_for_one_batch_size_after_another(make_model):
    """TensorFlow traces a loop anew, for any batch size, where it sees a second."""
    model = make_model({})
    request = {"sampler": "restart", "num_steps": 3, "seed": 0, "weights": "raw"}
    expected = make_model({}).generate(num_samples=4, batch_size=4, **request)
    for size in (1, 2, 3):
        assert np.isfinite(model.generate(num_samples=size, **request)).all()
    samples = model.generate(num_samples=4, batch_size=4, **request)
    np.testing.assert_allclose(samples, expected, atol=1e-6)
