"""Noise of numbered samples and of seeds."""

import numpy as np
import pytest

from keras_imm import samplers

SHAPE = (4, 4, 3)


def test_noise_and_label_depend_on_seed_and_number_alone():
    labels, noise = samplers.numbered_draws(3, [7, 2], 2, SHAPE, 3)
    assert labels.dtype == np.int32 and noise.dtype == np.float32
    for place, index in enumerate((7, 2)):
        sequence = np.random.SeedSequence((3, index))
        rng = np.random.Generator(np.random.Philox(sequence))
        assert labels[place] == rng.integers(3)
        expected = rng.standard_normal((2, *SHAPE), "float32")
        np.testing.assert_array_equal(noise[:, place], expected)
    for seed, index in ((4, 7), (3, 8)):
        other = samplers.numbered_draws(seed, [index], 2, SHAPE, 3)[1]
        assert not np.any(other[:, 0] == noise[:, 0])


def test_more_draws_leave_the_first_ones():
    few = samplers.numbered_draws(0, range(5), 1, SHAPE, 10)
    many = samplers.numbered_draws(0, range(5), 4, SHAPE, 10)
    np.testing.assert_array_equal(few[0], many[0])
    np.testing.assert_array_equal(few[1][0], many[1][0])
    few, many = (samplers.standard_noise(0, draws, 5, SHAPE) for draws in (1, 4))
    np.testing.assert_array_equal(few[0], many[0])


def test_labels_are_uniform_and_noise_is_normal():
    labels, noise = samplers.numbered_draws(0, range(3000), 1, (2, 2, 3), 3)
    # Binomial(3000, 1/3): five standard deviations are 129.
    counts = np.bincount(labels)
    assert len(counts) == 3 and np.abs(counts - 1000).max() < 129
    assert abs(noise.mean()) < 5 / np.sqrt(noise.size)
    assert noise.std() == pytest.approx(1, abs=0.02)


def test_without_classes_the_noise_is_the_same_and_the_labels_0():
    labels, noise = samplers.numbered_draws(0, range(4), 2, SHAPE, 0)
    one_class = samplers.numbered_draws(0, range(4), 2, SHAPE, 1)
    assert not labels.any()
    np.testing.assert_array_equal(noise, one_class[1])


def test_noise_of_a_seed():
    noise = samplers.standard_noise(5, 3, 200, SHAPE)
    assert noise.shape == (3, 200, *SHAPE) and noise.dtype == np.float32
    expected = np.random.default_rng(5).standard_normal((3, 200, *SHAPE), "float32")
    np.testing.assert_array_equal(noise, expected)
    assert np.abs(np.corrcoef(noise.reshape(3, -1)) - np.eye(3)).max() < 0.05
    assert not np.any(samplers.standard_noise(6, 3, 200, SHAPE) == noise)
