"""Metrics of nearest neighbours: precision, recall, density and coverage."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from keras_imm.metrics.checks import check_count, check_features, check_pair
from keras_imm.metrics.reservoir import FeatureMetric
from keras_imm.validation import check_integer

_CHUNK = 2**23  # distances in memory at once


class Precision(NamedTuple):
    """Shares of samples in the data's manifold, and of data in the samples'."""

    precision: float
    recall: float


class Density(NamedTuple):
    """How densely samples lie among the data, and how much of the data they cover."""

    density: float
    coverage: float


def precision_recall(features: Any, reference: Any, k: int = 3) -> Precision:
    """Improved precision and recall.

    A point is in the manifold of a set if it is at most as far from one of its points
    as that point's k-th nearest neighbour in the set.

    Args:
        features: Features of samples, shape (num_samples, num_features).
        reference: Features of data, shape (num_images, num_features).
        k: Which neighbour; at least 1, and less than the rows of either.

    Returns:
        `(precision, recall)`, both in [0, 1]: the share of samples in the manifold of
        the data, and of data in that of the samples.

    Raises:
        ValueError: If k is out of its range, or the features are not finite or of
            different sizes.

    Example:

    ```python
    real = np.random.default_rng(0).normal(size=(100, 8))
    precision_recall(real[:50], real)  # precision 1.0
    ```

    Reference:
        - [Kynkäänniemi et al., 2019](https://arxiv.org/abs/1904.06991)
    """
    features, reference = _checked(features, reference, k)
    samples_radii, data_radii = _radii(features, k), _radii(reference, k)
    in_data, in_samples = 0, np.zeros(len(reference), bool)
    for start, squared in _distances(features, reference):
        radii = samples_radii[start : start + len(squared), None]
        in_data += (squared <= data_radii).any(axis=1).sum()
        in_samples |= (squared <= radii).any(axis=0)
    return Precision(float(in_data / len(features)), float(in_samples.mean()))


def density_coverage(features: Any, reference: Any, k: int = 5) -> Density:
    """Density and coverage.

    Args:
        features: Features of samples, shape (num_samples, num_features).
        reference: Features of data, shape (num_images, num_features).
        k: Which neighbour; at least 1, and less than the rows of either.

    Returns:
        `(density, coverage)`: the number of balls around data, each as large as reaches
        the k-th nearest neighbour, that a sample lies in, divided by k (1 where samples
        are distributed as the data); and the share of balls that hold a sample.

    Raises:
        ValueError: If k is out of its range, or the features are not finite or of
            different sizes.

    Example:

    ```python
    real = np.random.default_rng(0).normal(size=(100, 8))
    density_coverage(real, real).coverage  # 1.0
    ```

    Reference:
        - [Naeem et al., 2020](https://arxiv.org/abs/2002.09797)
    """
    features, reference = _checked(features, reference, k)
    radii = _radii(reference, k)
    inside, covered = 0, np.zeros(len(reference), bool)
    for _, squared in _distances(features, reference):
        balls = squared < radii
        inside += balls.sum()
        covered |= balls.any(axis=0)
    return Density(float(inside / (k * len(features))), float(covered.mean()))


class _Neighbours(FeatureMetric):
    def __init__(self, reference: Any, k: int, max_samples: int, seed: int):
        super().__init__(max_samples, seed)
        self.reference = check_features(reference, "reference")
        _check_k(k, len(self.reference), "reference")
        self.k = k


class PrecisionRecall(_Neighbours):
    """`precision_recall` of features that come in batches.

    Args:
        reference: Features of data, shape (num_images, num_features).
        k: As in `precision_recall`.
        max_samples: Samples to keep at most, at least 2; of more, a fair sample.
        seed: Integer of at least 0 that decides which.

    Raises:
        ValueError: If an argument is out of its range.

    Example:

    ```python
    metric = keras_imm.metrics.PrecisionRecall(reference.features)
    for images in batches:  # uint8
        metric.update(network.features(images)["2048"])
    metric.result().recall
    ```
    """

    def __init__(
        self, reference: Any, k: int = 3, max_samples: int = 50_000, seed: int = 0
    ):
        super().__init__(reference, k, max_samples, seed)

    def result(self) -> Precision:
        return precision_recall(self.reservoir.features(), self.reference, self.k)


class DensityCoverage(_Neighbours):
    """`density_coverage` of features that come in batches.

    Args:
        reference: Features of data, shape (num_images, num_features).
        k: As in `density_coverage`.
        max_samples: Samples to keep at most, at least 2; of more, a fair sample.
        seed: Integer of at least 0 that decides which.

    Raises:
        ValueError: If an argument is out of its range.

    Example:

    ```python
    metric = keras_imm.metrics.DensityCoverage(reference.features)
    for images in batches:  # uint8
        metric.update(network.features(images)["2048"])
    metric.result().coverage
    ```
    """

    def __init__(
        self, reference: Any, k: int = 5, max_samples: int = 50_000, seed: int = 0
    ):
        super().__init__(reference, k, max_samples, seed)

    def result(self) -> Density:
        return density_coverage(self.reservoir.features(), self.reference, self.k)


def _checked(features, reference, k):
    features, reference = check_pair(features, reference)
    _check_k(k, len(features), "features")
    _check_k(k, len(reference), "reference")
    return features.astype("float64"), reference.astype("float64")


def _check_k(k, count, name):
    check_integer("k", k, at_least=1)
    check_count(count, name, at_least=k + 1)


def _radii(points, k):
    """Squared distance of each point to its k-th nearest neighbour."""
    radii = []
    for start, squared in _distances(points, points):
        rows = np.arange(len(squared))
        squared[rows, start + rows] = np.inf  # a point is no neighbour of its own
        radii.append(np.partition(squared, k - 1, axis=1)[:, k - 1])
    return np.concatenate(radii)


def _distances(a: np.ndarray, b: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """(first row, squared distances of some rows of `a` to all of `b`)."""
    norms = (b**2).sum(axis=1)
    size = max(1, _CHUNK // len(b))
    for start in range(0, len(a), size):
        rows = a[start : start + size]
        sums = (rows**2).sum(axis=1)[:, None] + norms
        squared = sums - 2 * (rows @ b.T)
        # Equal points are at distance 0, not at its rounding.
        squared[squared < 1e-12 * sums] = 0.0
        yield start, squared
