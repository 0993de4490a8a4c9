"""Reading the stream of batches ahead, in threads or processes."""

import copy
import sys
import warnings
import weakref
from typing import Any, NamedTuple

import numpy as np

from keras_imm.datasets.batch_order import BatchOrder
from keras_imm.datasets.decoding import CorruptRecordError
from keras_imm.datasets.part_stream import PartStream

_PART_BYTES = 4 << 20


class Batch(NamedTuple):
    """Rows of one batch, before they become what the model sees."""

    images: np.ndarray
    labels: np.ndarray


class BatchParts:
    """Parts of the batches of the stream, by index: a few rows each.

    What a part holds depends on its index alone, so that any number of threads and
    processes reads the same stream.

    Args:
        records: Reads a record, as `ImageRecords` does.
        order: Where each record is.
        rows: Which rows of each batch to read.
        skip_corrupt: Whether the next good record takes the place of a corrupt one.

    Attributes:
        image_shape: (H, W, C) of the first image.
        parts_per_batch: How many parts make a batch.
    """

    def __init__(
        self,
        records: Any,
        order: BatchOrder,
        rows: range,
        skip_corrupt: bool,
    ):
        self.records = records
        self.order = order
        self.rows = rows
        self.skip_corrupt = skip_corrupt
        self._start = 0
        first, _ = self._read(0, 0, 0, {})
        self.image_shape = first.shape
        self.rows_per_part = _rows_per_part(first.nbytes, len(rows))
        self.parts_per_batch = -(-len(rows) // self.rows_per_part)

    def __len__(self) -> int:
        return sys.maxsize // 2 - self._start

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The part `index`.

        Returns:
            `images`, `labels`, and as `corrupt` a tuple of the (index, reason) of the
            records that were skipped.
        """
        batch, part = divmod(self._start + int(index), self.parts_per_batch)
        first = part * self.rows_per_part
        rows = self.rows[first : first + self.rows_per_part]
        indices = self.order.indices(batch)[rows.start : rows.stop]
        corrupt = {}
        images, labels = zip(
            *(
                self._read(int(index), batch, row, corrupt)
                for index, row in zip(indices, rows, strict=True)
            ),
            strict=True,
        )
        return {
            "images": np.stack(images),
            "labels": np.asarray(labels, np.int32),
            "corrupt": tuple(corrupt.items()),
        }

    def from_part(self, start: int) -> "BatchParts":
        """The same stream from another part on."""
        later = copy.copy(self)
        later._start = start
        return later

    def _read(self, index, batch, row, corrupt):
        for _ in range(self.order.num_records):
            try:
                return self.records.read(index, self.order.generator(batch, row))
            except CorruptRecordError as error:
                if not self.skip_corrupt:
                    name = self.records.source.record_name(index)
                    raise ValueError(
                        f"{name} cannot be read: {error}. With on_corrupt='skip' the "
                        "next good record takes its place."
                    ) from None
                corrupt[index] = str(error)
            index = (index + 1) % self.order.num_records
        raise ValueError(f"No record can be read; {index} says: {corrupt[index]}")


class BatchReader:
    """Batches of the stream: fast one after the other, any other one alone.

    Args:
        parts: The parts of the batches.
        num_workers: Processes that read, or 0 to read in threads of this one.

    Attributes:
        corrupt: Names of the records that were skipped so far, and why.
    """

    def __init__(self, parts: BatchParts, num_workers: int):
        self._parts = parts
        self._num_workers = num_workers
        self._stream = None
        self._next = None
        self._alone = None
        self._latest = {}
        self.corrupt: dict[str, str] = {}

    def read(self, batch: int, starts: bool) -> Batch:
        """One batch.

        Args:
            batch: Number of the batch in the stream.
            starts: Whether the ones that follow are likely to be asked for next.
        """
        if batch in self._latest:
            return self._latest[batch]
        if batch != self._next and (starts or batch - 1 == self._alone):
            self._start(batch)
        if batch == self._next:
            parts = self._ahead(batch)
        else:
            first = batch * self._parts.parts_per_batch
            parts = [self._parts[first + i] for i in range(self._parts.parts_per_batch)]
            self._alone = batch
        self._report(parts)
        joined = Batch(
            *(np.concatenate([p[name] for p in parts]) for name in Batch._fields)
        )
        # `fit` looks at the first two batches before it starts with the first.
        self._latest = {**dict(list(self._latest.items())[-1:]), batch: joined}
        return joined

    def close(self) -> None:
        """Stops reading ahead."""
        self._next = None
        if self._stream is not None:
            self._close_stream()
        self._stream = None

    def _ahead(self, batch):
        try:
            parts = [next(self._stream) for _ in range(self._parts.parts_per_batch)]
        except BaseException:
            self.close()
            raise
        self._next = batch + 1
        return parts

    def _start(self, batch):
        self.close()
        parts_per_batch = self._parts.parts_per_batch
        parts = self._parts.from_part(batch * parts_per_batch)
        self._stream = PartStream(parts, parts_per_batch, self._num_workers)
        # Called by `close`, or when this is gone, or at the end of the program.
        self._close_stream = weakref.finalize(self, self._stream.close)
        self._next = batch

    def _report(self, parts):
        for index, reason in (pair for part in parts for pair in part["corrupt"]):
            name = self._parts.records.source.record_name(index)
            if name not in self.corrupt:
                self.corrupt[name] = reason
                warnings.warn(f"Skipping {name}: {reason}", stacklevel=4)


def _rows_per_part(image_bytes, num_rows):
    """64 rows at once, or fewer where images are large."""
    return max(1, min(64, _PART_BYTES // image_bytes, num_rows))
