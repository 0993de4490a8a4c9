"""Schedules against float64 NumPy, over the whole range of times."""

import keras
import numpy as np
import pytest
import reference
from backends import FLOATS, dtype_of
from contracts import subclasses_of
from contracts.schedule import ScheduleContract
from contracts.training import check_trains
from keras import ops

from keras_imm import schedules
from keras_imm.precision import at_least_float32, maximum

# Relative: a few roundings in float32; in float64 what the reference itself keeps
# of alpha(t) near t = 1.
RTOL = {"float32": 1e-6, "float64": 1e-11}


def inner_times(dtype):
    """Times in (0, 1), dense and near both ends, exact in `dtype`."""
    t = [1e-30, 1e-12, 1e-7, 1e-4, 0.005, 0.006, 0.994, 0.996, 0.9999]
    if dtype == "float32":  # the last ones before 1, of which float64 knows enough
        t += [1 - 2.0**-20, 1 - 2.0**-23]
    return np.sort(np.concatenate([t, np.linspace(0.001, 0.999, 999)])).astype(dtype)


def times(dtype):
    return np.concatenate([[0.0], inner_times(dtype), [1.0]]).astype(dtype)


@pytest.fixture(params=reference.SCHEDULES)
def name(request):
    return request.param


@pytest.fixture
def schedule(name):
    return schedules.get(name)


def check(actual, expected, dtype, rtol=1.0, atol=0.0):
    """Compares a tensor with float64 NumPy; rtol in units of RTOL."""
    assert dtype_of(actual) == dtype
    actual = ops.convert_to_numpy(actual)
    np.testing.assert_allclose(actual, expected, rtol=rtol * RTOL[dtype], atol=atol)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("method", ["alpha", "sigma"])
def test_alpha_and_sigma(name, schedule, method, dtype):
    t = times(dtype)
    expected = getattr(reference, method)(name, t)
    # cos(pi / 2) of the reference is 6e-17.
    check(getattr(schedule, method)(t), expected, dtype, atol=1e-16)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("method", ["alpha_derivative", "sigma_derivative"])
def test_derivatives(name, schedule, method, dtype):
    t = times(dtype)
    expected = getattr(reference, method)(name, t)
    check(getattr(schedule, method)(t), expected, dtype, atol=2e-16)


def test_derivatives_are_the_slopes_of_alpha_and_sigma(name, schedule):
    t, step = np.linspace(0.05, 0.95, 19), 1e-5
    for function in ("alpha", "sigma"):
        values = getattr(reference, function)
        slope = (values(name, t + step) - values(name, t - step)) / (2 * step)
        derivative = getattr(schedule, f"{function}_derivative")
        check(derivative(t.astype("float32")), slope, "float32")


@pytest.mark.parametrize("dtype", FLOATS)
def test_derivatives_at_the_ends_are_exact(dtype):
    ends = np.array([0.0, 1.0], dtype)
    cosine = schedules.Cosine()
    assert ops.convert_to_numpy(cosine.alpha_derivative(ends))[0] == 0
    assert ops.convert_to_numpy(cosine.sigma_derivative(ends))[1] == 0


@pytest.mark.parametrize("dtype", FLOATS)
def test_rotation_rate_follows_from_the_derivatives(schedule, dtype):
    """What a schedule gets that does not give its own is what these two give."""
    t = times(dtype)
    expected = ops.convert_to_numpy(schedule.rotation_rate(t))
    check(schedules.Schedule.rotation_rate(schedule, t), expected, dtype)


@pytest.mark.parametrize("dtype", FLOATS)
def test_ends_are_exact(schedule, dtype):
    ends = np.array([0.0, 1.0], dtype)
    with np.errstate(divide="ignore"):
        for method, expected in [
            ("alpha", [1.0, 0.0]),
            ("sigma", [0.0, 1.0]),
            ("eta", [0.0, np.inf]),
            ("reciprocal_eta", [np.inf, 0.0]),
            ("log_snr", [np.inf, -np.inf]),
            ("log_snr_decay", [np.inf, np.inf]),
            ("squared_norm", [1.0, 1.0]),
        ]:
            actual = ops.convert_to_numpy(getattr(schedule, method)(ends))
            assert actual.tolist() == expected, method


@pytest.mark.parametrize("dtype", FLOATS)
def test_eta_and_its_reciprocal(name, schedule, dtype):
    t = inner_times(dtype)
    expected = reference.eta(name, t)
    check(schedule.eta(t), expected, dtype, rtol=2)
    check(schedule.reciprocal_eta(t), 1 / expected, dtype, rtol=2)


@pytest.mark.parametrize("dtype", FLOATS)
def test_log_snr(name, schedule, dtype):
    t = inner_times(dtype)
    atol = RTOL[dtype]  # it crosses 0
    check(schedule.log_snr(t), reference.log_snr(name, t), dtype, atol=atol)


