"""One event file for TensorBoard."""

import os
import time
from collections.abc import Mapping
from typing import Any

import numpy as np


class EventFile:
    """Writes numbers and pictures to a new event file, on the disk after each call.

    It takes the record format from tensorboardX, whose own `SummaryWriter` writes from
    a thread: what that has not come to is lost when a process is killed.

    Args:
        folder: Folder of the file; made if missing.
        first_step: What other files in the folder hold from this step on is hidden.

    Raises:
        ImportError: If tensorboardX is not installed.
    """

    def __init__(self, folder: str | os.PathLike[str], first_step: int):
        try:
            from tensorboardX import event_file_writer, summary
            from tensorboardX.proto import event_pb2
        except ImportError as error:
            raise ImportError(
                "`TensorBoard` needs tensorboardX: "
                '`pip install "keras_imm[tensorboard]"`'
            ) from error
        self._summary = summary
        self._event = event_pb2.Event
        os.makedirs(folder, exist_ok=True)
        # Names made within a second would be the same without the suffix. They sort by
        # time, which is how TensorBoard reads them.
        self._writer = event_file_writer.EventsWriter(
            os.path.join(folder, "events"), f".{time.time_ns()}"
        )
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._write(first_step, session_log=start)
        self._writer.flush()

    def add_scalars(self, values: Mapping[str, Any], step: int) -> None:
        for name, value in values.items():
            self._write(step, summary=self._summary.scalar(name, float(value)))
        self._writer.flush()

    def add_image(self, name: str, image: np.ndarray, step: int) -> None:
        summary = self._summary.image(name, image, dataformats="HWC")
        self._write(step, summary=summary)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()

    def _write(self, step: int, **content: Any) -> None:
        event = self._event(wall_time=time.time(), step=step, **content)
        self._writer.write_event(event)
