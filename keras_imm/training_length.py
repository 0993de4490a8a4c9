"""How long training takes, as far as the data say it."""

import math
from typing import Any

import numpy as np


def orders_itself(data: Any) -> bool:
    """Whether these are batches whose order is the data set's own business."""
    return bool(getattr(data, "ordered", False))


def split_rows(rows: int, validation_split: float) -> tuple[int, int]:
    """Rows that Keras trains with, and those that it holds out."""
    trained = math.floor(rows * (1.0 - validation_split))
    return trained, rows - trained


def steps_per_epoch_of(
    data: Any, batch_size: int | None = None, validation_split: float = 0.0
) -> int | None:
    """Batches of one epoch of what `fit` is given as x.

    Args:
        data: Arrays or tensors, or batches: a `PyDataset`, `tf.data.Dataset`,
            `DataLoader` or anything with a length.
        batch_size: Of arrays; 32 if None.
        validation_split: The share of arrays that is held out.

    Returns:
        A positive integer, or None where it is not known.
    """
    if hasattr(data, "shape"):
        count, _ = split_rows(int(np.shape(data)[0]), validation_split)
        return max(1, math.ceil(count / (batch_size or 32)))
    for name in ("num_batches", "__len__"):
        length = getattr(data, name, None)
        try:
            length = length() if callable(length) else length
        except (TypeError, NotImplementedError):  # of unknown length, says TensorFlow
            continue
        if length:
            return int(length)
    return None
