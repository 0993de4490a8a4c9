"""Parameterizations against float64 NumPy and against published flow maps."""

import json
import pathlib

import keras
import numpy as np
import pytest
import reference
from backends import FLOATS, dtype_of
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


@pytest.mark.parametrize("name", reference.PARAMETERIZATIONS)
def test_serialization(name):
    parameterization = parameterizations.get(name)
    config = keras.saving.serialize_keras_object(parameterization)
    back = keras.saving.deserialize_keras_object(config)
    assert type(back) is type(parameterization)
