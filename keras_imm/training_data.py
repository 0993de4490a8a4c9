"""What data must be like to train or evaluate a model, as far as a host can see it."""

import math
import numbers
import warnings
from typing import Any

import numpy as np
from keras import ops

_ROWS = 256  # of arrays that the scale of the data is taken from
# Standard deviations, in units of `sigma_data`, without a warning.
SCALES = (0.25, 4.0)


class DataChecks:
    """Checks batches before they are handed to a step, whose backend drops assertions.

    Args:
        num_classes: Labels are in [0, num_classes); 0 for a model without labels.
        sigma_data: Standard deviation that the data should have.
        warned_of: Standard deviations that were warned of, to which others are added.
            Data within a factor of 2 of one of them are not warned of again.
    """

    def __init__(
        self, num_classes: int, sigma_data: float, warned_of: list | None = None
    ):
        self.num_classes = num_classes
        self.sigma_data = sigma_data
        self._warned_of = [] if warned_of is None else warned_of
        self._has_seen_data = False

    def check_classes(self, data: Any) -> None:
        """Raises ValueError if a data set says that it has other classes.

        Where they have no names, their number is that of the largest label, and the
        data may lack the last of the model's classes.
        """
        count = getattr(data, "num_classes", None)
        if not isinstance(count, numbers.Integral) or not self.num_classes:
            return
        is_named = getattr(data, "class_names", None) is not None
        if count > self.num_classes or (is_named and count != self.num_classes):
            raise ValueError(
                f"The data set has {count} classes, the backbone "
                f"num_classes={self.num_classes}. Received: data set {data!r}"
            )

    def __call__(self, batch: Any) -> None:
        """Checks x, or (x, labels), of a batch.

        Raises:
            ValueError: If a label is out of range, or the batch is something else.
        """
        x, labels = x_and_labels(batch)
        self.check_labels(labels)
        if not self._has_seen_data:
            self.check_scale(x)

    def check_structure(self, batch: Any) -> None:
        """Raises ValueError unless a batch, or what describes one, is x or (x, labels).

        Args:
            batch: A structure of anything with a shape, in which None stands for none.
        """
        x_and_labels(batch)

    def check_labels(self, labels: Any) -> None:
        """Raises ValueError unless labels, where there are any, are the model's.

        Other numbers than integers are left to the step, which has words for them.
        """
        if labels is None or not self.num_classes:
            return
        for part in _on_this_host(labels):
            if part.dtype.kind not in "biufc" or not part.ndim:
                raise ValueError(
                    "Labels must be integers of shape (batch,). Received: shape "
                    f"{part.shape}, dtype {part.dtype}"
                )
            if part.dtype.kind not in "iu" or not part.size:
                continue
            lowest, highest = part.min(), part.max()
            if lowest < 0 or highest >= self.num_classes:
                outside = lowest if lowest < 0 else highest
                raise ValueError(
                    f"Labels must be in [0, {self.num_classes}), as the backbone has "
                    f"num_classes={self.num_classes}. Received: label {outside}"
                )

    def check_scale(self, x: Any) -> None:
        """Warns, of the first data alone, if they are not scaled as the model is told.

        Args:
            x: Data of shape (batch, ...).
        """
        self._has_seen_data = True
        part = _on_this_host(x)[0][:_ROWS]
        if part.dtype.kind != "f" or part.size < 2:
            return
        part = part.astype("float64")
        deviation = part.std()
        low, high = (self.sigma_data * scale for scale in SCALES)
        if not math.isfinite(deviation) or deviation == 0:
            return  # of one value, as toys are, or what training will find
        if low <= deviation <= high and part.min() < 0:
            return
        if any(0.5 <= deviation / other <= 2.0 for other in self._warned_of):
            return
        self._warned_of.append(float(deviation))
        warnings.warn(
            f"The first batch is in [{part.min():.3g}, {part.max():.3g}], with a "
            f"standard deviation of {deviation:.3g}. Data must be centred, with a "
            f"standard deviation of about `sigma_data`={self.sigma_data}: images of "
            "bytes are x / 127.5 - 1.",
            stacklevel=2,
        )


def x_and_labels(batch: Any) -> tuple[Any, Any]:
    """x, and the labels or None.

    Raises:
        ValueError: If it is no batch of x or (x, labels).
    """
    if not isinstance(batch, (tuple, list)):
        batch = (batch,)
    parts = [*batch, None, None][:3]
    arrays = [part for part in parts[:2] if part is not None]
    is_arrays = all(hasattr(part, "shape") for part in arrays)
    if len(batch) > 3 or not arrays or not is_arrays:
        kinds = ", ".join(_described(part) for part in batch if part is not None)
        raise ValueError(
            "Batches must be x or (x, labels), arrays or tensors: map others to these. "
            f"Received: {kinds}"
        )
    if parts[2] is not None:
        raise ValueError("No sample weights are taken; data is x or (x, labels).")
    return parts[0], parts[1]


def _described(part: Any) -> str:
    kind = type(part).__name__
    return f"{kind} with {sorted(part)}" if isinstance(part, dict) else kind


def _on_this_host(values: Any) -> list[np.ndarray]:
    """An array, or the parts that this host has of one that several share."""
    if getattr(values, "is_fully_addressable", True):
        return [np.asarray(ops.convert_to_numpy(values))]
    return [np.asarray(shard.data) for shard in values.addressable_shards]
