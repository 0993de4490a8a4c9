"""Mean and covariance of samples that come in batches."""

from typing import Any

import numpy as np

from keras_imm.metrics.checks import check_columns, check_count, check_features


class Moments:
    """Mean and covariance in float64, in memory that does not grow with the samples.

    Batches are joined by their means and scatters about them, never by sums of squares,
    so that a mean far from 0 costs no digits (Chan, Golub and LeVeque, 1983).

    Attributes:
        count: Samples so far.
        mean: Their mean, shape (num_features,); None before the first.
    """

    def __init__(self):
        self.count = 0
        self.mean: np.ndarray | None = None
        self._scatter: np.ndarray | None = None

    def update(self, features: Any) -> None:
        """Adds samples, shape (num_samples, num_features)."""
        features = check_features(features).astype(np.float64)
        mean = features.mean(axis=0)
        centred = features - mean
        self._add(len(features), mean, centred.T @ centred)

    def merge(self, other: "Moments") -> None:
        """Adds the samples of another one."""
        if other.count:
            self._add(other.count, other.mean, other._scatter)

    def covariance(self) -> np.ndarray:
        """Unbiased covariance, shape (num_features, num_features).

        Raises:
            ValueError: If there are fewer than two samples.
        """
        check_count(self.count)
        return self._scatter / (self.count - 1)

    def state(self) -> dict[str, np.ndarray]:
        """Count, mean and scatter as arrays."""
        empty = np.zeros(0)
        return {
            "count": np.array(self.count),
            "mean": empty if self.mean is None else self.mean,
            "scatter": empty if self._scatter is None else self._scatter,
        }

    def set_state(self, state: dict[str, np.ndarray]) -> None:
        """Takes over what `state` returned."""
        self.count = int(state["count"])
        self.mean = np.array(state["mean"]) if self.count else None
        self._scatter = np.array(state["scatter"]) if self.count else None

    def _add(self, count, mean, scatter):
        if not self.count:
            self.count, self.mean, self._scatter = count, mean.copy(), scatter.copy()
            return
        check_columns(mean[None], self.mean.size, "features", "those before had")
        total = self.count + count
        difference = mean - self.mean
        self.mean = self.mean + difference * (count / total)
        self._scatter = self._scatter + scatter
        self._scatter += np.outer(difference, difference * (self.count * count / total))
        self.count = total
