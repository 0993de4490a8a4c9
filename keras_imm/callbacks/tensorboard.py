"""Event files for TensorBoard, without TensorFlow."""

import os

import keras
import numpy as np

from keras_imm import distribution
from keras_imm.callbacks.event_file import EventFile
from keras_imm.callbacks.steps import StepCounter, optimizer_step
from keras_imm.files.paths import user_path
from keras_imm.validation import check_integer


class TensorBoard(keras.callbacks.Callback):
    """Writes what is in the logs, for TensorBoard, on every backend.

    `keras.callbacks.TensorBoard` needs TensorFlow; this needs `tensorboardX`:
    `pip install "keras_imm[tensorboard]"`. It writes every entry of an epoch's logs at
    the epoch's end: let it stand behind the callbacks that add to them. The axis is the
    optimizer's count of steps, so a run that continues in the same `log_dir` continues
    its curves, and what a killed run had written past the step at which the run starts
    again is hidden. In a run of several processes the first one writes.

    Args:
        log_dir: Folder of the event files; made if missing.
        every_n_steps: Also write `step_loss` after every so many training steps: the
            mean loss of the steps since the last entry or the start of the epoch.
            Default: never.

    Raises:
        ValueError: If an argument is out of range.
        ImportError: At the start of `fit`, if tensorboardX is not installed.

    Example:

    ```python
    board = keras_imm.callbacks.TensorBoard("runs/a", every_n_steps=100)
    grid = keras_imm.callbacks.SampleGrid(
        labels=range(10), every_n_steps=1000, tensorboard=board
    )
    rate = keras_imm.callbacks.LearningRate()
    model.fit(dataset, epochs=100, callbacks=[grid, rate, board])
    ```
    """

    def __init__(
        self, log_dir: str | os.PathLike[str], every_n_steps: int | None = None
    ):
        super().__init__()
        if not isinstance(log_dir, (str, os.PathLike)) or not os.fspath(log_dir):
            raise ValueError(
                f"`log_dir` must be the path of a folder. Received: log_dir={log_dir!r}"
            )
        if every_n_steps is not None:
            check_integer("every_n_steps", every_n_steps, at_least=1)
        self.log_dir = os.fspath(user_path(log_dir, "log_dir"))
        self.every_n_steps = every_n_steps
        self._counter = StepCounter(every_n_steps)
        self._file: EventFile | None = None
        self._is_open = False
        self._written_by_step: set[str] = set()

    # -- What other callbacks may add

    def add_scalars(self, values: dict[str, float], step: int) -> None:
        """Writes numbers at a step of their own; epochs no longer repeat them.

        Args:
            values: Maps names to numbers.
            step: The training step that they belong to.

        Raises:
            ValueError: If this callback is not among those of the running `fit`.
        """
        self._check_open()
        self._written_by_step.update(values)
        self._write(values, step)

    def add_image(self, name: str, image: np.ndarray, step: int) -> None:
        """Writes a picture.

        Args:
            name: Name of the picture.
            image: Bytes of shape (height, width, channels), with 1, 3 or 4 channels.
            step: The training step that it belongs to.

        Raises:
            ValueError: If this callback is not among those of the running `fit`.
        """
        self._check_open()
        if self._file is not None:
            self._file.add_image(name, image, step)

    # -- During fit

    def on_train_begin(self, logs: dict[str, float] | None = None) -> None:
        self._close()  # where the last `fit` failed

    def on_epoch_begin(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        self._counter.begin_epoch(self.model)
        self._batches, self._sum = 0, 0.0
        if not self._is_open:
            # Not at the start of `fit`: a checkpoint may have been restored since.
            self._open(optimizer_step(self.model))

    def on_train_batch_begin(
        self, batch: int, logs: dict[str, float] | None = None
    ) -> None:
        if self._counter.is_due_before(batch):
            step = optimizer_step(self.model)
            loss = float(self.model.get_metrics_result()["loss"])
            self._write_step_loss(loss, batch, step)

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        step = optimizer_step(self.model)
        logs = logs or {}
        if self._counter.is_due_after_epoch(step) and "loss" in logs:
            batches = self._counter.batches_of_epoch(step)
            self._write_step_loss(logs["loss"], batches, step)
        self._write({k: logs[k] for k in logs.keys() - self._written_by_step}, step)

    def on_train_end(self, logs: dict[str, float] | None = None) -> None:
        self._close()

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
        self._file, self._is_open = None, False
        self._written_by_step = set()

    def _open(self, step: int) -> None:
        self._is_open = True
        if distribution.is_chief():
            self._file = EventFile(self.log_dir, first_step=step + 1)

    def _check_open(self) -> None:
        if not self._is_open:
            raise ValueError(
                "Let the `TensorBoard` that another callback writes to stand among the "
                f"callbacks of `fit`, too. Received: log_dir={self.log_dir!r}"
            )

    def _write_step_loss(self, mean: float, batches: int, step: int) -> None:
        """The mean loss since the last entry, from the means since the epoch began."""
        total = mean * batches
        since_last = (total - self._sum) / (batches - self._batches)
        self._batches, self._sum = batches, total
        self._write({"step_loss": since_last}, step)

    def _write(self, values: dict[str, float], step: int) -> None:
        if self._file is not None:
            self._file.add_scalars(values, step)
