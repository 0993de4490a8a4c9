"""The weighting's closed form against Eq. 13 as printed, in float64."""

import keras
import numpy as np
import pytest
import reference
from backends import FLOATS, dtype_of
from contracts import subclasses_of
from contracts.weighting import WeightingContract
from keras import ops

from keras_imm import schedules, weightings

RTOL = {"float32": 3e-6, "float64": 1e-11}


def weight(weighting, schedule, t):
    w = weighting(schedules.get(schedule), np.zeros_like(t), t)
    assert dtype_of(w) == str(t.dtype)
    return ops.convert_to_numpy(w)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("schedule", reference.SCHEDULES)
@pytest.mark.parametrize(("a", "b"), [(1, 4), (2, 4), (1, 5), (1.5, -2.0)])
def test_equation_13(schedule, a, b, dtype):
    t = [1e-12, 1e-7, 1e-4, 0.006, 0.994, 0.996, 0.9999]
    t = np.concatenate([t, np.linspace(0.001, 0.999, 999)]).astype(dtype)
    expected = reference.weight(schedule, t, a, b)
    actual = weight(weightings.ELBO(a, b), schedule, t)
    np.testing.assert_allclose(actual, expected, rtol=RTOL[dtype])


@pytest.mark.parametrize("schedule", reference.SCHEDULES)
@pytest.mark.parametrize("b", [4, 80, -80])
def test_finite_at_the_ends(schedule, b):
    t = np.array([0.0, 1e-38, 1.0 - 2.0**-23, 1.0], "float32")
    assert np.all(np.isfinite(weight(weightings.ELBO(1, b), schedule, t)))


def test_values_at_the_ends():
    """The limits: 0 at t = 0; at t = 1, for a = 1, that of sigmoid times slope."""
    t = np.array([0.0, 1.0], "float32")
    assert weight(weightings.ELBO(1, 4), "flow_matching", t).tolist() == [0, 1]
    assert weight(weightings.ELBO(2, 4), "flow_matching", t).tolist() == [0, 0]
    cosine = weight(weightings.ELBO(1, 4), "cosine", t)
    np.testing.assert_allclose(cosine, [0, np.pi / 2], rtol=1e-6)
    assert weight(weightings.ELBO(2, 4), "cosine", t).tolist() == [0, 0]


def test_uniform():
    t = np.array([0.0, 0.3, 1.0], "float32")
    assert weight(weightings.Uniform(), "cosine", t).tolist() == [1, 1, 1]


@pytest.mark.parametrize("a", [0.5, -1, float("nan"), float("inf")])
def test_a_is_checked(a):
    with pytest.raises(ValueError, match="`a` must be at least 1") as error:
        weightings.ELBO(a=a)
    assert f"a={a!r}" in str(error.value)


@pytest.mark.parametrize("b", [float("nan"), float("inf"), 1000])
def test_b_is_checked(b):
    with pytest.raises(ValueError, match="`b` must be in") as error:
        weightings.ELBO(b=b)
    assert f"b={b!r}" in str(error.value)


def test_unknown_names_list_the_known_ones():
    with pytest.raises(ValueError, match="`weighting` must be one of") as error:
        weightings.get("snr")
    assert "'elbo', 'uniform'" in str(error.value)
    assert "weighting='snr'" in str(error.value)


def test_serialization():
    config = keras.saving.serialize_keras_object(weightings.ELBO(a=2, b=5))
    back = keras.saving.deserialize_keras_object(config)
    assert (type(back), back.a, back.b) == (weightings.ELBO, 2, 5)


# -- The contract, of these weightings and of a newcomer's

EVERY = {
    "elbo": weightings.ELBO(),
    "elbo_2_5": weightings.ELBO(a=2, b=5),
    "uniform": weightings.Uniform(),
}


class TestEveryWeighting(WeightingContract):
    @pytest.fixture(params=EVERY.values(), ids=EVERY)
    def instance(self, request):
        return request.param


def test_every_weighting_is_tested():
    tested = {type(weighting) for weighting in EVERY.values()}
    assert tested == subclasses_of(weightings.Weighting, weightings)


@keras.saving.register_keras_serializable(package="tests")
class SignalShare(weightings.Weighting):
    """alpha^2 / (alpha^2 + sigma^2) at t."""

    def __call__(self, schedule, s, t):
        return ops.square(schedule.alpha(t)) / schedule.squared_norm(t)


class TestNewWeighting(WeightingContract):
    make = SignalShare


def test_a_weighting_without_its_method_says_so():
    class Empty(weightings.Weighting):
        pass

    with pytest.raises(NotImplementedError, match="Empty does not implement"):
        Empty()(schedules.FlowMatching(), 0.1, 0.5)
