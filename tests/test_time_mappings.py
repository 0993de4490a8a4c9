"""Time mappings against their definitions, and s <= r < t in float32."""

import keras
import numpy as np
import pytest
import reference
from backends import FLOATS, dtype_of
from contracts import subclasses_of
from contracts.time_mapping import TimeMappingContract
from contracts.training import check_trains
from keras import ops

from keras_imm import schedules, time_mappings

# Each mapping with the widest time range that it is for.
RANGES = {
    "eta_decrement": (0.0, 0.996),
    "time_decrement": (0.0, 1.0),
    "log_snr_decrement": (0.001, 0.996),
    "inverse_eta_increment": (0.005, 1.0),
}
CLASSES = {name: type(time_mappings.get(name)) for name in RANGES}
K = [1, 8, 12, 15, 20]

both_schedules = pytest.mark.parametrize("schedule", reference.SCHEDULES)
every_mapping = pytest.mark.parametrize("name", RANGES)


def mapped(name, schedule, s, t, k=12, min_gap=0.0, time_range=None):
    mapping = CLASSES[name](k=k, min_gap=min_gap)
    min_time, max_time = time_range or RANGES[name]
    mapping.check(schedules.get(schedule), min_time, max_time)
    r = mapping(schedules.get(schedule), s, t, min_time, max_time)
    assert dtype_of(r) == str(t.dtype)
    return ops.convert_to_numpy(r)


def times(dtype, min_time, max_time, seed=0):
    """Random and extreme pairs s < t within the range."""
    rng = np.random.default_rng(seed)
    low, high = np.array([min_time, max_time], dtype)
    # Dense inside, and geometrically towards both ends.
    t = np.concatenate(
        [
            rng.uniform(min_time, max_time, 2000),
            min_time + np.geomspace(1e-30, max_time - min_time, 500),
            max_time - np.geomspace(1e-9, max_time - min_time, 500),
            [max_time] * 20,
        ]
    )
    t = np.clip(t.astype(dtype), np.nextafter(low, high), high)
    s = np.clip((low + rng.uniform(size=t.shape) * (t - low)).astype(dtype), low, t)
    s[::4] = low
    below = np.nextafter(t, low)
    s[1::4] = np.maximum(below, low)[1::4]
    below = np.nextafter(below, low)
    s[2::8] = np.maximum(below, low)[2::8]
    # Denormal times are zero to some compilers, and are never drawn.
    kept = (s < t) & (t > np.finfo(dtype).tiny)
    assert kept.mean() > 0.9
    # Always as many: JAX compiles once for each shape.
    return np.resize(s[kept], 3000), np.resize(t[kept], 3000)


@pytest.mark.parametrize("dtype", FLOATS)
@both_schedules
@every_mapping
@pytest.mark.parametrize(("k", "min_gap"), [(1, 0.0), (4, 0.0), (12, 0.0), (12, 1e-2)])
def test_definition(name, schedule, k, min_gap, dtype):
    min_time, max_time = RANGES[name]
    rng = np.random.default_rng(2)
    # 1 / eta at 1 is 6e-17 in the reference, and eta infinite.
    t = rng.uniform(min_time + 1e-4, min(max_time, 0.9999), 1000).astype(dtype)
    s = (min_time + rng.uniform(size=1000) * (t - min_time)).astype(dtype)
    s = np.maximum(s, np.array(min_time, dtype))
    # eta(T) of the T that float32 can hold.
    ends = np.array(RANGES[name], dtype).astype("float64")
    with np.errstate(divide="ignore"):
        expected = reference.r(name, schedule, s, t, k, min_gap, *ends)
    r = mapped(name, schedule, s, t, k, min_gap)
    # Roundings of r <= 1 and of the eta, log-SNR or 1 / eta that it comes from.
    atol = {"float32": 5e-7, "float64": 1e-13}[dtype]
    np.testing.assert_allclose(r, expected, rtol=0, atol=atol)
    # Some are s, most are not: both branches are seen.
    assert 0 < np.mean(r > s) < 1


@pytest.mark.parametrize("k", [8, 12, 15])
@both_schedules
def test_eta_decrement_keeps_the_digits_of_the_gap(schedule, k):
    """t - r to the rounding of r, though it is far below that of eta(t)."""
    t = np.linspace(0.01, 0.9, 1000).astype("float32")
    r = mapped("eta_decrement", schedule, np.zeros_like(t), t, k)
    expected = reference.r("eta_decrement", schedule, 0 * t, t, k, 0.0, 0.0, 0.996)
    gap, expected_gap = t.astype("float64") - r, t - expected
    rounding = 1e-7 * t  # r is rounded once and t - r again
    assert np.all(np.abs(gap - expected_gap) <= rounding + 3e-5 * expected_gap)


@pytest.mark.parametrize("k", K)
@both_schedules
@every_mapping
def test_between_s_and_t(name, schedule, k):
    s, t = times("float32", *RANGES[name])
    r = mapped(name, schedule, s, t, k)
    assert np.all(s <= r)
    assert np.all(r < t)


@pytest.mark.parametrize("time_range", [(0.006, 0.994), (0.0, 0.5), (0.2, 0.3)])
@both_schedules
def test_between_s_and_t_on_other_ranges(schedule, time_range):
    s, t = times("float32", *time_range)
    r = mapped("eta_decrement", schedule, s, t, 12, time_range=time_range)
    assert np.all((s <= r) & (r < t))


