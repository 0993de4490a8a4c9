"""Features kept for metrics that need them one by one."""

from typing import Any

import numpy as np

from keras_imm.metrics.checks import check_columns, check_features
from keras_imm.validation import check_integer


class FeatureReservoir:
    """All features so far, or a fair sample of them where they are too many.

    A row's number and the seed decide its rank, and the rows of lowest rank stay: the
    same ones in whichever batches, order and processes the rows came.

    Args:
        max_samples: Rows to keep at most, at least 2.
        seed: Integer of at least 0.

    Attributes:
        count: Rows so far, kept or not.
    """

    def __init__(self, max_samples: int = 50_000, seed: int = 0):
        check_integer("max_samples", max_samples, at_least=2)
        check_integer("seed", seed, at_least=0)
        self.max_samples = int(max_samples)
        self.seed = int(seed)
        self.count = 0
        self._parts: list[tuple[np.ndarray, np.ndarray]] = []  # indices, rows
        self._held = 0

    def update(self, features: Any, indices: Any = None) -> None:
        """Adds rows.

        Args:
            features: Array of shape (num_samples, num_features).
            indices: Integers of at least 0, the number of each row among all of them.
                Give them where several processes share the rows. Default: the numbers
                after those so far.

        Raises:
            ValueError: If the features are not finite, or not as many as those before.
        """
        features = check_features(features)
        if self._parts:
            size = self._parts[0][1].shape[1]
            check_columns(features, size, "features", "those before had")
        if indices is None:
            indices = self.count + np.arange(len(features))
        self._add(_check_indices(indices, len(features)), features.copy())
        self.count += len(features)

    def merge(self, other: "FeatureReservoir") -> None:
        """Adds the rows of another one, of the same `max_samples` and `seed`."""
        mine, theirs = (self.max_samples, self.seed), (other.max_samples, other.seed)
        if mine != theirs:
            raise ValueError(
                f"`other` must have max_samples={mine[0]} and seed={mine[1]}. "
                f"Received: max_samples={theirs[0]}, seed={theirs[1]}"
            )
        for indices, rows in other._parts:
            if self._parts:
                size = self._parts[0][1].shape[1]
                check_columns(rows, size, "other", "this one has")
            self._add(indices, rows)
        self.count += other.count

    def features(self) -> np.ndarray:
        """The rows that were kept in the order of their numbers.

        Returns:
            Array of shape (min(count, max_samples), num_features).
        """
        return self._compact()[1]

    def state(self) -> dict[str, np.ndarray]:
        """Arrays from which `set_state` makes the same again, elsewhere."""
        indices, rows = self._compact()
        return {"count": np.array(self.count), "indices": indices, "rows": rows}

    def set_state(self, state: dict[str, np.ndarray]) -> None:
        """Takes over what `state` returned."""
        self.count = int(state["count"])
        self._parts, self._held = [], 0
        if len(state["rows"]):
            self._add(np.asarray(state["indices"]), np.asarray(state["rows"]))

    def _add(self, indices, rows):
        self._parts.append((indices, rows))
        self._held += len(rows)
        if self._held >= 2 * self.max_samples:
            self._compact()

    def _compact(self):
        if not self._parts:
            return np.zeros(0, np.int64), np.zeros((0, 0), np.float32)
        indices = np.concatenate([part[0] for part in self._parts])
        rows = np.concatenate([part[1] for part in self._parts])
        order = np.argsort(indices, kind="stable")
        if len(order) > self.max_samples:
            ranks = _ranks(indices[order], self.seed)
            kept = np.argsort(ranks, kind="stable")[: self.max_samples]
            order = order[np.sort(kept)]
        if len(self._parts) > 1 or len(order) < len(rows):
            self._parts = [(indices[order], rows[order])]
            self._held = len(order)
        return self._parts[0]


class FeatureMetric:
    """A metric that keeps the features of samples and computes once they are all there.

    Subclasses implement `result`.

    Args:
        max_samples: Samples to keep at most, at least 2; of more, a fair sample.
        seed: Integer of at least 0 that decides which.
    """

    def __init__(self, max_samples: int = 50_000, seed: int = 0):
        self.reservoir = FeatureReservoir(max_samples, seed)

    def update(self, features: Any, indices: Any = None) -> None:
        """Adds samples.

        Args:
            features: Array of shape (num_samples, num_features).
            indices: Integers, the number of each sample among all. Give them where
                several processes share the samples. Default: in the order given.

        Raises:
            ValueError: If they are not finite, or not of the size of those before.
        """
        self.reservoir.update(features, indices)

    def merge(self, other: "FeatureMetric") -> None:
        """Adds what another one, in another process, was given."""
        self.reservoir.merge(other.reservoir)

    def state(self) -> dict[str, np.ndarray]:
        """Arrays from which `set_state` makes the same again, elsewhere."""
        return self.reservoir.state()

    def set_state(self, state: dict[str, np.ndarray]) -> None:
        """Takes over what `state` returned."""
        self.reservoir.set_state(state)

    def result(self) -> Any:
        """The metric of all samples so far.

        Raises:
            ValueError: If there are too few.
        """
        raise NotImplementedError


def _ranks(indices, seed):
    """A number in [0, 2^64) for each index, as if drawn for it (splitmix64)."""
    start = np.random.SeedSequence(seed).generate_state(1, np.uint64)[0]
    x = start + indices.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _check_indices(indices, count):
    indices = np.asarray(indices)
    integers = np.issubdtype(indices.dtype, np.integer)
    if indices.shape != (count,) or not integers or indices.min() < 0:
        raise ValueError(
            f"`indices` must be {count} integers of at least 0, one for each row. "
            f"Received: shape {indices.shape}, dtype {indices.dtype}"
        )
    return indices.astype(np.int64)
