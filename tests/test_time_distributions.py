"""Distributions of times against those they are named after."""

import keras
import pytest
import scipy.special
import scipy.stats
from contracts import subclasses_of
from contracts.time_distribution import TimeDistributionContract
from keras import ops

from keras_imm import time_distributions
from keras_imm.precision import minimum

INSTANCES = {
    "uniform": time_distributions.Uniform(),
    "logit_normal": time_distributions.LogitNormal(),
    "logit_normal_wide": time_distributions.LogitNormal(mean=0.5, std=2.0),
}


def pairs(times, count=4096, seed=0):
    seed = keras.random.SeedGenerator(seed)
    drawn = times.sample_pairs((count,), 0.0, 1.0, seed)
    return [ops.convert_to_numpy(time).astype("float64") for time in drawn]


def single(times, count=4096, seed=0):
    seed = keras.random.SeedGenerator(seed)
    return ops.convert_to_numpy(times.sample((count,), 0.0, 1.0, seed)).astype(
        "float64"
    )


@pytest.mark.parametrize(("mean", "std"), [(-0.4, 1.0), (0.5, 2.0)])
def test_logit_normal(mean, std):
    times = time_distributions.LogitNormal(mean, std)
    normal = (scipy.special.logit(single(times)) - mean) / std
    assert scipy.stats.kstest(normal, "norm").pvalue > 1e-3


def test_pairs_are_the_smaller_and_the_larger_of_two_draws():
    times = time_distributions.LogitNormal()
    s, t = pairs(times)
    share = scipy.stats.norm(-0.4, 1.0).cdf
    low, high = (share(scipy.special.logit(time)) for time in (s, t))
    # Of two uniform draws the larger has the distribution function u^2.
    assert scipy.stats.kstest(high**2, "uniform").pvalue > 1e-3
    assert scipy.stats.kstest((1 - low) ** 2, "uniform").pvalue > 1e-3


def test_uniform_pairs_are_those_of_the_paper():
    """t ~ U(0, 1), s | t ~ U(0, t)."""
    s, t = pairs(time_distributions.Uniform())
    for uniform in (t, s / t):
        assert scipy.stats.kstest(uniform, "uniform").pvalue > 1e-3


@pytest.mark.parametrize("std", [0, -1.0, float("inf"), None])
def test_std_is_checked(std):
    with pytest.raises(ValueError, match="`std` must be") as error:
        time_distributions.LogitNormal(std=std)
    assert f"std={std!r}" in str(error.value)


def test_mean_is_checked():
    with pytest.raises(ValueError, match="`mean` must be a finite number"):
        time_distributions.LogitNormal(mean=float("nan"))


def test_get():
    assert isinstance(time_distributions.get("uniform"), time_distributions.Uniform)
    logit_normal = time_distributions.get("logit_normal")
    assert logit_normal.get_config() == {"mean": -0.4, "std": 1.0}
    assert time_distributions.get(logit_normal) is logit_normal
    with pytest.raises(ValueError, match="`times` must be one of 'uniform'"):
        time_distributions.get("cosine")


# -- The contract, of these distributions and of a newcomer's


def test_every_distribution_is_tested():
    tested = {type(instance) for instance in INSTANCES.values()}
    base = time_distributions.TimeDistribution
    assert tested == subclasses_of(base, time_distributions)


class TestOwnDistributions(TimeDistributionContract):
    @pytest.fixture(params=INSTANCES)
    def instance(self, request):
        return INSTANCES[request.param]


@keras.saving.register_keras_serializable(package="newcomers")
class Early(time_distributions.TimeDistribution):
    """The smaller of two uniform times."""

    def sample(self, shape, min_time, max_time, seed, dtype="float32"):
        uniform = time_distributions.Uniform()
        draws = [uniform.sample(shape, min_time, max_time, seed, dtype) for _ in "ab"]
        return minimum(*draws)


class TestNewcomer(TimeDistributionContract):
    make = Early


def test_a_distribution_without_sample_says_so():
    class Empty(time_distributions.TimeDistribution):
        pass

    with pytest.raises(NotImplementedError, match="Empty does not implement `sample`"):
        Empty().sample((1,), 0.0, 1.0, keras.random.SeedGenerator(0))
