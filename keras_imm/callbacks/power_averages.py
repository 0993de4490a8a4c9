"""Two averages of the weights, from which those of any length are made later."""

import os
import pathlib
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_imm import averages, distribution
from keras_imm.callbacks.pauses import pause
from keras_imm.callbacks.steps import StepCounter, optimizer_step
from keras_imm.files.atomic import atomic_file
from keras_imm.files.paths import user_path
from keras_imm.validation import check_integer, check_positive_number


class PowerAverages(keras.callbacks.Callback):
    """Keeps power-function averages of the weights and writes snapshots of them.

    `keras_imm.averages.reconstruct(folder, length)` makes an average of another length
    of the snapshots, so that nobody has to train again to find the best one.

    A run that continues goes on from the snapshot of the step at which it does: put
    this callback before `TrainingCheckpoint`, and let both write at the same epochs.
    Without any snapshot the weights at the start of `fit` stand for all before.

    Args:
        folder: Where the snapshots are written, a file each.
        lengths: Relative widths of the averages that are kept; see
            `keras_imm.averages.exponent`.
        freq: Epochs between snapshots. A dozen in all is enough. One more is written at
            the end of `fit`.
        every_n_steps: Training steps between updates of the averages.

    Raises:
        ValueError: If an argument is out of its range; at the start of `fit`, if the
            folder has snapshots, but none of the step at which training continues.

    Example:

    ```python
    averages = keras_imm.callbacks.PowerAverages("averages", freq=10)
    model.fit(dataset, epochs=100, callbacks=[averages])
    weights = keras_imm.averages.reconstruct("averages", 0.08)
    images = model.generate(labels, weights=weights)
    ```

    Reference:
        - [Karras et al., 2024](https://arxiv.org/abs/2312.02696), Section 3
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        lengths: Sequence[float] = (0.05, 0.1),
        freq: int = 1,
        every_n_steps: int = 10,
    ):
        super().__init__()
        check_integer("freq", freq, at_least=1)
        check_integer("every_n_steps", every_n_steps, at_least=1)
        self.folder = user_path(folder, "folder")
        if not isinstance(lengths, (list, tuple)):
            raise ValueError(
                f"`lengths` must be a list of numbers. Received: lengths={lengths!r}"
            )
        for length in lengths:
            check_positive_number("lengths", length)
        self.lengths = tuple(map(float, lengths))
        self.freq = freq
        self._exponents = [averages.exponent(length) for length in self.lengths]
        if len(set(self._exponents)) < 2:
            raise ValueError(
                "`lengths` must be two numbers or more that differ. "
                f"Received: lengths={lengths!r}"
            )
        self._counter = StepCounter(every_n_steps)

    def on_train_begin(self, logs: Any = None) -> None:
        self._values = None  # other callbacks may bring back the state of a run

    def _begin(self) -> None:
        step = optimizer_step(self.model)
        files = averages.snapshots(self.folder)
        self._step, values = step, self._weights()
        if files and step not in files:
            raise ValueError(
                f"The snapshots of averages in {str(self.folder)!r} are of other steps "
                f"than {step}, at which training starts or continues. Give another "
                "`folder`, or empty it."
            )
        if step in files:
            self._load(files[step], values)
            for later in [path for number, path in files.items() if number > step]:
                later.unlink()  # of the run that was cut short
        else:
            self._values = [
                {k: v * 1.0 for k, v in values.items()} for _ in self.lengths
            ]

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        if self._values is None:
            self._begin()
        self._counter.begin_epoch(self.model)

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        if self._counter.is_due_before(batch):
            with pause(self.model):
                self._update()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        with pause(self.model):
            self._update()
            if (epoch + 1) % self.freq == 0:
                self._save()

    def on_train_end(self, logs: Any = None) -> None:
        trained = self._values is not None
        if trained and self._step not in averages.snapshots(self.folder):
            with pause(self.model):
                self._save()

    def _weights(self) -> dict[str, Any]:
        return {
            name: ops.cast(value, "float32")
            for name, value in self.model.named_weights().items()
        }

    def _update(self) -> None:
        """Moves the averages to the present step."""
        step = optimizer_step(self.model)
        if step == self._step:
            return
        weights = self._weights()
        for values, exponent in zip(self._values, self._exponents, strict=True):
            keep = averages.decay(self._step, step, exponent)
            for name, weight in weights.items():
                values[name] = keep * values[name] + (1.0 - keep) * weight
        self._step = step

    def _save(self) -> None:
        if not distribution.is_chief():
            return
        arrays = [
            {name: ops.convert_to_numpy(value) for name, value in values.items()}
            for values in self._values
        ]
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / averages.FILE.format(step=self._step)
        with atomic_file(path) as unfinished, open(unfinished, "wb") as file:
            np.savez(file, **averages.pack(self._step, self.lengths, arrays))

    def _load(self, path: pathlib.Path, weights: dict[str, Any]) -> None:
        _, lengths, values = averages.unpack(path)
        shapes = {name: tuple(value.shape) for name, value in weights.items()}
        for each in values:
            found = {name: value.shape for name, value in each.items()}
            if tuple(lengths) != self.lengths or found != shapes:
                raise ValueError(
                    f"{path} is a snapshot of another model or of other `lengths`. "
                    f"Received: lengths={self.lengths}, the file's {tuple(lengths)}"
                )
        self._values = [
            {name: ops.convert_to_tensor(value) for name, value in each.items()}
            for each in values
        ]
