"""HDF5 files whose errors wait until HDF5 has closed them."""

import contextlib
import io
import os
from collections.abc import Iterator
from typing import Any


class HDF5File(io.BytesIO):
    """A file on the disk for h5py to write, whose errors are kept for later.

    Closing a file that it could not write, for want of room on the disk, HDF5 crashes
    the process. Here it is told that all is well, and what it writes after the first
    error is dropped. Keras takes it for a path by its text, and for a file by its
    class.

    Args:
        path: The file to make.

    Attributes:
        error: The first error, or None.
    """

    def __init__(self, path: str | os.PathLike[str]):
        super().__init__()
        self._path = os.fspath(path)
        self._file = open(path, "w+b", buffering=0)  # noqa: SIM115, h5py's to close
        self.error = None

    def __str__(self) -> str:
        return self._path

    def _tried(self, method: Any, *arguments: Any, otherwise: Any) -> Any:
        if self.error is None:
            try:
                return method(*arguments)
            except OSError as error:
                self.error = error
        return otherwise

    def write(self, data: Any) -> int:
        rest = memoryview(data).cast("B")
        size = len(rest)
        while rest:
            rest = rest[self._tried(self._file.write, rest, otherwise=len(rest)) :]
        return size

    def truncate(self, size: int | None = None) -> int:
        return self._tried(self._file.truncate, size, otherwise=size or 0)

    def flush(self) -> None:
        pass  # it has no buffer

    def readinto(self, buffer: Any) -> int:
        return self._file.readinto(buffer)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def close(self) -> None:
        self._file.close()
        super().close()


@contextlib.contextmanager
def hdf5_file(path: str | os.PathLike[str]) -> Iterator[HDF5File]:
    """A file for h5py, and its error, if there was one, at the end.

    Raises:
        OSError: If the disk is full, among others.
    """
    with contextlib.closing(HDF5File(path)) as file:
        yield file
    if file.error is not None:
        raise file.error
