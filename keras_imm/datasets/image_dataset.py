"""Batches of images or latents for `fit`."""

import operator
import threading
from typing import Any

import keras
import numpy as np

from keras_imm.datasets.batch_order import BatchOrder
from keras_imm.datasets.batch_reader import BatchParts, BatchReader
from keras_imm.validation import check_boolean, check_choice, check_integer

_MAX_SEED = 2**32 - 1


class ImageDataset(keras.utils.PyDataset):
    """One endless, repeatable stream of batches, a stretch of it in each epoch.

    Each pass over the records is a fresh permutation of all of them. Which images are
    in which batch, and how they are flipped or sampled, depends on the seed and the
    number of the batch alone: not on how many processes read, nor on whether the run
    was interrupted. `fit` called twice goes on where it was, as one long `fit` would.

    Make one with `keras_imm.datasets.load`. It is read by one `fit` at a time; every
    epoch of `fit` counts, also one that was cut short. `evaluate` and validation of an
    `IMM` leave the position as it was; those of another model, and `predict`, count as
    epochs. Give `steps_per_epoch` here, not to `fit`; to the `fit` of another model
    than `IMM` give `shuffle=False`, or it takes the batches of an epoch in another
    order.

    Args:
        records: Where the images come from, as `load` makes it.
        batch_size: Images per batch, of all processes together.
        seed: Integer in [0, 2^32) that decides order, flips and noise.
        shuffle: Whether the records are permuted.
        steps_per_epoch: Batches per epoch. Default: as many as fill one pass.
        num_workers: Processes that read, or 0 to read in threads of this one.
        on_corrupt: "raise", or "skip" to put the next good record in the place of a
            corrupt one.
        process_index: Which of the processes that share each batch this is.
        process_count: How many processes share each batch.
        labels: Whether a batch is images and labels, where there are labels.

    Attributes:
        num_records: How many records there are.
        num_classes: How many classes the labels have, 0 without labels.
        class_names: Their names in the order of the labels, or None.
        image_shape: (H, W, C) of one image.
        batch_size: Images per batch, of all processes together.
        steps_per_epoch: Batches per epoch.
        epoch: How many epochs were read.
        corrupt: Names of the records that were skipped so far, and why.

    Raises:
        ValueError: If an argument is out of its range, there are fewer records than a
            batch holds, or the first record cannot be read.
    """

    ordered = True

    def __init__(
        self,
        records: Any,
        batch_size: int,
        seed: int = 0,
        shuffle: bool = True,
        steps_per_epoch: int | None = None,
        num_workers: int = 0,
        on_corrupt: str = "raise",
        process_index: int = 0,
        process_count: int = 1,
        labels: bool = True,
    ):
        super().__init__()
        check_integer("batch_size", batch_size, at_least=1)
        check_integer("seed", seed, at_least=0)
        if seed > _MAX_SEED:
            raise ValueError(f"`seed` must be below 2**32. Received: seed={seed!r}")
        check_boolean("shuffle", shuffle)
        check_boolean("labels", labels)
        check_integer("num_workers", num_workers, at_least=0)
        check_choice("on_corrupt", on_corrupt, ("raise", "skip"))
        source = records.source
        self.num_records = len(source)
        if batch_size > self.num_records:
            raise ValueError(
                f"`batch_size` must be at most the {self.num_records} records that "
                f"there are. Received: batch_size={batch_size!r}"
            )
        rows = _rows_of_process(batch_size, process_index, process_count)
        order = BatchOrder(self.num_records, int(batch_size), int(seed), shuffle)
        if steps_per_epoch is None:
            steps_per_epoch = order.batches_per_pass
        check_integer("steps_per_epoch", steps_per_epoch, at_least=1)
        self.num_classes = source.num_classes if labels else 0
        self.class_names = source.class_names if labels else None
        self.batch_size = int(batch_size)
        self.steps_per_epoch = int(steps_per_epoch)
        self.epoch = 0
        self._begun = False
        self._records = records
        self._order = order
        self._rows = rows
        self._lock = threading.RLock()
        parts = BatchParts(records, order, rows, on_corrupt == "skip")
        records.image_shape = self.image_shape = parts.image_shape
        self._reader = BatchReader(parts, int(num_workers))

    def __len__(self) -> int:
        return self.steps_per_epoch

    def __getitem__(self, index: int) -> Any:
        """Batch `index` of the current epoch, as this process sees it.

        Returns:
            `(images, labels)`, float32 (rows, H, W, C) and int32 (rows,), or the images
            alone where there are no labels. Images are scaled to [-1, 1], latents to a
            standard deviation of `sigma_data`.

        Raises:
            ValueError: If a record is corrupt and `on_corrupt` is "raise"; the message
                names it.
        """
        index = self._checked_index(index)
        with self._lock:
            batch = self.epoch * self.steps_per_epoch + index
            read = self._reader.read(batch, starts=index == 0)
        images = self._records.finish(read.images)
        return (images, read.labels.copy()) if self.num_classes else images

    def batch_indices(self, index: int, epoch: int | None = None) -> np.ndarray:
        """Which records are in a batch.

        Args:
            index: Number of the batch in its epoch.
            epoch: Number of the epoch. Default: the current one.

        Returns:
            Integers of shape (rows,), of the rows that this process reads. Where a
            record is corrupt and was skipped, it is the one whose place was taken.
        """
        index = self._checked_index(index)
        epoch = self.epoch if epoch is None else epoch
        indices = self._order.indices(epoch * self.steps_per_epoch + index)
        return indices[self._rows.start : self._rows.stop].copy()

    def record_name(self, index: int) -> str:
        """What a record is called: its file, or its data set and its place there."""
        return self._records.source.record_name(int(index))

    def read_record(self, index: int) -> tuple[np.ndarray, int]:
        """One record as it is stored: cropped, but neither mirrored nor scaled.

        Args:
            index: Integer in [0, num_records).

        Returns:
            The image, uint8 or float32 (H, W, C), and its label, -1 without labels; of
            latents, their mean.

        Raises:
            CorruptRecordError: If it cannot be decoded.
        """
        return self._records.read(int(index), None)

    @property
    def corrupt(self) -> dict[str, str]:
        """Names of the records that were skipped so far, and why."""
        return dict(self._reader.corrupt)

    @property
    def fingerprint(self) -> dict[str, Any]:
        """What must be the same for a run to go on, as JSON can hold it."""
        return {
            "source": self._records.source.fingerprint,
            **self._records.settings,
            "image_shape": list(self.image_shape),
            "num_classes": self.num_classes,
            "batch_size": self.batch_size,
            "steps_per_epoch": self.steps_per_epoch,
            "seed": self._order.seed,
            "shuffle": self._order.shuffle,
        }

    def get_state(self) -> dict[str, int]:
        """Where the stream is, as JSON can hold it."""
        return {"epoch": self.epoch}

    def set_state(self, state: dict[str, int]) -> None:
        """Goes to where `get_state` was called, in this run or another."""
        if not isinstance(state, dict) or "epoch" not in state:
            raise ValueError(
                '`state` must be {"epoch": an integer of at least 0}. Received: '
                f"state={state!r}"
            )
        check_integer('state["epoch"]', state["epoch"], at_least=0)
        with self._lock:
            self.epoch = int(state["epoch"])

    def end_epoch(self) -> None:
        """Counts an epoch that has begun and was not counted yet.

        Keras says that an epoch ends, but not where `fit` stops in the middle of it.
        Called again, this does nothing.
        """
        with self._lock:
            self.epoch += self._begun
            self._begun = False

    def on_epoch_begin(self) -> None:
        self._begun = True

    def on_epoch_end(self) -> None:
        self.end_epoch()

    def close(self) -> None:
        """Stops reading ahead, until the next batch is asked for."""
        with self._lock:
            self._reader.close()

    def _checked_index(self, index):
        index = operator.index(index)
        if not 0 <= index < self.steps_per_epoch:
            raise IndexError(f"Batch {index} of {self.steps_per_epoch} in an epoch.")
        return index


def _rows_of_process(batch_size, process_index, process_count):
    check_integer("process_count", process_count, at_least=1)
    check_integer("process_index", process_index, at_least=0)
    if process_index >= process_count:
        raise ValueError(
            f"`process_index` must be below process_count={process_count}. Received: "
            f"process_index={process_index!r}"
        )
    if batch_size % process_count:
        raise ValueError(
            "`batch_size` must be a multiple of process_count="
            f"{process_count}. Received: batch_size={batch_size!r}"
        )
    rows = batch_size // process_count
    return range(process_index * rows, (process_index + 1) * rows)
