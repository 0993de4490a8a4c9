"""Keras's own callbacks around a model whose averaged weights are sampled."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops


def adapted_callbacks(callbacks: Any, averages: Callable[[], list]) -> list:
    """Callbacks of `fit`, with what makes Keras's own do here what they say.

    Args:
        callbacks: What `fit` is given: a callback, a list, a `CallbackList`, or None.
        averages: Function of the variables that hold averages of the weights.

    Returns:
        The same kind, with further callbacks beside those of Keras.

    Raises:
        ValueError: If there is one that cannot work: `SwapEMAWeights`.
    """
    if isinstance(callbacks, keras.callbacks.CallbackList):
        callbacks.callbacks = adapted_callbacks(callbacks.callbacks, averages)
        return callbacks
    callbacks = [] if callbacks is None else keras.tree.flatten(callbacks)
    companions = (_BestAverages, _AbsentResults)  # of an earlier `fit`, in a list
    callbacks = [one for one in callbacks if not isinstance(one, companions)]
    names = [name for one in callbacks for name in getattr(one, "result_names", ())]
    adapted = []
    for callback in callbacks:
        before, after = (), ()
        if isinstance(callback, keras.callbacks.SwapEMAWeights):
            raise ValueError(
                "`SwapEMAWeights` exchanges the weights that are trained for their "
                "averages. Leave it out: `generate`, callbacks and presets take the "
                "averages where they are, and `ModelCheckpoint` keeps both."
            )
        if getattr(callback, "restore_best_weights", False):  # of `EarlyStopping`
            after = (_BestAverages(callback, averages),)
        if isinstance(callback, keras.callbacks.CSVLogger) and names:
            before = (_AbsentResults(names),)
            after = (_AbsentResults(names, remove=True),)
        adapted += [*before, callback, *after]
    return adapted


class _BestAverages(keras.callbacks.Callback):
    """Restores the averages that belong to the weights that `EarlyStopping` restores.

    Args:
        early_stopping: The callback, which stands before this one.
        averages: Function of the variables that hold averages.
    """

    def __init__(
        self, early_stopping: keras.callbacks.Callback, averages: Callable[[], list]
    ):
        super().__init__()
        self._early_stopping = early_stopping
        self._averages = averages
        self._best_weights = None
        self._values = []

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        best = self._early_stopping.best_weights
        if best is not None and best is not self._best_weights:
            self._best_weights = best
            self._values = [np.array(ops.convert_to_numpy(v)) for v in self._averages()]

    def on_train_end(self, logs: Any = None) -> None:
        if self._best_weights is not None:
            for variable, value in zip(self._averages(), self._values, strict=True):
                variable.assign(value)


class _AbsentResults(keras.callbacks.Callback):
    """Says "NA" for what is not measured in an epoch, to a `CSVLogger` alone.

    It takes the columns of its file from the first epoch.

    Args:
        names: Of the results.
        remove: Whether to remove what the one before it has put there.
    """

    def __init__(self, names: list[str], remove: bool = False):
        super().__init__()
        self._names = names
        self._remove = remove

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        if logs is None:
            return
        for name in self._names:
            if not self._remove:
                logs.setdefault(name, "NA")
            elif logs.get(name) == "NA":
                del logs[name]