@pytest.mark.parametrize("dtype", FLOATS)
def test_log_snr_decay(name, schedule, dtype):
    t = inner_times(dtype)
    check(schedule.log_snr_decay(t), reference.log_snr_decay(name, t), dtype, rtol=2)


def test_log_snr_decay_is_the_slope_of_log_snr(name):
    t, step = np.linspace(0.05, 0.95, 19), 1e-5
    slope = reference.log_snr(name, t + step) - reference.log_snr(name, t - step)
    np.testing.assert_allclose(
        reference.log_snr_decay(name, t), -slope / (2 * step), rtol=1e-6
    )


@pytest.mark.parametrize("dtype", FLOATS)
def test_inverse_eta(name, schedule, dtype):
    eta = np.array([1e-30, 1e-6, 0.04, 1.0, 1.4, 160.0, 1e6, 1e30], dtype)
    expected = reference.inverse_eta(name, eta)
    check(schedule.inverse_eta(eta), expected, dtype)
    check(schedule.inverse_reciprocal_eta(1 / eta), expected, dtype)


@pytest.mark.parametrize("dtype", FLOATS)
def test_inverses_at_the_ends(schedule, dtype):
    ends = np.array([0.0, np.inf], dtype)
    assert ops.convert_to_numpy(schedule.inverse_eta(ends)).tolist() == [0.0, 1.0]
    zero = np.zeros(1, dtype)
    assert ops.convert_to_numpy(schedule.inverse_reciprocal_eta(zero)).item() == 1.0
    log_snr = np.array([np.inf, -np.inf], dtype)
    actual = ops.convert_to_numpy(schedule.inverse_log_snr(log_snr))
    assert actual.tolist() == [0.0, 1.0]


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(
    ("function", "inverse", "rtol"),
    [
        ("eta", "inverse_eta", 2),
        ("reciprocal_eta", "inverse_reciprocal_eta", 2),
        # An absolute rounding of 2 log(alpha / sigma), which reaches 140.
        ("log_snr", "inverse_log_snr", 30),
    ],
)
def test_inverses_invert(schedule, function, inverse, rtol, dtype):
    t = inner_times(dtype)
    back = getattr(schedule, inverse)(getattr(schedule, function)(t))
    check(back, t, dtype, rtol=rtol)


def pairs(dtype, seed=0):
    """Times s <= t, random, equal, adjacent and at the ends."""
    rng = np.random.default_rng(seed)
    t = np.concatenate([rng.uniform(size=500), inner_times(dtype)]).astype(dtype)
    s = (rng.uniform(size=t.shape) * t).astype(dtype)
    s[::5] = t[::5]
    s[1::5] = np.nextafter(t[1::5], t.dtype.type(0))
    s[2::5] = 0
    return np.append(s, [0, 0, 1]).astype(dtype), np.append(t, [0, 1, 1]).astype(dtype)


@pytest.mark.parametrize("dtype", FLOATS)
def test_rotation_without_cancellation(name, schedule, dtype):
    s, t = pairs(dtype)
    difference = reference.float64(t) - reference.float64(s)
    expected = np.sin(np.pi / 2 * difference) if name == "cosine" else difference
    check(schedule.rotation(s, t), expected, dtype)
    # The product form that it stands for, which float64 knows to 1e-16.
    product = reference.alpha(name, s) * reference.sigma(name, t)
    product -= reference.alpha(name, t) * reference.sigma(name, s)
    np.testing.assert_allclose(
        ops.convert_to_numpy(schedule.rotation(s, t)), product, atol=2e-7
    )


def test_rotation_rate_is_the_slope_of_rotation(name, schedule):
    t, step = np.linspace(0.1, 0.9, 9), 1e-6
    rotation = reference.alpha(name, t) * reference.sigma(name, t + step)
    rotation -= reference.alpha(name, t + step) * reference.sigma(name, t)
    check(
        schedule.rotation_rate(t.astype("float32")), rotation / step, "float32", rtol=2
    )


@pytest.mark.parametrize("dtype", FLOATS)
def test_eta_gap(name, schedule, dtype):
    t = np.linspace(0.01, 0.996, 200).astype(dtype)
    for power in (1, 4, 8, 12, 15, 20):
        eta = reference.eta(name, t)
        decrement = np.minimum(160 / 2**power, 0.9 * eta).astype(dtype)
        expected = t - reference.inverse_eta(name, eta - decrement)
        actual = schedule.eta_gap(t, ops.convert_to_tensor(decrement))
        # The difference is down to 4e-9 and float64 knows it to 4e-16.
        check(actual, expected, dtype, rtol=5, atol=4e-16)


def test_eta_gap_at_the_ends(schedule):
    t = np.array([0.0, 0.3, 0.3, 1.0], "float32")
    eta = ops.convert_to_numpy(schedule.eta(t))
    decrement = np.array([0.0, 0.0, eta[2], 0.04], "float32")
    gap = ops.convert_to_numpy(schedule.eta_gap(t, ops.convert_to_tensor(decrement)))
    np.testing.assert_allclose(gap, [0.0, 0.0, 0.3, 0.0], rtol=1e-6)


