"""Euler's and Heun's methods against float64 NumPy along a known velocity."""

import itertools

import gaussian_flow
import numpy as np
import pytest
from contracts.sampler import SamplerContract
from gaussian_flow import SIGMA_DATA, GaussianVelocity
from keras import ops

import keras_imm
from keras_imm import samplers
from keras_imm.flow_map import Network

PAIRS = [
    ("flow_matching", "euler_fm"),
    ("flow_matching", "simple_edm"),
    ("cosine", "simple_edm"),
]
STDS = (SIGMA_DATA, 1.25)  # the first is what networks are preconditioned for


class TestEuler(SamplerContract):
    make = samplers.Euler
    std_tolerance = 0.05  # of first order


class TestHeun(SamplerContract):
    make = samplers.Heun


@pytest.fixture(params=PAIRS, ids="+".join)
def pair(request):
    return request.param


@pytest.fixture(params=STDS)
def data_std(request):
    return request.param


@pytest.fixture
def model(pair, data_std):
    schedule, parameterization = pair
    return keras_imm.FlowMapModel(
        GaussianVelocity(schedule, parameterization, data_std),
        objective="flow_matching",
        schedule=schedule,
        parameterization=parameterization,
        sigma_data=SIGMA_DATA,
    )


def start(count=20):
    return samplers.standard_noise(0, 1, count, (2, 2, 1))[0]


def euler(velocity, x, times):
    for t, s in itertools.pairwise(times):
        x = x + (s - t) * velocity(x, t)
    return x


def heun(velocity, x, times):
    for t, s in itertools.pairwise(times):
        d = velocity(x, t)
        x_s = x + (s - t) * d
        if s > times[-1]:
            x_s = x + (s - t) * (d + velocity(x_s, s)) / 2
        x = x_s
    return x


METHODS = {"euler": euler, "heun": heun}


def test_the_velocity_of_the_network_is_that_of_the_data(model, pair, data_std):
    t = np.linspace(0.05, 0.95, 20).astype("float32")
    found = Network(model.flow).velocity(start(), t)
    t = t.reshape(-1, 1, 1, 1)
    expected = gaussian_flow.velocity(pair[0], start(), t, data_std)
    np.testing.assert_allclose(
        ops.convert_to_numpy(found), expected, rtol=1e-5, atol=3e-6
    )


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("times", [(0.8, 0.55), (0.3, 0.0)], ids=["inner", "last"])
def test_one_step(model, pair, data_std, name, times):
    """x + (s - t) v(x, t), and with the mean of both velocities before the end."""

    def velocity(x, t):
        return gaussian_flow.velocity(pair[0], x, t, data_std)

    x = start()
    t, s, index = (
        ops.convert_to_tensor(np.asarray(v, kind))
        for v, kind in zip((*times, 3), ("float32", "float32", "int32"), strict=True)
    )
    step = samplers.get(name).step
    found = step(Network(model.flow), ops.convert_to_tensor(x), t, s, index, None)
    grid = np.array(times) if times[1] == 0 else np.array([*times, -1.0])[:2]
    expected = euler(velocity, x, grid)
    if name == "heun" and times[1] > 0:
        slope = (velocity(x, times[0]) + velocity(expected, times[1])) / 2
        expected = x + (times[1] - times[0]) * slope
    np.testing.assert_allclose(
        ops.convert_to_numpy(found), expected, rtol=1e-5, atol=2e-6
    )


@pytest.mark.slow("samples 48 times")
@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("num_steps", [1, 2, 7, 20])
def test_samples_are_those_of_numpy(model, pair, data_std, name, num_steps):
    def velocity(x, t):
        return gaussian_flow.velocity(pair[0], x, t, data_std)

    times = np.linspace(1.0, 0.0, num_steps + 1)
    expected = METHODS[name](velocity, SIGMA_DATA * start().astype("float64"), times)
    found = model.generate(
        noise=start(), num_steps=num_steps, sampler=name, verbose=0, batch_size=20
    )
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=1e-5)


@pytest.mark.parametrize(("name", "order"), [("euler", 1), ("heun", 2)])
def test_order_of_convergence(model, pair, data_std, name, order):
    """To the flow, in closed form: twice the steps, 2^order times less of an error."""
    if pair[0] == "cosine" and data_std == SIGMA_DATA:
        pytest.skip("there the flow stands still, and every step is exact")
    exact = gaussian_flow.flow(pair[0], SIGMA_DATA * start(), 1.0, 0.0, data_std)
    errors = []
    for num_steps in (16, 32, 64):
        found = model.generate(
            noise=start(), num_steps=num_steps, sampler=name, verbose=0
        )
        errors.append(np.abs(found - exact).max())
    orders = np.log2(np.array(errors[:-1]) / errors[1:])
    np.testing.assert_allclose(orders, order, atol=0.25)


@pytest.mark.parametrize("name", METHODS)
def test_a_flow_that_stands_still_is_exact(name):
    """Cosine, and data as wide as the noise."""
    model = keras_imm.FlowMapModel(
        GaussianVelocity("cosine", "simple_edm", SIGMA_DATA),
        objective="flow_matching",
        schedule="cosine",
        parameterization="simple_edm",
        sigma_data=SIGMA_DATA,
    )
    found = model.generate(noise=start(), num_steps=3, sampler=name)
    np.testing.assert_allclose(found, SIGMA_DATA * start(), atol=1e-6)


@pytest.mark.parametrize("name", METHODS)
def test_the_network_is_asked_for_equal_times(make_model, name):
    """s = t: what flow matching trains."""
    model = make_model({"run_eagerly": True})
    seen, call = [], model.backbone.call

    def spy(inputs, *args, **kwargs):
        seen.append([float(ops.convert_to_numpy(c)[0]) for c in inputs[1:3]])
        return call(inputs, *args, **kwargs)

    model.backbone.call = spy
    model.generate(num_steps=2, sampler=name, verbose=0)
    ends = [994.0, 497.0]
    # The second call of Heun's last step is not used, and is at a time that is defined.
    expected = ends if name == "euler" else [994.0, 497.0, 497.0, 497.0]
    np.testing.assert_allclose(seen, [[t, t] for t in expected], rtol=1e-6)


def test_heun_ends_at_times_where_the_velocity_is_not_defined(make_model):
    """The identity parameterization's is infinite at 0."""
    model = make_model(parameterization="identity")
    assert np.all(np.isfinite(model.generate(num_steps=3, sampler="heun", seed=0)))
