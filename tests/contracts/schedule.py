"""What every noise schedule must do, in terms of its own alpha and sigma."""

import numpy as np
import pytest
from backends import FLOATS, dtype_of, value_and_gradient
from keras import ops

from contracts.serializable import SerializableContract
from keras_imm import schedules

RTOL = {"float32": 2e-6, "float64": 1e-11}
METHODS = (
    *("alpha", "sigma", "alpha_derivative", "sigma_derivative", "rotation_rate"),
    *("eta", "reciprocal_eta", "log_snr", "log_snr_decay", "squared_norm"),
)


def inner_times(dtype="float32"):
    ends = [1e-4, 0.005, 0.994, 0.996, 0.9999]
    return np.sort(np.concatenate([ends, np.linspace(0.01, 0.99, 99)])).astype(dtype)


def gauss_legendre(low, high, dtype="float32"):
    """Times and weights that integrate smooth functions from low to high."""
    nodes, weights = np.polynomial.legendre.leggauss(40)
    half = (high - low) / 2
    return (low + half * (nodes + 1)).astype(dtype), half * weights


def value(method, *arguments):
    """A method's value in float64 NumPy."""
    result = method(*map(ops.convert_to_tensor, arguments))
    return ops.convert_to_numpy(result).astype("float64")


class ScheduleContract(SerializableContract):
    """`make()` returns a `keras_imm.schedules.Schedule`."""

    @pytest.fixture
    def schedule(self, instance):
        assert isinstance(instance, schedules.Schedule)
        return instance

    @pytest.mark.parametrize("dtype", FLOATS)
    @pytest.mark.parametrize("method", METHODS)
    def test_shape_dtype_and_finite_values(self, schedule, method, dtype):
        t = inner_times(dtype)
        for times in (t, t.reshape(2, -1), t[5]):
            result = getattr(schedule, method)(times)
            assert dtype_of(result) == dtype
            assert tuple(result.shape) == np.shape(times)
            assert np.all(np.isfinite(ops.convert_to_numpy(result)))

    @pytest.mark.parametrize("method", METHODS)
    def test_half_precision_times_are_widened(self, schedule, method):
        t = ops.convert_to_tensor(np.array([0.25, 0.5], "float16"))
        assert dtype_of(getattr(schedule, method)(t)) == "float32"

    @pytest.mark.parametrize("method", METHODS)
    def test_gradient_is_finite(self, schedule, method):
        def total(t):
            # A derivative may be constant.
            return ops.sum(getattr(schedule, method)(t)) + 0.0 * ops.sum(t)

        _, gradient = value_and_gradient(total, inner_times())
        assert np.all(np.isfinite(gradient))

    @pytest.mark.parametrize("dtype", FLOATS)
    def test_from_data_to_noise(self, schedule, dtype):
        ends = np.array([0.0, 1.0], dtype)
        assert value(schedule.alpha, ends).tolist() == [1.0, 0.0]
        assert value(schedule.sigma, ends).tolist() == [0.0, 1.0]
        assert np.all(np.diff(value(schedule.alpha, inner_times(dtype))) < 0)
        assert np.all(np.diff(value(schedule.sigma, inner_times(dtype))) > 0)

    @pytest.mark.parametrize("dtype", FLOATS)
    @pytest.mark.parametrize("name", ["alpha", "sigma"])
    def test_derivatives_integrate_to_their_function(self, schedule, name, dtype):
        for low, high in [(0.0, 0.3), (0.2, 0.8), (0.5, 1.0)]:
            t, weights = gauss_legendre(low, high, dtype)
            integral = weights @ value(getattr(schedule, f"{name}_derivative"), t)
            ends = value(getattr(schedule, name), np.array([low, high], dtype))
            np.testing.assert_allclose(integral, np.diff(ends)[0], rtol=RTOL[dtype])

    def test_log_snr_decay_integrates_to_log_snr(self, schedule):
        t, weights = gauss_legendre(0.2, 0.8)
        integral = weights @ value(schedule.log_snr_decay, t)
        ends = value(schedule.log_snr, np.array([0.2, 0.8], "float32"))
        np.testing.assert_allclose(integral, ends[0] - ends[1], rtol=1e-5)

    @pytest.mark.parametrize(
        ("name", "inverse"),
        [
            ("eta", "inverse_eta"),
            ("reciprocal_eta", "inverse_reciprocal_eta"),
            ("log_snr", "inverse_log_snr"),
        ],
    )
    def test_inverses(self, schedule, name, inverse):
        t = inner_times()
        back = getattr(schedule, inverse)(getattr(schedule, name)(t))
        np.testing.assert_allclose(ops.convert_to_numpy(back), t, rtol=1e-5)

    def test_inverses_at_the_ends(self, schedule):
        ends = np.array([0.0, np.inf], "float32")
        assert value(schedule.inverse_eta, ends).tolist() == [0.0, 1.0]
        assert value(schedule.inverse_reciprocal_eta, ends[:1]).tolist() == [1.0]

    def test_rotation(self, schedule):
        rng = np.random.default_rng(0)
        s, t = np.sort(rng.uniform(size=(2, 500)), axis=0).astype("float32")
        expected = value(schedule.alpha, s) * value(schedule.sigma, t)
        expected -= value(schedule.alpha, t) * value(schedule.sigma, s)
        np.testing.assert_allclose(
            value(schedule.rotation, s, t), expected, rtol=0, atol=3e-7
        )

    def test_rotation_keeps_its_digits_near_equal_times(self, schedule):
        t = np.linspace(0.05, 0.95, 500).astype("float32")
        assert np.all(value(schedule.rotation, t, t) == 0)
        s = (t * np.float32(1 - 1e-5)).astype("float32")
        middle = ((s.astype("float64") + t) / 2).astype("float32")
        expected = value(schedule.rotation_rate, middle) * (t.astype("float64") - s)
        np.testing.assert_allclose(value(schedule.rotation, s, t), expected, rtol=1e-5)

    @pytest.mark.parametrize("dtype", FLOATS)
    def test_rotation_rate(self, schedule, dtype):
        t = inner_times(dtype)
        rate = value(schedule.alpha, t) * value(schedule.sigma_derivative, t)
        rate -= value(schedule.alpha_derivative, t) * value(schedule.sigma, t)
        actual = value(schedule.rotation_rate, t)
        np.testing.assert_allclose(actual, rate, rtol=RTOL[dtype])
        assert np.all(actual > 0)

    def test_eta_gap(self, schedule):
        t = np.linspace(0.05, 0.95, 200).astype("float32")
        eta = value(schedule.eta, t)
        decrement = (0.5 * eta).astype("float32")
        gap = value(schedule.eta_gap, t, decrement)
        expected = t - value(schedule.inverse_eta, (eta - decrement).astype("float32"))
        np.testing.assert_allclose(gap, expected, atol=1e-6)
        # A decrement far below the rounding of eta: d eta / dt = rate / alpha^2.
        slope = value(schedule.rotation_rate, t) / value(schedule.alpha, t) ** 2
        decrement = (1e-9 * eta).astype("float32")
        gap = value(schedule.eta_gap, t, decrement)
        np.testing.assert_allclose(gap, decrement / slope, rtol=1e-5)

    def test_eta_gap_at_the_ends(self, schedule):
        t = np.array([0.0, 0.3, 1.0], "float32")
        eta = np.append(value(schedule.eta, t[:2]), 0.0).astype("float32")
        gap = value(schedule.eta_gap, t, np.array([0.0, eta[1], 0.04], "float32"))
        np.testing.assert_allclose(gap, [0.0, 0.3, 0.0], atol=1e-6)

    def test_ddim_takes_the_same_data_and_noise_to_s(self, schedule):
        rng = np.random.default_rng(0)
        s, t = np.sort(rng.uniform(0.05, 1.0, (2, 500)), axis=0).astype("float32")
        skip, out = map(ops.convert_to_numpy, schedule.ddim_coefficients(s, t))
        alpha, sigma = value(schedule.alpha, t), value(schedule.sigma, t)
        tolerance = {"rtol": 1e-5, "atol": 1e-6}
        expected = value(schedule.alpha, s)
        np.testing.assert_allclose(skip * alpha + out, expected, **tolerance)
        np.testing.assert_allclose(skip * sigma, value(schedule.sigma, s), **tolerance)

    def test_ddim_is_the_identity_at_equal_times(self, schedule):
        t = np.concatenate([[0.0], inner_times(), [1.0]]).astype("float32")
        skip, out = schedule.ddim_coefficients(t, t)
        assert np.all(ops.convert_to_numpy(skip) == 1)
        assert np.all(ops.convert_to_numpy(out) == 0)
