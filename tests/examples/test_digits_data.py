"""The digits, their batches and the two measures of quality."""

import pathlib
import sys

import numpy as np
import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "examples"))

import digits_data


@pytest.fixture(scope="module")
def data():
    return digits_data.load()


def test_all_digits_in_the_model_s_range(data):
    images, labels = data
    assert images.shape == (1797, 8, 8, 1) and images.dtype == np.float32
    assert labels.shape == (1797,) and set(labels) == set(range(10))
    assert images.mean() == pytest.approx(0, abs=1e-5)
    assert images.std() == pytest.approx(0.5, rel=1e-5)


def test_a_pass_shows_each_row_once_and_the_next_in_another_order():
    rows = np.arange(11)
    batches = digits_data.Batches((rows, rows * 2), 5, steps_per_epoch=2, seed=0)
    passes = []
    for _ in range(3):
        first, second = batches[0], batches[1]
        np.testing.assert_array_equal(first[1], 2 * first[0])
        passes.append(np.concatenate([first[0], second[0]]).tolist())
        assert len(set(passes[-1])) == 10
        batches.on_epoch_end()
    assert passes[0] != passes[1] != passes[2]


def test_passes_go_on_across_epochs():
    rows = np.arange(12)
    short = digits_data.Batches((rows,), 4, steps_per_epoch=2, seed=1)
    long = digits_data.Batches((rows,), 4, steps_per_epoch=6, seed=1)
    seen = []
    for _ in range(3):
        seen += [short[0][0], short[1][0]]
        short.on_epoch_end()
    np.testing.assert_array_equal(seen, [long[i][0] for i in range(6)])
    other = digits_data.Batches((rows,), 4, steps_per_epoch=6, seed=2)
    assert any((other[i][0] != long[i][0]).any() for i in range(6))


def test_real_digits_are_good_and_noise_is_not(data):
    images, labels = data
    quality = digits_data.Quality(images, labels)
    assert quality.frechet(images, labels) == pytest.approx(0, abs=1e-9)
    assert quality.agreement(images, labels) > 0.99
    noise = 0.5 * np.random.default_rng(0).standard_normal(images.shape)
    # Pixels are correlated and noise is not: about the same variance, another shape.
    assert quality.frechet(noise, labels) > 5
    assert quality.agreement(noise, labels) < 0.3
    assert quality.agreement(images, (labels + 1) % 10) < 0.01
