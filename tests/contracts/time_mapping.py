"""What every time mapping must do."""

import numpy as np
import pytest
import reference
from backends import FLOATS, dtype_of
from keras import ops

from contracts.serializable import SerializableContract
from keras_imm import schedules, time_mappings


def times(dtype, low, high):
    """Random pairs of times, with some equal, adjacent, or at an end."""
    rng = np.random.default_rng(0)
    low, high = np.array([low, high], dtype)
    t = np.clip(rng.uniform(low, high, 2000).astype(dtype), low, high)
    t[-20:] = high
    s = np.clip((low + rng.uniform(size=2000) * (t - low)).astype(dtype), low, t)
    s[::5] = low
    s[1::5] = np.maximum(np.nextafter(t, low), low)[1::5]
    s[2::50] = t[2::50]
    return s, t


class TimeMappingContract(SerializableContract):
    """`make()` returns a `keras_imm.time_mappings.TimeMapping`.

    Attributes:
        time_range: The widest min_time and max_time that the mapping is for.
    """

    time_range = (0.0, 0.996)

    @pytest.fixture
    def mapping(self, instance):
        assert isinstance(instance, time_mappings.TimeMapping)
        return instance

    @pytest.fixture
    def ends(self):
        return self.time_range

    @pytest.fixture(params=reference.SCHEDULES)
    def schedule(self, request):
        return schedules.get(request.param)

    def mapped(self, mapping, schedule, s, t, ends):
        s, t = map(ops.convert_to_tensor, (s, t))
        return ops.convert_to_numpy(mapping(schedule, s, t, *ends))

    @pytest.mark.parametrize("dtype", FLOATS)
    def test_shape_and_dtype(self, mapping, schedule, ends, dtype):
        s, t = times(dtype, *ends)
        r = mapping(schedule, *map(ops.convert_to_tensor, (s, t)), *ends)
        assert dtype_of(r) == dtype
        assert tuple(r.shape) == t.shape

    @pytest.mark.parametrize("dtype", FLOATS)
    def test_between_s_and_t(self, mapping, schedule, ends, dtype):
        s, t = times(dtype, *ends)
        r = self.mapped(mapping, schedule, s, t, ends)
        assert np.all(s <= r)
        assert np.all((r < t) | (s == t))
        assert np.all(r[s == t] == t[s == t])
        # r = s is not all there is: the target has something to teach.
        assert np.any(r > s)

    @pytest.mark.parametrize("min_gap", [1e-3, 0.05])
    def test_minimum_gap(self, mapping, schedule, ends, min_gap):
        mapping = type(mapping).from_config(mapping.get_config() | {"min_gap": min_gap})
        s, t = times("float32", *ends)
        r = self.mapped(mapping, schedule, s, t, ends)
        gap = t.astype("float64") - r
        assert np.all((gap > min_gap - 1e-6) | (r == s))

    def test_rows_are_independent(self, mapping, schedule, ends):
        s, t = times("float32", *ends)
        order = np.random.default_rng(1).permutation(len(t))
        r = self.mapped(mapping, schedule, s, t, ends)
        shuffled = self.mapped(mapping, schedule, s[order], t[order], ends)
        np.testing.assert_allclose(shuffled, r[order], rtol=1e-6)

    def test_check_takes_its_range_and_no_other(self, mapping, schedule, ends):
        mapping.check(schedule, *ends)
        if mapping.needs_positive_min_time:
            with pytest.raises(ValueError, match="needs `min_time` > 0"):
                mapping.check(schedule, 0.0, 0.9)
        else:
            mapping.check(schedule, 0.0, 0.9)
        if mapping.allows_max_time_one:
            mapping.check(schedule, 0.1, 1.0)
        else:
            with pytest.raises(ValueError, match="needs `max_time` < 1"):
                mapping.check(schedule, 0.1, 1.0)
