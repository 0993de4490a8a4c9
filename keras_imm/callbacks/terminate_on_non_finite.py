"""Stopping at the first loss that is not a number, with what is needed to see why."""

import contextlib
import math
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_imm import backend, distribution
from keras_imm.backend.random_streams import (
    assign_state,
    random_states,
    streams_of_device,
)
from keras_imm.callbacks.steps import optimizer_step
from keras_imm.files.atomic import atomic_file
from keras_imm.files.paths import user_path

_DATA = ("images", "labels")  # what a data set yields


class TerminateOnNonFinite(keras.callbacks.Callback):
    """Stops training at the first NaN or infinite loss, after saving the batch.

    It writes `non-finite-step-<step>.npz` with the step and the loss and, if it is
    given the data set, the images, their labels, the indices of their records and what
    was drawn for them: every field of the objective's particles under its name, such as
    t, or `drawn_labels` where the data have that name. The checkpoints stay as they
    were before the step.

    Looking at every loss waits for every step to end, which costs something where
    steps take milliseconds; `keras.callbacks.TerminateOnNaN` does the same.

    Args:
        directory: Folder for the file; made if missing.
        dataset: The `keras_imm.datasets.ImageDataset` that `fit` is given, or None.
            Its batch is read again.

    Raises:
        FloatingPointError: In `fit`, at the first loss that is not finite; it names
            the step, the times, the records and the file.

    Example:

    ```python
    dataset = keras_imm.datasets.load("cifar10", batch_size=256)
    model.fit(
        dataset, callbacks=[keras_imm.callbacks.TerminateOnNonFinite("runs/a", dataset)]
    )
    ```
    """

    def __init__(self, directory: str | os.PathLike[str], dataset: Any = None):
        super().__init__()
        self.directory = user_path(directory, "directory")
        self.dataset = dataset

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        self._epoch = epoch

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        loss = (logs or {}).get("loss")
        if loss is None:
            return
        loss = float(ops.convert_to_numpy(loss))
        if not math.isfinite(loss):
            self._stop(batch, loss)

    def _stop(self, batch: int, loss: float) -> None:
        step = optimizer_step(self.model)
        if isinstance(self.model.optimizer, keras.optimizers.LossScaleOptimizer):
            step += 1  # it has skipped this step
        saved: dict[str, Any] = {"step": step, "loss": loss}
        message = f"The loss of step {step} (batch {batch} of epoch {self._epoch + 1})"
        message += f" is {loss}"
        if self.dataset is not None:
            # Of all the steps that one call of the train function has made.
            first = max(0, batch + 1 - self.model.steps_per_execution)
            saved |= self._batches(range(first, batch + 1))
            message += self._describe(saved)
        path = self._write(step, saved)
        raise FloatingPointError(f"{message}. The batch is in {str(path)!r}.")

    def _batches(self, batches: range) -> dict[str, np.ndarray]:
        """The batches and the times that were drawn for them, read and drawn again."""
        data = [self.dataset[i] for i in batches]
        data = [one if isinstance(one, tuple) else (one,) for one in data]
        drawn = redraw_particles(
            self.model, [tuple(map(ops.convert_to_tensor, one)) for one in data]
        )
        names = [name for name, _ in zip(_DATA, data[0], strict=False)]
        parts = dict(zip(names, zip(*data, strict=True), strict=True))
        for name in drawn[0]._fields:
            fields = [getattr(particles, name) for particles in drawn]
            if fields[0] is not None:
                key = f"drawn_{name}" if name in parts else name
                parts[key] = [ops.convert_to_numpy(field) for field in fields]
        saved = {name: np.concatenate(part) for name, part in parts.items()}
        indices = [self.dataset.batch_indices(i) for i in batches]
        return saved | {"indices": np.concatenate(indices)}

    def _describe(self, saved: dict[str, np.ndarray], at_most: int = 16) -> str:
        """The range of every field of one number per sample, and the records."""
        times = ", ".join(
            f"{name} in [{value.min():.6g}, {value.max():.6g}]"
            for name, value in saved.items()
            if getattr(value, "ndim", 0) == 1 and value.dtype.kind == "f"
        )
        indices = saved["indices"]
        records = ", ".join(map(str, indices[:at_most]))
        more = " and so on" if len(indices) > at_most else ""
        first = self.dataset.record_name(int(indices[0]))
        return f", with {times}, on the records {records}{more}; the first is {first}"

    def _write(self, step: int, saved: dict[str, Any]) -> pathlib.Path:
        several = distribution.process_count() > 1
        process = f"-process-{distribution.process_index()}" if several else ""
        self.directory.mkdir(parents=True, exist_ok=True)
        path = self.directory / f"non-finite-step-{step:09d}{process}.npz"
        with atomic_file(path) as unfinished:
            np.savez(unfinished, **saved)
        return path


def redraw_particles(model: keras.Model, batches: Sequence[tuple]) -> list:
    """The particles that the model's last train steps drew, of the same batches.

    Random streams are counters: drawing once more shows how far the draws move them.
    They are left where they are.

    Args:
        model: A `FlowMapModel`.
        batches: This process's batches of the last steps, in order.

    Returns:
        The objective's particles of every batch and, within it, of every device that
        drew its own share, in the order of the rows.
    """
    states = random_states(model)
    devices = backend.processes.drawing_devices(model)
    batch_loss = model.batch_loss()
    first_step = optimizer_step(model) - len(batches)
    if isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer):
        first_step += 1  # it has skipped the last step

    def counters():
        return [ops.convert_to_numpy(state).astype("int64") for state in states]

    def assign(values):
        for state, value in zip(states, values, strict=True):
            assign_state(state, value)

    def draw(i):
        own = contextlib.nullcontext()
        if devices[i]:
            own = streams_of_device(states, devices[i])
        with own:
            return [
                batch_loss.draw(
                    _share(data, i, len(devices)),
                    ops.convert_to_tensor(max(0, step), "int32"),
                ).particles
                for step, data in enumerate(batches, start=first_step)
            ]

    after = counters()
    draw(0)
    before = [
        2 * value - further for value, further in zip(after, counters(), strict=True)
    ]
    drawn = []
    for i in range(len(devices)):
        assign(before)
        drawn.append(draw(i))
    assign(after)
    return [particles for batch in zip(*drawn, strict=True) for particles in batch]


def _share(data: tuple, i: int, count: int) -> tuple:
    size = data[0].shape[0] // count
    return tuple(part[i * size : (i + 1) * size] for part in data)
