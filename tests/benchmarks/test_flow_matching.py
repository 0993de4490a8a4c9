"""The flow-matching baseline against what its equations say."""

import pathlib
import sys

import keras
import numpy as np
import pytest
from keras import ops

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "benchmarks"))

from flow_matching import FlowMatching, NoisedBatches

SIGMA = 0.5


class Batches(keras.utils.PyDataset):
    def __init__(self, images, labels):
        super().__init__()
        self.images, self.labels = images, labels

    def __len__(self):
        return 2

    def __getitem__(self, step):
        return self.images, self.labels


@pytest.fixture
def noised():
    rng = np.random.default_rng(0)
    images = rng.normal(size=(4096, 2, 2, 1)).astype("float32")
    labels = rng.integers(3, size=4096).astype("int32")
    return NoisedBatches(Batches(images, labels), 3, SIGMA, 0.25, seed=0)


def test_a_batch_is_the_path_and_its_velocity(noised):
    (x_t, t, labels), velocity = noised[0]
    images, given = noised.batches[0]
    t = t.reshape(-1, 1, 1, 1)
    # On the line from x at t = 0 to ε at t = 1, at constant velocity.
    np.testing.assert_allclose(x_t - t * velocity, images, atol=1e-5)
    noise = x_t + (1 - t) * velocity
    assert noise.std() == pytest.approx(SIGMA, rel=0.02)
    assert noise.mean() == pytest.approx(0, abs=0.02)
    assert abs(np.corrcoef(noise.ravel(), images.ravel())[0, 1]) < 0.03
    assert 0 <= t.min() < 0.01 and 0.99 < t.max() < 1
    assert t.mean() == pytest.approx(0.5, abs=0.02)
    dropped = labels == 3
    assert dropped.mean() == pytest.approx(0.25, abs=0.03)
    np.testing.assert_array_equal(labels[~dropped], given[~dropped])
    assert x_t.dtype == velocity.dtype == np.float32 and labels.dtype == np.int32


def test_noise_is_fresh_at_each_step_and_epoch_and_repeats_with_the_seed(noised):
    first, second = noised[0][1], noised[1][1]
    np.testing.assert_array_equal(first, noised[0][1])
    noised.on_epoch_end()
    third = noised[0][1]
    assert (
        (first != second).any() and (first != third).any() and (second != third).any()
    )


class Probe(keras.Model):
    """A network that returns what it was given, as asked."""

    num_classes = 3
    image_shape = (2, 2, 1)

    def __init__(self, output):
        super().__init__()
        self.output_of = output

    def call(self, inputs, training=None):
        return self.output_of(*inputs)


def test_the_network_is_scaled_as_in_imm():
    """c_in(t) x_t has the variance of one where x and ε have std sigma_data."""
    model = FlowMatching(Probe(lambda x, c_t, c_s, labels: x), SIGMA, 1000.0)
    x = np.full((3, 2, 2, 1), 0.3, "float32")
    t = np.array([0, 0.5, 1], "float32")
    velocity = ops.convert_to_numpy(model((x, t, np.zeros(3, "int32"))))
    expected = 0.3 / np.sqrt((1 - t) ** 2 + t**2)
    np.testing.assert_allclose(velocity[:, 0, 0, 0], expected, rtol=1e-6)

    def times(x, c_t, c_s, labels):
        return ops.ones_like(x) * ops.reshape(c_t + 2 * c_s, (-1, 1, 1, 1))

    model = FlowMatching(Probe(times), SIGMA, 1000.0)
    seen = ops.convert_to_numpy(model((x, t, np.zeros(3, "int32"))))[:, 0, 0, 0]
    np.testing.assert_allclose(seen, SIGMA * 3000 * t)


def test_sampling_follows_the_velocity_from_noise_to_data():
    """A velocity of c = label at every point and time: exact for any step count."""

    def velocity(x, c_t, c_s, labels):
        return ops.ones_like(x) * ops.reshape(
            ops.cast(labels, "float32"), (-1, 1, 1, 1)
        )

    model = FlowMatching(Probe(velocity), SIGMA)
    labels = np.arange(3).repeat(1000)
    one, four = (model.generate(labels, n, seed=1) for n in (1, 4))
    np.testing.assert_allclose(one, four, atol=1e-5)
    groups = one.reshape(3, -1)
    np.testing.assert_allclose(groups.mean(1), -SIGMA * np.arange(3), atol=0.03)
    np.testing.assert_allclose(groups.std(1), SIGMA, rtol=0.05)


def test_euler_steps_are_equal_and_see_the_time_they_start_from():
    """dx/dt = t / sigma_data · sigma_data: the sum of n equal steps is known."""
    model = FlowMatching(
        Probe(lambda x, c_t, c_s, labels: ops.ones_like(x) * c_t[:, None, None, None]),
        SIGMA,
        time_scale=1.0,
    )
    labels = np.zeros(5, "int32")
    start = model.generate(labels, 1, seed=2) + SIGMA * 1.0
    for n in (1, 2, 5):
        moved = start - model.generate(labels, n, seed=2)
        np.testing.assert_allclose(moved, SIGMA * (n + 1) / (2 * n), rtol=1e-5)
