"""The running means of a loss and of what an objective returns beside it."""

from typing import Any

import keras
from keras import ops

_MOST = 15  # scalars beside the loss


class LossLog:
    """Keras metrics: the mean of the batches' losses, and of the other scalars.

    The names of the other scalars are known once a step has been traced; their number
    is bounded, so that the state of training has the same shape from the start.

    Attributes:
        metrics: The Keras metrics.
        length: Elements of `as_vector`.
    """

    length = 1 + _MOST

    def __init__(self):
        self._loss = keras.metrics.Mean(name="loss")
        self._others = _Means(name="other_losses")
        self.metrics = [self._loss, self._others]

    @property
    def variables(self) -> list[keras.Variable]:
        """Variables of all metrics, in Keras's order."""
        return [v for metric in self.metrics for v in metric.variables]

    def update(self, loss: Any, others: dict[str, Any]) -> None:
        """Adds those of one batch."""
        self._loss.update_state(loss)
        if others:
            self._others.update_state(others)

    def result(self) -> dict[str, Any]:
        """The means by their names, "loss" first."""
        return {"loss": self._loss.result(), **self._others.result()}

    def as_vector(self, loss: Any, others: dict[str, Any]) -> Any:
        """All scalars as one tensor of `length` elements, zeros at its end."""
        return ops.concatenate([ops.reshape(loss, (1,)), _padded(others, loss.dtype)])


class _Means(keras.metrics.Metric):
    """Means of up to `_MOST` named scalars."""

    def __init__(self, name: str):
        super().__init__(name=name)
        self._names: list[str] = []
        self.sums = self.add_variable((_MOST,), "zeros", name="sums")
        self.count = self.add_variable((), "zeros", name="count")

    def update_state(self, values: dict[str, Any]) -> None:
        self._names = list(values)
        self.sums.assign(self.sums + _padded(values, self.sums.dtype))
        self.count.assign(self.count + 1)

    def result(self) -> dict[str, Any]:
        if not self._names:
            return {}
        means = self.sums.value / ops.maximum(self.count.value, 1.0)
        return {name: means[i] for i, name in enumerate(self._names)}


def _padded(values: dict[str, Any], dtype: Any) -> Any:
    """The values as a vector of `_MOST` elements."""
    if len(values) > _MOST or "loss" in values:
        raise ValueError(
            f"An objective returns at most {_MOST} scalars beside the loss, none of "
            f"which is named 'loss'. Received: {', '.join(values)}"
        )
    dtype = keras.backend.standardize_dtype(dtype)
    values = [ops.cast(ops.convert_to_tensor(v), dtype) for v in values.values()]
    for value in values:
        if tuple(value.shape) != ():
            raise ValueError(
                "What an objective returns beside the loss must be scalars. "
                f"Received: shape {tuple(value.shape)}"
            )
    zeros = ops.zeros((_MOST - len(values),), dtype)
    return ops.concatenate([ops.stack(values), zeros]) if values else zeros
