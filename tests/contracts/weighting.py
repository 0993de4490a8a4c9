"""What every weighting must do."""

import numpy as np
import pytest
import reference
from backends import FLOATS, dtype_of, value_and_gradient
from keras import ops

from contracts.serializable import SerializableContract
from keras_imm import schedules, weightings


def pairs(dtype="float32"):
    """Times s <= t over the whole range, both ends and their neighbours included."""
    times = [0.0, 1e-30, 1e-7, *np.linspace(0.01, 0.99, 50), 1 - 2.0**-23, 1.0]
    s, t = (x.ravel() for x in np.meshgrid(times, times))
    return s[s <= t].astype(dtype), t[s <= t].astype(dtype)


class WeightingContract(SerializableContract):
    """`make()` returns a `keras_imm.weightings.Weighting`."""

    @pytest.fixture
    def weighting(self, instance):
        assert isinstance(instance, weightings.Weighting)
        return instance

    @pytest.fixture(params=reference.SCHEDULES)
    def schedule(self, request):
        return schedules.get(request.param)

    @pytest.mark.parametrize("dtype", FLOATS)
    def test_shape_and_dtype(self, weighting, schedule, dtype):
        s, t = pairs(dtype)
        for shape in [(-1,), (1, -1)]:
            s, t = s.reshape(shape), t.reshape(shape)
            weight = weighting(schedule, *map(ops.convert_to_tensor, (s, t)))
            assert dtype_of(weight) == dtype
            assert tuple(weight.shape) == t.shape

    def test_half_precision_times_are_widened(self, weighting, schedule):
        s, t = map(ops.convert_to_tensor, np.array([[0.25], [0.5]], "float16"))
        assert dtype_of(weighting(schedule, s, t)) == "float32"

    @pytest.mark.parametrize("dtype", FLOATS)
    def test_finite_and_never_negative(self, weighting, schedule, dtype):
        weight = weighting(schedule, *map(ops.convert_to_tensor, pairs(dtype)))
        weight = ops.convert_to_numpy(weight)
        assert np.all(np.isfinite(weight))
        assert np.all(weight >= 0)
        assert np.mean(weight > 0) > 0.5

    def test_gradient_is_finite(self, weighting, schedule):
        t = np.linspace(0.01, 0.99, 99).astype("float32")

        def total(times):
            # A weighting may know nothing of the times.
            weight = weighting(schedule, 0.5 * times, times)
            return ops.sum(weight) + 0.0 * ops.sum(times)

        _, gradient = value_and_gradient(total, t)
        assert np.all(np.isfinite(gradient))

    def test_rows_are_independent(self, weighting, schedule):
        s, t = pairs()
        order = np.random.default_rng(0).permutation(len(t))

        def weights(*times):
            times = map(ops.convert_to_tensor, times)
            return ops.convert_to_numpy(weighting(schedule, *times))

        np.testing.assert_allclose(
            weights(s[order], t[order]), weights(s, t)[order], rtol=1e-6
        )
