"""Parameterizations against float64 NumPy and against published flow maps."""

import json
import pathlib

import keras
import numpy as np
import pytest
import reference
from backends import FLOATS, dtype_of
from contracts import subclasses_of
from contracts.parameterization import ParameterizationContract
from keras import ops

from keras_imm import parameterizations, schedules

GOLDEN = sorted((pathlib.Path(__file__).parent / "data/golden").glob("dit_*.npz"))
GOLDEN_SCHEDULES = {"fm": "flow_matching", "vp_cosine": "cosine"}
RTOL = {"float32": 1e-6, "float64": 1e-12}
SIGMA_DATA = 0.5


def coefficients(parameterization, schedule, s, t):
    parameterization = parameterizations.get(parameterization)
    schedule = schedules.get(schedule)
    skip = parameterization.c_skip(schedule, s, t)
    out = parameterization.c_out(schedule, s, t, SIGMA_DATA)
    assert dtype_of(skip) == dtype_of(out) == str(t.dtype)
    return ops.convert_to_numpy(skip), ops.convert_to_numpy(out)


def random_times(dtype, min_time=0.001):
    """Times s < t that are wide enough apart for the reference's products."""
    rng = np.random.default_rng(0)
    t = rng.uniform(min_time, 1.0, 2000)
    s = t * rng.uniform(0.0, 0.99, 2000)
    s[:20], t[20:40] = 0.0, 1.0
    return s.astype(dtype), t.astype(dtype)


def all_times():
    """Every pair of s <= t of times that are dense, tiny, and at both ends."""
    tiny = [0.0, 1e-38, 1e-30, 1e-12, 1e-7, 1e-4, 0.006]
    near_one = [0.994, 0.996, 1.0 - 2.0**-20, 1.0 - 2.0**-23, 1.0]
    times = np.concatenate([tiny, np.linspace(0.01, 0.99, 50), near_one])
    s, t = (x.ravel() for x in np.meshgrid(times, times))
    return s[s <= t].astype("float32"), t[s <= t].astype("float32")


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(("parameterization", "schedule"), reference.DEFINED)
def test_table(parameterization, schedule, dtype):
    s, t = random_times(dtype)
    skip, out = coefficients(parameterization, schedule, s, t)
    expected = reference.c_skip(parameterization, schedule, s, t)
    np.testing.assert_allclose(skip, expected, rtol=2 * RTOL[dtype])
    expected = reference.c_out(parameterization, schedule, s, t, SIGMA_DATA)
    np.testing.assert_allclose(out, expected, rtol=2 * RTOL[dtype])


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_published_flow_maps(path):
    golden = np.load(path)
    config = json.loads(str(golden["config_json"]))
    s, t = golden["s"].astype("float32"), golden["t"].astype("float32")
    schedule = GOLDEN_SCHEDULES[config["noise_schedule"]]
    assert config["sigma_data"] == SIGMA_DATA
    skip, out = coefficients(config["f_type"], schedule, s, t)
    skip, out = (c[:, None, None, None] for c in (skip, out))
    flow_map = skip * golden["x"] + out * golden["network_output"]
    np.testing.assert_allclose(flow_map, golden["flow_map"], rtol=1e-6, atol=3e-6)


def test_published_flow_maps_are_there():
    assert len(GOLDEN) == 4


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(("parameterization", "schedule"), reference.DEFINED)
def test_identity_at_equal_times(parameterization, schedule, dtype):
    """f_{s,s}(x) = x exactly, at s = t = 0 too."""
    t = np.concatenate([all_times()[1], np.linspace(0, 1, 1001)]).astype(dtype)
    skip, out = coefficients(parameterization, schedule, t, t)
    assert np.all(skip == 1.0)
    assert np.all(out == 0.0)


@pytest.mark.parametrize(("parameterization", "schedule"), reference.DEFINED)
def test_regular_over_the_whole_range(parameterization, schedule):
    s, t = all_times()
    skip, out = coefficients(parameterization, schedule, s, t)
    assert np.all(np.isfinite(skip))
    assert np.all(np.isfinite(out))
    if parameterization != "identity":
        # Bounded by their values at the worst times, sqrt(2) and sigma_data sqrt(2).
        assert np.max(np.abs(skip)) < 1.5
        assert np.max(np.abs(out)) < 0.75


@pytest.mark.parametrize(("parameterization", "schedule"), reference.DEFINED)
def test_c_out_keeps_its_sign(parameterization, schedule):
    """For s < t however close: the network is never switched off or reversed."""
    t = np.linspace(0.01, 1.0, 2000).astype("float32")
    s = np.nextafter(t, np.float32(0))
    _, out = coefficients(parameterization, schedule, s, t)
    sign = 1 if parameterization == "identity" else -1
    assert np.all(sign * out > 0)


def velocity_coefficients(parameterization, schedule, t):
    given = parameterizations.get(parameterization).velocity_coefficients(
        schedules.get(schedule), t, SIGMA_DATA
    )
    assert [dtype_of(coefficient) for coefficient in given] == [str(t.dtype)] * 2
    return tuple(map(ops.convert_to_numpy, given))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(("parameterization", "schedule"), reference.DEFINED)
