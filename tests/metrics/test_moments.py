"""Streaming moments and Fréchet distances against NumPy on all samples at once."""

import numpy as np
import pytest

from keras_imm.metrics import FrechetDistance, Moments, frechet_distance

pytestmark = pytest.mark.one_backend("NumPy code")


def stream(metric, features, sizes):
    for batch in np.split(features, np.cumsum(sizes)[:-1]):
        metric.update(batch)
    return metric


@pytest.fixture
def features():
    rng = np.random.default_rng(0)
    return rng.normal(size=(90, 6)) @ rng.normal(size=(6, 6)) + 1e4


def test_batches_give_mean_and_covariance(features):
    """One row at a time too, and far from 0, where sums of squares would fail."""
    moments = stream(Moments(), features, [1, 50, 1, 38])
    np.testing.assert_allclose(moments.mean, features.mean(0), rtol=1e-14)
    np.testing.assert_allclose(
        moments.covariance(), np.cov(features, rowvar=False), rtol=1e-9, atol=1e-9
    )


def test_merging_equals_one_stream_also_with_an_empty_one(features):
    first, second = Moments(), stream(Moments(), features[40:], [50])
    first.merge(second)
    first.merge(Moments())
    first.merge(stream(Moments(), features[:40], [40]))
    expected = np.cov(features, rowvar=False)
    np.testing.assert_allclose(first.covariance(), expected, rtol=1e-9, atol=1e-9)
    assert first.count == 90 and second.count == 50


def test_a_state_goes_on_elsewhere(features, tmp_path):
    np.savez(tmp_path / "state.npz", **stream(Moments(), features[:40], [40]).state())
    moments = Moments()
    moments.set_state(np.load(tmp_path / "state.npz"))
    stream(moments, features[40:], [50])
    whole = stream(Moments(), features, [40, 50])
    np.testing.assert_array_equal(moments.covariance(), whole.covariance())
    empty = Moments()
    empty.set_state(Moments().state())
    empty.update(features)
    np.testing.assert_allclose(empty.mean, features.mean(0))


def test_the_golden_fid(golden):
    data = golden["f2"].astype("float64")
    metric = FrechetDistance(data.mean(0), np.cov(data, rowvar=False))
    other = FrechetDistance(metric.mean, np.cov(data, rowvar=False))
    metric.update(golden["f1"][:100])
    other.update(golden["f1"][100:])
    metric.merge(other)
    assert metric.result() == pytest.approx(float(golden["fid"]), rel=1e-6)


@pytest.mark.parametrize("count", [2, 20, 150])
def test_fewer_samples_than_features_cost_no_accuracy(count):
    """Against the distance from the samples, which forms no covariance."""
    rng = np.random.default_rng(count)
    a, b = rng.normal(size=(2, count, 200)) * np.exp(2 * rng.normal(size=200))
    metric = FrechetDistance(b.mean(0), np.cov(b, rowvar=False))
    metric.update(a)
    assert metric.result() == pytest.approx(frechet_distance(a, b), rel=1e-10)


def test_wrong_input_is_named():
    metric = FrechetDistance(np.zeros(3), np.eye(3))
    with pytest.raises(ValueError, match=r"`features`.*two rows.*0"):
        metric.result()
    with pytest.raises(ValueError, match=r"3 columns, as the reference has.*2"):
        metric.update(np.zeros((4, 2)))
    with pytest.raises(ValueError, match=r"`features`.*finite"):
        metric.update(np.full((4, 3), np.nan))
    metric.update(np.zeros((1, 3)))
    with pytest.raises(ValueError, match=r"`features`.*two rows.*1"):
        metric.result()
    with pytest.raises(ValueError, match=r"`covariance`.*\(3, 3\).*\(2, 2\)"):
        FrechetDistance(np.zeros(3), np.eye(2))
    moments = Moments()
    moments.update(np.zeros((4, 2)))
    with pytest.raises(ValueError, match=r"2 columns, as those before had.*3"):
        moments.update(np.zeros((4, 3)))
