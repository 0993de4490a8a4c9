"""Answers of concurrent requests, several in one pass of the network."""

import asyncio
import collections
import concurrent.futures
import dataclasses
from collections.abc import Callable, Hashable, Sequence

import numpy as np

from keras_imm.serving.server.errors import RequestError
from keras_imm.serving.server.servable import Arrays


@dataclasses.dataclass
class _Waiting:
    """Rows of one request, of when they came and whom to tell."""

    inputs: Arrays
    rows: int
    came: float
    answer: asyncio.Future


class Batches:
    """Joins rows of requests for the same signature into passes.

    While one pass runs, in a thread of its own, requests gather for the next. Rows are
    independent, so that no request sees the others; a pass that fails is computed again
    in halves, until those at fault are alone. A request of more rows than a pass holds
    takes several, between which others come.

    Args:
        run: Function of a signature's name and its inputs, to outputs.
        max_batch_size: The most rows of a pass; 1 joins nothing.
        max_delay: Seconds that the first request of a pass waits for others while
            nothing else is computed.
        max_queue: The most rows under way; with more, requests are refused.
        on_pass: Called with the number of rows of every pass.

    Attributes:
        rows: How many are under way.
        is_computing: Whether the thread is within a pass.
    """

    def __init__(
        self,
        run: Callable[[str, Arrays], Arrays],
        max_batch_size: int = 64,
        max_delay: float = 0.0,
        max_queue: int = 4096,
        on_pass: Callable[[int], None] = lambda rows: None,
    ):
        self._run = run
        self._max_batch_size = max_batch_size
        self._max_delay = max_delay
        self._max_queue = max_queue
        self._on_pass = on_pass
        self._queues: dict[Hashable, collections.deque[_Waiting]] = {}
        self._worker = None
        self._arrived = asyncio.Event()
        self._thread = concurrent.futures.ThreadPoolExecutor(1)
        self.rows = 0
        self.is_computing = False

    async def __call__(self, name: str, inputs: Arrays) -> Arrays:
        """The outputs of one request, whose inputs have as many rows each.

        Raises:
            RequestError: If too many rows are under way.
        """
        rows = _rows(inputs)
        if self.rows + rows > self._max_queue:
            raise RequestError(
                f"The server is busy: {self.rows} rows are under way.", "UNAVAILABLE"
            )
        self.rows += rows
        try:
            size = self._max_batch_size
            parts = [
                await self._answer(name, _slice(inputs, start, start + size))
                for start in range(0, rows, size)
            ]
        finally:
            self.rows -= rows
        return _concatenate(parts)

    async def _answer(self, name: str, inputs: Arrays) -> Arrays:
        loop = asyncio.get_running_loop()
        one = _Waiting(inputs, _rows(inputs), loop.time(), loop.create_future())
        key = name, tuple((key, inputs[key].shape[1:]) for key in sorted(inputs))
        self._queues.setdefault(key, collections.deque()).append(one)
        self._arrived.set()
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work())
        return await one.answer

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while self._queues:
            # The one that has waited longest; what is left goes to the end of the line.
            key = next(iter(self._queues))
            await self._fill(key)
            queue = self._queues.pop(key)
            batch = self._take(queue)
            if queue:
                self._queues[key] = queue
            if not batch:
                continue
            results = await loop.run_in_executor(
                self._thread, self._computed, key[0], [one.inputs for one in batch]
            )
            for one, result in zip(batch, results, strict=True):
                if one.answer.done():  # its client has gone
                    continue
                if isinstance(result, Exception):
                    one.answer.set_exception(result)
                else:
                    one.answer.set_result(result)

    async def _fill(self, key: Hashable) -> None:
        """Waits until a pass is full, or its first request has waited long enough."""
        loop, queue = asyncio.get_running_loop(), self._queues[key]
        while sum(one.rows for one in queue) < self._max_batch_size:
            left = queue[0].came + self._max_delay - loop.time()
            if left <= 0.0:
                return
            self._arrived.clear()
            try:
                await asyncio.wait_for(self._arrived.wait(), left)
            except TimeoutError:
                return

    def _take(self, queue: collections.deque[_Waiting]) -> list[_Waiting]:
        """The first requests, as many as fit, without those whose client has gone."""
        batch, rows = [], 0
        while queue:
            if queue[0].answer.done():
                queue.popleft()
            elif rows + queue[0].rows <= self._max_batch_size:
                rows += queue[0].rows
                batch.append(queue.popleft())
            else:
                break
        return batch

    def _computed(self, name: str, batch: Sequence[Arrays]) -> list[Arrays | Exception]:
        self.is_computing = True
        try:
            return self._results(name, batch)
        finally:
            self.is_computing = False

    def _results(self, name: str, batch: Sequence[Arrays]) -> list[Arrays | Exception]:
        """Outputs, or what was raised, for each of several inputs."""
        try:
            return self._together(name, batch)
        except Exception as error:  # whose fault it is shows when halves are computed
            if len(batch) == 1:
                return [error]
            half = len(batch) // 2
            return [
                *self._results(name, batch[:half]),
                *self._results(name, batch[half:]),
            ]

    def _together(self, name: str, batch: Sequence[Arrays]) -> list[Arrays]:
        ends = np.cumsum([_rows(inputs) for inputs in batch])
        self._on_pass(int(ends[-1]))
        outputs = self._run(name, _concatenate(batch))
        starts = [0, *ends[:-1]]
        return [
            _slice(outputs, start, end) for start, end in zip(starts, ends, strict=True)
        ]

    def close(self) -> None:
        """Has the thread take nothing new and end after its pass."""
        self._thread.shutdown(wait=False, cancel_futures=True)


def _rows(inputs: Arrays) -> int:
    return len(next(iter(inputs.values())))


def _slice(arrays: Arrays, start: int, end: int) -> Arrays:
    return {name: array[start:end] for name, array in arrays.items()}


def _concatenate(parts: Sequence[Arrays]) -> Arrays:
    if len(parts) == 1:
        return parts[0]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