def test_velocity_coefficients(parameterization, schedule, dtype):
    t = np.linspace(0.001, 0.999, 999).astype(dtype)
    if parameterization != "identity":
        t = np.concatenate([[0.0, 1e-30, 1e-7], t, [1.0]]).astype(dtype)
    skip, out = velocity_coefficients(parameterization, schedule, t)
    expected = reference.velocity_coefficients(
        parameterization, schedule, t, SIGMA_DATA
    )
    tolerance = {"rtol": 3 * RTOL[dtype], "atol": 1e-16 + 0.3 * RTOL[dtype]}
    np.testing.assert_allclose(skip, expected[0], **tolerance)
    np.testing.assert_allclose(out, expected[1], **tolerance)


@pytest.mark.parametrize(("parameterization", "schedule"), reference.DEFINED)
def test_velocity_coefficients_are_slopes_at_equal_times(parameterization, schedule):
    t, step = np.linspace(0.05, 0.95, 91), 1e-6
    skip = [
        reference.c_skip(parameterization, schedule, s, t) for s in (t - step, t + step)
    ]
    out = [
        reference.c_out(parameterization, schedule, s, t, SIGMA_DATA)
        for s in (t - step, t + step)
    ]
    actual = velocity_coefficients(parameterization, schedule, t.astype("float32"))
    for (before, after), coefficient in zip((skip, out), actual, strict=True):
        slope = (after - before) / (2 * step)
        np.testing.assert_allclose(coefficient, slope, rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize(("parameterization", "schedule"), reference.DEFINED)
def test_velocity_of_an_exact_network(parameterization, schedule):
    """It is alpha' x + sigma' eps, with the output that takes x_t back to x."""
    rng = np.random.default_rng(0)
    t = rng.uniform(0.05, 0.99, 200).astype("float32")
    x, noise = SIGMA_DATA * rng.standard_normal((2, 200))
    x_t = reference.alpha(schedule, t) * x + reference.sigma(schedule, t) * noise
    # f_{0,t}(x_t) = x.
    zero = np.zeros_like(t)
    g = x - reference.c_skip(parameterization, schedule, zero, t) * x_t
    g /= reference.c_out(parameterization, schedule, zero, t, SIGMA_DATA)
    skip, out = velocity_coefficients(parameterization, schedule, t)
    expected = reference.alpha_derivative(schedule, t) * x
    expected += reference.sigma_derivative(schedule, t) * noise
    np.testing.assert_allclose(skip * x_t + out * g, expected, rtol=1e-5, atol=2e-5)


def test_euler_fm_needs_flow_matching():
    parameterization = parameterizations.EulerFM()
    parameterization.check(schedules.FlowMatching())
    with pytest.raises(ValueError, match="euler_fm") as error:
        parameterization.check(schedules.Cosine())
    assert 'needs `schedule="flow_matching"`' in str(error.value)
    assert "Received: schedule=<" in str(error.value)
    assert "Cosine" in str(error.value)


@pytest.mark.parametrize("name", ["identity", "simple_edm"])
def test_the_others_take_any_schedule(name):
    for schedule in reference.SCHEDULES:
        parameterizations.get(name).check(schedules.get(schedule))


def test_unknown_names_list_the_known_ones():
    with pytest.raises(ValueError, match="`parameterization` must be one of") as error:
        parameterizations.get("edm")
    message = str(error.value)
    assert "'identity', 'simple_edm', 'euler_fm'" in message
    assert "parameterization='edm'" in message


# -- The contract, of these parameterizations and of a newcomer's


class TestEveryParameterization(ParameterizationContract):
    @pytest.fixture(params=reference.PARAMETERIZATIONS)
    def instance(self, request):
        return parameterizations.get(request.param)


def test_every_parameterization_is_tested():
    tested = {type(parameterizations.get(n)) for n in reference.PARAMETERIZATIONS}
    base = parameterizations.Parameterization
    assert tested == subclasses_of(base, parameterizations)


@keras.saving.register_keras_serializable(package="tests")
class NoisePrediction(parameterizations.Parameterization):
    """The network predicts the noise over sigma_data; for t < 1."""

    def c_skip(self, schedule, s, t):
        ratio = schedule.alpha(s) / schedule.alpha(t)
        return ops.where(ops.equal(s, t), ops.ones_like(ratio), ratio)

    def c_out(self, schedule, s, t, sigma_data):
        return -schedule.rotation(s, t) * sigma_data / schedule.alpha(t)

    def velocity_coefficients(self, schedule, t, sigma_data):
        alpha = schedule.alpha(t)
        out = schedule.rotation_rate(t) * sigma_data / alpha
        return schedule.alpha_derivative(t) / alpha, out


class TestNewParameterization(ParameterizationContract):
    make = NoisePrediction
    time_range = (0.0, 0.98)


@keras.saving.register_keras_serializable(package="tests")
class EulerWithoutVelocity(parameterizations.Parameterization):
    """The two methods that IMM needs, and no more."""

    def c_skip(self, schedule, s, t):
        return ops.ones_like(schedule.alpha(t))

    def c_out(self, schedule, s, t, sigma_data):
        return -schedule.rotation(s, t) * sigma_data


class TestParameterizationWithoutVelocity(ParameterizationContract):
    make = EulerWithoutVelocity
