"""Data sets whose batches are checked on the host, before a step is given them."""

from collections.abc import Callable, Iterator
from typing import Any

from keras_imm.backend import keras_private


class CheckedData(keras_private.DataAdapter):
    """What Keras trains from, with a check of every batch.

    Args:
        data: What `fit` or `evaluate` is given as x, other than arrays.
        check: Function of a batch, of arrays, that raises where it is wrong.
        options: Of Keras's data adapters: `steps_per_epoch` and `shuffle`.

    Attributes:
        source: The data.
        adapter: Keras's adapter of the data.
        check: The function.
    """

    def __init__(self, data: Any, check: Callable, **options: Any):
        self.source = data
        self.adapter = keras_private.data_adapter(data, **options)
        self.check = check

    def get_numpy_iterator(self) -> Any:
        return _Batches(self.adapter.get_numpy_iterator(), self.check)

    def get_jax_iterator(self) -> Any:
        return _Batches(self.adapter.get_jax_iterator(), self.check)

    def get_torch_dataloader(self) -> Any:
        return _Batches(self.adapter.get_torch_dataloader(), self.check)

    @property
    def num_batches(self) -> int | None:
        return self.adapter.num_batches

    @property
    def batch_size(self) -> int | None:
        return self.adapter.batch_size

    @property
    def has_partial_batch(self) -> bool | None:
        return self.adapter.has_partial_batch

    @property
    def partial_batch_size(self) -> int | None:
        return self.adapter.partial_batch_size

    def on_epoch_begin(self) -> None:
        self.adapter.on_epoch_begin()

    def on_epoch_end(self) -> None:
        self.adapter.on_epoch_end()


class _Batches:
    """An iterable, each of whose batches is checked when it is asked for."""

    def __init__(self, batches: Any, check: Callable):
        self._batches = batches
        self._check = check

    def __iter__(self) -> Iterator[Any]:
        for batch in self._batches:
            self._check(batch)
            yield batch


def source_of(data: Any) -> Any:
    """The data themselves, where they come with checks."""
    return data.source if isinstance(data, CheckedData) else data
