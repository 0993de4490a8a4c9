"""Parts of batches, read ahead by grain in threads or processes."""

import collections
import os
from collections.abc import Iterator, Sequence
from typing import Any

from keras_imm.datasets.extras import extra
from keras_imm.datasets.worker_processes import starting_processes, worker_init

_MAX_THREADS = 8


class PartStream(Iterator):
    """Parts, in order, read ahead of the one that is asked for.

    Args:
        parts: The parts, by index; pickled for processes.
        parts_per_batch: How many to have ready.
        num_workers: Processes that read, or 0 to read in threads of this one.
    """

    def __init__(self, parts: Sequence[Any], parts_per_batch: int, num_workers: int):
        grain = extra("grain", "Reading data")
        threads = 1 if num_workers else min(_MAX_THREADS, 2 * _num_cpus())
        ahead = threads + (0 if num_workers else parts_per_batch)
        stream = grain.MapDataset.source(parts).to_iter_dataset(
            grain.ReadOptions(num_threads=threads, prefetch_buffer_size=ahead)
        )
        self._started = collections.deque()
        if not num_workers:
            self._stream = iter(stream)
            return
        options = grain.MultiprocessingOptions(
            num_workers=num_workers,
            per_worker_buffer_size=-(-parts_per_batch // num_workers) + 1,
        )
        with starting_processes():
            self._stream = iter(stream.mp_prefetch(options, worker_init()))
            # Every process has started when each has given a part.
            self._started.extend(next(self._stream) for _ in range(num_workers))

    def __next__(self) -> Any:
        return self._started.popleft() if self._started else next(self._stream)

    def close(self) -> None:
        """Ends the threads or processes."""
        self._started.clear()
        if self._stream is not None:
            self._stream.close()
        self._stream = None  # grain's parts must be gone before its modules are


def _num_cpus():
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
