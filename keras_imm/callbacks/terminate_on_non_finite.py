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

from keras_imm import distribution
from keras_imm.callbacks.steps import optimizer_step
from keras_imm.backend.random_streams import assign_state, random_states, streams_of_device


class TerminateOnNonFinite(keras.callbacks.Callback):
    """Stops training at the first NaN or infinite loss, after saving the batch.

    It writes `non-finite-step-<step>.npz` with the step, the times s, r and t of the
    batch's groups, the labels, and, if it is given the data set, the images and the
    indices of their records. The checkpoints stay as they were before the step.

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

    def __init__(self, directory: str | os.PathLike, dataset: Any = None):
        super().__init__()
        self.directory = pathlib.Path(directory)
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
            message += self._told(saved)
        path = self._write(step, saved)
        raise FloatingPointError(f"{message}. The batch is in {str(path)!r}.")

    def _batches(self, batches: range) -> dict[str, np.ndarray]:
        """The batches and the times that were drawn for them, read and drawn again."""
        data = [self.dataset[i] for i in batches]
        data = [one if isinstance(one, tuple) else (one,) for one in data]
        drawn = redraw_particles(
            self.model, [tuple(map(ops.convert_to_tensor, one)) for one in data]
        )
        saved = {
            name: np.concatenate(
                [
                    ops.convert_to_numpy(getattr(particles, name))[
                        :: self.model.group_size
                    ]
                    for particles in drawn
                ]
            )
            for name in ("s", "r", "t")
        }
        for name, parts in zip(
            ("images", "labels"), zip(*data, strict=True), strict=False
        ):
            saved[name] = np.concatenate(parts)
        indices = [self.dataset.batch_indices(i) for i in batches]
        return saved | {"indices": np.concatenate(indices)}

    def _told(self, saved: dict[str, np.ndarray], at_most: int = 16) -> str:
        times = ", ".join(
            f"{name} in [{saved[name].min():.6g}, {saved[name].max():.6g}]"
            for name in ("t", "r", "s")
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
        np.savez(path, **saved)
        return path


def redraw_particles(model: keras.Model, batches: Sequence[tuple]) -> list:
    """The particles that the model's last train steps drew, of the same batches.

    Random streams are counters: drawing once more tells how far the draws move them.
    They are left where they are.

    Args:
        model: An `IMM`.
        batches: This process's batches of the last steps, in order.

    Returns:
        `Particles` of every batch and, within it, of every device that drew its own
        share, in the order of the rows.
    """
    states = random_states(model)
    devices = _devices(model)

    def counters():
        return [ops.convert_to_numpy(state).astype("int64") for state in states]

    def assign(values):
        for state, value in zip(states, values, strict=True):
            assign_state(state, value)

    def draw(i):
        own = contextlib.nullcontext()
        if devices[i]:
            own = streams_of_device(model, devices[i])
        with own:
            return [
                model.draw_particles(_share(data, i, len(devices)), training=True)
                for data in batches
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


def _devices(model: keras.Model) -> list[int]:
    """The devices of this process that draw their own share of its batch.

    Under JAX there is one draw for all devices.
    """
    backend = keras.backend.backend()
    if backend == "torch":
        return [distribution.process_index()]
    if backend == "tensorflow":
        return list(range(model.distribute_strategy.num_replicas_in_sync))
    return [0]


def _share(data: tuple, i: int, count: int) -> tuple:
    size = data[0].shape[0] // count
    return tuple(part[i * size : (i + 1) * size] for part in data)
