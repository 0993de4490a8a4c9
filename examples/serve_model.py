"""A SavedModel and the thread that computes with it, for concurrent requests."""

import asyncio
import collections
import concurrent.futures
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from google.protobuf import json_format
from tensorflow.core.protobuf import saved_model_pb2

Arrays = dict[str, np.ndarray]


class SavedModel:
    """A SavedModel in a session, as TF Serving runs it.

    Inputs are not checked here: what does not fit is refused by the graph, with the
    error that TF Serving would pass on.

    Args:
        directory: Folder of a SavedModel, or of its versions, of which the newest is
            taken.
    """

    def __init__(self, directory: str | pathlib.Path):
        path = _newest(pathlib.Path(directory))
        self.version = int(path.name) if path.name.isdecimal() else 1
        proto = saved_model_pb2.SavedModel.FromString(
            (path / "saved_model.pb").read_bytes()
        )
        tf.get_logger().setLevel("ERROR")  # "use tf.saved_model.load": not here
        with tf.Graph().as_default():
            self._session = tf.compat.v1.Session()
            feeds = _feeds(proto.meta_graphs[0].signature_def)
            meta_graph = tf.compat.v1.saved_model.load(
                self._session, ["serve"], str(path), input_map=feeds
            )
        self._feeds = feeds
        self._signatures = dict(meta_graph.signature_def)

    def inputs(self, signature_name: str) -> dict[str, np.dtype] | None:
        """Types of a signature's inputs by their names, or None if there is none."""
        signature = self._signatures.get(signature_name)
        if signature is None:
            return None
        dtypes = {name: info.dtype for name, info in signature.inputs.items()}
        return {
            name: np.dtype(tf.dtypes.as_dtype(dtypes[name]).as_numpy_dtype)
            for name in sorted(dtypes)
        }

    def signatures(self) -> dict[str, Any]:
        """The signatures as protobuf prints them in JSON."""
        return {
            name: json_format.MessageToDict(
                signature,
                preserving_proto_field_name=True,
                always_print_fields_with_no_presence=True,
            )
            for name, signature in self._signatures.items()
        }

    def run(self, signature_name: str, inputs: Mapping[str, np.ndarray]) -> Arrays:
        """The outputs of a signature, by their names.

        Raises:
            tf.errors.OpError: If the graph refuses the inputs.
        """
        signature = self._signatures[signature_name]
        outputs = {name: info.name for name, info in signature.outputs.items()}
        return self._session.run(
            outputs,
            {self._feeds[signature.inputs[name].name]: inputs[name] for name in inputs},
        )


def _newest(directory: pathlib.Path) -> pathlib.Path:
    if (directory / "saved_model.pb").is_file():
        return directory
    versions = [
        path
        for path in (directory.iterdir() if directory.is_dir() else ())
        if path.name.isdecimal() and (path / "saved_model.pb").is_file()
    ]
    if not versions:
        raise FileNotFoundError(f"There is no SavedModel in {directory}.")
    return max(versions, key=lambda path: int(path.name))


def _feeds(signatures: Mapping[str, Any]) -> dict[str, Any]:
    """Placeholders of any shape in place of the inputs.

    TensorFlow's Python, unlike its servers, compares the shapes of placeholders.
    """
    return {
        info.name: tf.compat.v1.placeholder(info.dtype)
        for signature in signatures.values()
        for info in signature.inputs.values()
    }


class Batches:
    """Answers concurrent requests for the same signature in one pass.

    While one pass runs, in a thread of its own, requests gather for the next: nobody
    waits for others to come. Rows are independent, so that no request sees the others;
    if one is at fault, each is answered alone.

    Args:
        run: Function of a signature's name and its inputs.
        max_rows: The most rows of one pass; a larger request takes several.
    """

    def __init__(self, run: Any, max_rows: int = 128):
        self._run = run
        self._max_rows = max_rows
        self._waiting = collections.defaultdict(collections.deque)
        self._worker = None
        self._thread = concurrent.futures.ThreadPoolExecutor(1)

    async def __call__(self, signature_name: str, inputs: Arrays) -> Arrays:
        """The outputs of one request."""
        rows = _rows(inputs)
        if rows is None or rows <= self._max_rows:
            return await self._answered(signature_name, inputs)
        parts = []
        for start in range(0, rows, self._max_rows):
            part = _slice(inputs, start, start + self._max_rows)
            parts.append(await self._answered(signature_name, part))
        return _concatenate(parts)

    async def _answered(self, signature_name: str, inputs: Arrays) -> Arrays:
        answer = asyncio.get_running_loop().create_future()
        self._waiting[signature_name].append((inputs, answer))
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work())
        return await answer

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while self._waiting:
            # The signature that has waited longest; it goes to the end of the line.
            name = next(iter(self._waiting))
            requests = self._waiting.pop(name)
            batch = self._take(requests)
            if requests:
                self._waiting[name] = requests
            inputs = [inputs for inputs, _ in batch]
            results = await loop.run_in_executor(
                self._thread, self._results, name, inputs
            )
            for (_, answer), result in zip(batch, results, strict=True):
                if answer.done():  # its client has gone
                    continue
                if isinstance(result, Exception):
                    answer.set_exception(result)
                else:
                    answer.set_result(result)

    def _take(self, requests: collections.deque) -> list:
        """The first requests, as many as fit into one pass."""
        batch = [requests.popleft()]
        shapes, rows = _shapes(batch[0][0]), _rows(batch[0][0])
        while rows is not None and requests and _shapes(requests[0][0]) == shapes:
            more = _rows(requests[0][0])
            if more is None or rows + more > self._max_rows:
                break
            rows += more
            batch.append(requests.popleft())
        return batch

    def _results(self, signature_name: str, batch: Sequence[Arrays]) -> list:
        """Outputs, or what was raised, for each of several inputs."""
        if len(batch) > 1:
            try:
                return self._together(signature_name, batch)
            except Exception:
                return [self._results(signature_name, [one])[0] for one in batch]
        try:
            return [self._run(signature_name, batch[0])]
        except Exception as error:
            return [error]

    def _together(self, signature_name: str, batch: Sequence[Arrays]) -> list:
        outputs = self._run(signature_name, _concatenate(batch))
        ends = np.cumsum([_rows(inputs) for inputs in batch])
        starts = [0, *ends[:-1]]
        return [
            _slice(outputs, start, end) for start, end in zip(starts, ends, strict=True)
        ]

    def close(self) -> None:
        self._thread.shutdown()


def _rows(inputs: Arrays) -> int | None:
    """The number of rows that all inputs have, or None."""
    counts = {array.shape[:1] for array in inputs.values()}
    return counts.pop()[0] if len(counts) == 1 and () not in counts else None


def _shapes(inputs: Arrays) -> dict[str, tuple]:
    return {name: array.shape[1:] for name, array in inputs.items()}


def _slice(arrays: Arrays, start: int, end: int) -> Arrays:
    return {name: array[start:end] for name, array in arrays.items()}


def _concatenate(parts: Sequence[Arrays]) -> Arrays:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