@pytest.mark.parametrize("dtype", FLOATS)
def test_ddim_coefficients(name, schedule, dtype):
    s, t = pairs(dtype)
    s, t = s[t > 1e-3], t[t > 1e-3]
    skip, out = schedule.ddim_coefficients(s, t)
    expected_skip, expected_out = reference.ddim(name, s, t)
    check(skip, expected_skip, dtype, rtol=2)
    check(out, expected_out, dtype, atol=RTOL[dtype])


@pytest.mark.parametrize("dtype", FLOATS)
def test_ddim_is_the_identity_at_equal_times(schedule, dtype):
    t = times(dtype)
    skip, out = schedule.ddim_coefficients(t, t)
    assert np.all(ops.convert_to_numpy(skip) == 1.0)
    assert np.all(ops.convert_to_numpy(out) == 0.0)


@pytest.mark.parametrize("dtype", FLOATS)
def test_ddim_is_self_consistent(schedule, dtype):
    """t -> r -> s with the same x is t -> s."""
    rng = np.random.default_rng(1)
    s, r, t = np.sort(rng.uniform(size=(3, 1000)), axis=0).astype(dtype)
    s[:10], t[10:20] = 0, 1
    skip_r, out_r = map(ops.convert_to_numpy, schedule.ddim_coefficients(r, t))
    skip_s, out_s = map(ops.convert_to_numpy, schedule.ddim_coefficients(s, r))
    skip, out = schedule.ddim_coefficients(s, t)
    check(skip, skip_s * skip_r, dtype, rtol=4)
    check(out, skip_s * out_r + out_s, dtype, rtol=4)


def test_squared_norm(name, schedule):
    t = times("float32")
    expected = reference.alpha(name, t) ** 2 + reference.sigma(name, t) ** 2
    check(schedule.squared_norm(t), expected, "float32")


def test_half_precision_times_are_widened(schedule):
    t = ops.convert_to_tensor(np.array([0.25, 0.5], "float16"))
    for method in ("alpha", "sigma", "eta", "log_snr", "log_snr_decay"):
        assert dtype_of(getattr(schedule, method)(t)) == "float32", method


def test_names():
    assert isinstance(schedules.get("flow_matching"), schedules.FlowMatching)
    cosine = schedules.Cosine()
    assert schedules.get(cosine) is cosine


@pytest.mark.parametrize("identifier", ["linear", None, schedules.Cosine])
def test_unknown_names_list_the_known_ones(identifier):
    with pytest.raises(ValueError, match="`schedule` must be one of") as error:
        schedules.get(identifier)
    message = str(error.value)
    assert "'flow_matching', 'cosine'" in message
    assert f"schedule={identifier!r}" in message


# -- The contract, of these schedules and of a newcomer's


class TestEverySchedule(ScheduleContract):
    @pytest.fixture(params=reference.SCHEDULES)
    def instance(self, request):
        return schedules.get(request.param)


def test_every_schedule_is_tested():
    tested = {type(schedules.get(name)) for name in reference.SCHEDULES}
    assert tested == subclasses_of(schedules.Schedule, schedules)


@keras.saving.register_keras_serializable(package="tests")
class Squared(schedules.Schedule):
    """alpha = 1 - t^2, sigma = t^2: flow matching in u = t^2."""

    def alpha(self, t):
        t = at_least_float32(t)
        return (1.0 - t) * (1.0 + t)

    def sigma(self, t):
        return ops.square(at_least_float32(t))

    def alpha_derivative(self, t):
        return -2.0 * at_least_float32(t)

    def sigma_derivative(self, t):
        return 2.0 * at_least_float32(t)

    def inverse_eta(self, eta):
        return ops.sqrt(1.0 / (1.0 + 1.0 / at_least_float32(eta)))

    def rotation(self, s, t):
        s, t = at_least_float32(s), at_least_float32(t)
        return (t - s) * (t + s)

    def eta_gap(self, t, decrement):
        t, alpha = at_least_float32(t), self.alpha(t)
        gap = decrement * ops.square(alpha) / (1.0 - decrement * alpha)  # of u
        earlier = ops.sqrt(maximum(ops.square(t) - gap, 0.0))
        total = t + earlier
        return gap / ops.where(total > 0.0, total, ops.ones_like(total))


class TestNewSchedule(ScheduleContract):
    make = Squared


def test_a_new_schedule_trains():
    check_trains(schedule=Squared(), parameterization="simple_edm")


@pytest.mark.parametrize("method", ["alpha", "alpha_derivative", "inverse_eta"])
def test_a_schedule_without_a_method_says_which(method):
    class Empty(schedules.Schedule):
        pass

    with pytest.raises(NotImplementedError, match=f"Empty does not .* `{method}`"):
        getattr(Empty(), method)(0.5)
