"""Precision, recall, density and coverage against golden numbers and definitions."""

import numpy as np
import pytest
import scipy.spatial

from keras_imm.metrics import (
    DensityCoverage,
    PrecisionRecall,
    density_coverage,
    manifolds,
    precision_recall,
)

pytestmark = pytest.mark.one_backend("NumPy code")


def radii(points, k):
    """scipy's k-th neighbour; the first that it finds is the point."""
    return scipy.spatial.cKDTree(points).query(points, k + 1)[0][:, k]


@pytest.fixture
def sets():
    rng = np.random.default_rng(0)
    return rng.normal(0.5, 0.8, size=(53, 3)), rng.normal(size=(41, 3))


def test_precision_and_recall_equal_the_golden_numbers(golden):
    found = precision_recall(golden["f1"], golden["f2"])
    np.testing.assert_allclose(found, golden["precision_recall_f"][:2], rtol=1e-5)


@pytest.mark.parametrize("chunk", [50, 2**23])
@pytest.mark.parametrize("k", [1, 4])
def test_equal_their_definitions(sets, k, chunk, monkeypatch):
    monkeypatch.setattr(manifolds, "_CHUNK", chunk)
    samples, data = sets
    distances = scipy.spatial.distance.cdist(samples, data)
    inside = distances <= radii(data, k)
    assert precision_recall(samples, data, k) == pytest.approx(
        (
            inside.any(1).mean(),
            (distances <= radii(samples, k)[:, None]).any(0).mean(),
        )
    )
    assert density_coverage(samples, data, k) == pytest.approx(
        (inside.sum() / (k * len(samples)), inside.any(0).mean())
    )


def test_copies_of_data_are_in_its_manifold_and_cover_it():
    data = 1000 + np.random.default_rng(0).normal(size=(30, 64)).astype("float32")
    assert precision_recall(data, data, 1) == (1, 1)
    assert density_coverage(data, data, 1).coverage == 1


def test_equal_points_are_at_distance_zero():
    """The radius of four equal points is 0, and a fifth lies in it."""
    point = np.random.default_rng(0).normal(size=(1, 64)) + 1000
    found = precision_recall(np.repeat(point, 5, 0), np.repeat(point, 4, 0), 3)
    assert found == (1, 1)


def test_sets_far_apart_share_nothing(sets):
    samples, data = sets
    assert precision_recall(samples, data + 100) == (0, 0)
    assert density_coverage(samples, data + 100) == (0, 0)


@pytest.mark.parametrize(
    ("metric", "function"),
    [(PrecisionRecall, precision_recall), (DensityCoverage, density_coverage)],
)
def test_batches_of_two_processes_give_the_same(sets, metric, function):
    samples, data = sets
    first, second = metric(data, k=2), metric(data, k=2)
    first.update(samples[:20])
    second.update(samples[20:])
    first.merge(second)
    assert first.result() == pytest.approx(function(samples, data, 2))


@pytest.mark.parametrize("function", [precision_recall, density_coverage])
@pytest.mark.parametrize(
    ("features", "reference", "k", "message"),
    [
        (np.zeros((9, 2)), np.zeros((9, 3)), 3, "`features`.*3 columns.*Received 2"),
        (np.zeros((3, 2)), np.zeros((9, 2)), 3, "`features`.*at least 4 rows.*3"),
        (np.zeros((9, 2)), np.zeros((3, 2)), 3, "`reference`.*at least 4 rows.*3"),
        (np.zeros((9, 2)), np.zeros((9, 2)), 0, "`k`.*at least 1.*0"),
        (np.full((9, 2), np.nan), np.zeros((9, 2)), 1, "`features`.*finite"),
    ],
)
def test_wrong_input_is_named(function, features, reference, k, message):
    with pytest.raises(ValueError, match=message):
        function(features, reference, k)