@both_schedules
@every_mapping
def test_equal_times(name, schedule):
    low, high = np.array(RANGES[name], "float32")
    t = np.concatenate([[low, high], np.linspace(low, high, 998)]).astype("float32")
    t = np.clip(t, low, high)
    assert np.array_equal(mapped(name, schedule, t, t), t)
    assert np.array_equal(mapped(name, schedule, t, t, min_gap=1e-4), t)


@pytest.mark.parametrize("min_gap", [1e-4, 0.01])
@both_schedules
@every_mapping
def test_minimum_gap(name, schedule, min_gap):
    """t - r >= min_gap, unless s is nearer to t than that: then r = s."""
    s, t = times("float32", *RANGES[name])
    r = mapped(name, schedule, s, t, 20, min_gap)
    gap = t.astype("float64") - r
    assert np.all((gap >= min_gap - 6e-8) | (r == s))
    # The gap binds somewhere, and r = s is not all there is.
    assert np.any(np.abs(gap - min_gap) < 1e-6)
    assert np.any(r > s)


@every_mapping
def test_a_later_s_never_moves_r_back(name):
    low, high = RANGES[name]
    t = np.full(1000, 0.5 * (low + high), "float32")
    s = np.linspace(low, t[0], 1000).astype("float32")
    r = mapped(name, "flow_matching", s, t)
    assert np.all(np.diff(r) >= 0)
    assert r[0] > low


@pytest.mark.parametrize("name", ["log_snr_decrement", "inverse_eta_increment"])
def test_positive_min_time_is_needed(name):
    mapping = time_mappings.get(name)
    with pytest.raises(ValueError, match="needs `min_time` > 0") as error:
        mapping.check(schedules.FlowMatching(), 0.0, 0.994)
    assert type(mapping).__name__ in str(error.value)
    assert "min_time=0.0" in str(error.value)
    mapping.check(schedules.FlowMatching(), 0.001, 0.994)


@pytest.mark.parametrize("name", ["eta_decrement", "log_snr_decrement"])
def test_max_time_below_one_is_needed(name):
    mapping = time_mappings.get(name)
    with pytest.raises(ValueError, match="needs `max_time` < 1") as error:
        mapping.check(schedules.FlowMatching(), 0.006, 1.0)
    assert type(mapping).__name__ in str(error.value)
    assert "max_time=1.0" in str(error.value)


@pytest.mark.parametrize("k", [0, -1, float("nan"), float("inf"), "12", None])
@every_mapping
def test_k_is_checked(name, k):
    with pytest.raises(ValueError, match="`k` must be") as error:
        CLASSES[name](k=k)
    assert f"k={k!r}" in str(error.value)


@pytest.mark.parametrize("min_gap", [-1e-4, 1.0, float("nan")])
@every_mapping
def test_min_gap_is_checked(name, min_gap):
    with pytest.raises(ValueError, match=r"`min_gap` must be in \[0, 1\)") as error:
        CLASSES[name](min_gap=min_gap)
    assert f"min_gap={min_gap!r}" in str(error.value)


def test_unknown_names_list_the_known_ones():
    with pytest.raises(ValueError, match="`time_mapping` must be one of") as error:
        time_mappings.get("eta")
    assert ", ".join(map(repr, RANGES)) in str(error.value)
    assert "time_mapping='eta'" in str(error.value)


@every_mapping
def test_serialization(name):
    config = keras.saving.serialize_keras_object(CLASSES[name](k=9, min_gap=1e-3))
    back = keras.saving.deserialize_keras_object(config)
    assert (type(back), back.k, back.min_gap) == (CLASSES[name], 9, 1e-3)


# -- The contract, of these mappings and of a newcomer's


class TestEveryTimeMapping(TimeMappingContract):
    @pytest.fixture(params=RANGES)
    def name(self, request):
        return request.param

    @pytest.fixture
    def instance(self, name):
        return CLASSES[name](k=9)

    @pytest.fixture
    def ends(self, name):
        return RANGES[name]


def test_every_mapping_is_tested():
    tested = set(CLASSES.values())
    assert tested == subclasses_of(time_mappings.TimeMapping, time_mappings)


@keras.saving.register_keras_serializable(package="tests")
class StrideFraction(time_mappings.TimeMapping):
    """r = t - (t - s) / 2^k: the decrement is a fraction of the stride."""

    allows_max_time_one = True

    def earlier(self, schedule, s, t, min_time, max_time):
        return t - (t - s) * 2.0**-self.k


class TestNewTimeMapping(TimeMappingContract):
    time_range = (0.0, 1.0)

    @staticmethod
    def make():
        return StrideFraction(k=3)


@pytest.mark.parametrize("dtype", FLOATS)
def test_a_mapping_may_depend_on_s(dtype):
    s, t = np.array([0.0, 0.1, 0.5], dtype), np.array([0.8, 0.8, 0.9], dtype)
    r = StrideFraction(k=2)(schedules.FlowMatching(), s, t, 0.0, 1.0)
    expected, rtol = [0.6, 0.625, 0.8], 4 * np.finfo(dtype).eps
    np.testing.assert_allclose(ops.convert_to_numpy(r), expected, rtol=rtol)


def test_a_new_mapping_trains():
    check_trains(time_mapping=StrideFraction(k=1))


def test_a_mapping_without_its_method_says_so():
    class Empty(time_mappings.TimeMapping):
        pass

    with pytest.raises(NotImplementedError, match="Empty does not implement"):
        Empty()(schedules.FlowMatching(), 0.1, 0.5, 0.0, 0.9)
