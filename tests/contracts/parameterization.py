"""What every parameterization must do."""

import numpy as np
import pytest
import reference
from backends import FLOATS, dtype_of, value_and_gradient
from keras import ops

from contracts.serializable import SerializableContract
from keras_imm import parameterizations, schedules

SIGMA_DATA = 0.5


def takes(parameterization, schedule):
    try:
        parameterization.check(schedules.get(schedule))
    except ValueError:
        return False
    return True


class ParameterizationContract(SerializableContract):
    """`make()` returns a `keras_imm.parameterizations.Parameterization`.

    Attributes:
        time_range: The times for which the coefficients are finite.
    """

    time_range = (0.0, 1.0)

    @pytest.fixture
    def parameterization(self, instance):
        assert isinstance(instance, parameterizations.Parameterization)
        return instance

    @pytest.fixture(params=reference.SCHEDULES)
    def schedule(self, request, parameterization):
        if not takes(parameterization, request.param):
            pytest.skip(f"not for {request.param}")
        return schedules.get(request.param)

    def coefficients(self, parameterization, schedule, s, t):
        s, t = map(ops.convert_to_tensor, (s, t))
        skip = parameterization.c_skip(schedule, s, t)
        return skip, parameterization.c_out(schedule, s, t, SIGMA_DATA)

    def pairs(self, dtype="float32"):
        """Times s < t, random, adjacent, and from end to end."""
        rng = np.random.default_rng(0)
        low, high = self.time_range
        s, t = np.sort(rng.uniform(low, high, (2, 500)), axis=0).astype(dtype)
        s[0], t[0] = low, high
        s[1::5] = np.nextafter(t, t.dtype.type(0))[1::5]
        return s, t

    def inner_times(self, dtype="float32"):
        low, high = self.time_range
        margin = 0.1 * (high - low)
        return np.linspace(low + margin, high - margin, 50).astype(dtype)

    def test_some_schedule_will_do(self, parameterization):
        assert any(takes(parameterization, name) for name in reference.SCHEDULES)

    @pytest.mark.parametrize("dtype", FLOATS)
    def test_shape_dtype_and_finite_values(self, parameterization, schedule, dtype):
        s, t = self.pairs(dtype)
        for shape in [(500,), (2, 250)]:
            for coefficient in self.coefficients(
                parameterization, schedule, s.reshape(shape), t.reshape(shape)
            ):
                assert dtype_of(coefficient) == dtype
                assert tuple(coefficient.shape) == shape
                assert np.all(np.isfinite(ops.convert_to_numpy(coefficient)))

    def test_half_precision_times_are_widened(self, parameterization, schedule):
        s, t = np.array([[0.25], [0.5]], "float16")
        for coefficient in self.coefficients(parameterization, schedule, s, t):
            assert dtype_of(coefficient) == "float32"

    @pytest.mark.parametrize("dtype", FLOATS)
    def test_identity_at_equal_times(self, parameterization, schedule, dtype):
        t = np.linspace(*self.time_range, 1001).astype(dtype)
        skip, out = self.coefficients(parameterization, schedule, t, t)
        assert np.all(ops.convert_to_numpy(skip) == 1)
        assert np.all(ops.convert_to_numpy(out) == 0)

    def test_the_network_is_heard_wherever_s_is_before_t(
        self, parameterization, schedule
    ):
        out = self.coefficients(parameterization, schedule, *self.pairs())[1]
        assert np.all(ops.convert_to_numpy(out) != 0)

    def test_gradient_is_finite(self, parameterization, schedule):
        t = self.inner_times()

        def total(times):
            skip, out = self.coefficients(
                parameterization, schedule, 0.7 * times, times
            )
            return ops.sum(skip) + ops.sum(out)

        _, gradient = value_and_gradient(total, t)
        assert np.all(np.isfinite(gradient))

    @pytest.mark.parametrize("dtype", FLOATS)
    def test_velocity_is_the_slope_in_s(self, parameterization, schedule, dtype):
        """Or an error that names the class: a parameterization need not give it."""
        t = self.inner_times(dtype)
        given = type(parameterization).velocity_coefficients
        if given is parameterizations.Parameterization.velocity_coefficients:
            name = type(parameterization).__name__
            with pytest.raises(NotImplementedError, match=name):
                parameterization.velocity_coefficients(schedule, t, SIGMA_DATA)
            return
        velocity = parameterization.velocity_coefficients(schedule, t, SIGMA_DATA)
        # From s < t alone, to second order, where c_skip = 1 and c_out = 0 at s = t.
        step = {"float32": 5e-3, "float64": 1e-5}[dtype]
        slopes = []
        for h in (step, 2 * step):
            s = (t - h).astype(dtype)
            skip, out = map(
                ops.convert_to_numpy,
                self.coefficients(parameterization, schedule, s, t),
            )
            h = t.astype("float64") - s
            slopes.append(np.array([(1 - skip.astype("float64")) / h, -out / h]))
        expected = 2 * slopes[0] - slopes[1]
        atol = {"float32": 2e-3, "float64": 1e-7}[dtype]
        for actual, slope in zip(velocity, expected, strict=True):
            assert dtype_of(actual) == dtype
            assert tuple(actual.shape) == t.shape
            np.testing.assert_allclose(
                ops.convert_to_numpy(actual), slope, rtol=atol, atol=atol
            )
