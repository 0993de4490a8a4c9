"""What every distribution of times must do."""

import keras
import numpy as np
import pytest
from backends import FLOATS, dtype_of
from keras import ops

from contracts.serializable import SerializableContract
from keras_imm import time_distributions

RANGES = [(0.0, 0.994), (0.006, 0.994), (0.2, 0.3), (0.0, 1.0)]
SHAPE = (4096,)


def numpy(x):
    return ops.convert_to_numpy(x)


class TimeDistributionContract(SerializableContract):
    """`make()` returns a `keras_imm.time_distributions.TimeDistribution`."""

    @pytest.fixture
    def times(self, instance):
        assert isinstance(instance, time_distributions.TimeDistribution)
        return instance

    @pytest.mark.parametrize("dtype", FLOATS)
    @pytest.mark.parametrize("limits", RANGES)
    def test_shape_dtype_and_range(self, times, limits, dtype):
        seed = keras.random.SeedGenerator(0)
        t = times.sample(SHAPE, *limits, seed, dtype)
        s, later = times.sample_pairs(SHAPE, *limits, seed, dtype)
        low, high = np.array(limits, dtype)
        for time in (t, s, later):
            assert dtype_of(time) == dtype
            assert tuple(time.shape) == SHAPE
            assert np.all((numpy(time) >= low) & (numpy(time) <= high))
        assert np.all(numpy(s) <= numpy(later))
        assert np.mean(numpy(s) < numpy(later)) > 0.3

    def test_draws_follow_the_seed(self, times):
        def draw(seed):
            seed = keras.random.SeedGenerator(seed)
            pairs = [times.sample_pairs(SHAPE, 0.0, 1.0, seed) for _ in range(2)]
            return [numpy(time) for pair in pairs for time in pair]

        first, again, other = draw(0), draw(0), draw(1)
        for a, b, c in zip(first, again, other, strict=True):
            np.testing.assert_array_equal(a, b)
            assert np.any(a != c)
        assert np.any(first[0] != first[2])

    def test_an_integer_seed_is_refused(self, times):
        with pytest.raises(ValueError, match="`seed` must be a SeedGenerator"):
            times.sample(SHAPE, 0.0, 1.0, 0)
