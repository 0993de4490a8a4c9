"""Folders that are there whole or not at all, whenever a process is killed."""

import contextlib
import os
import pathlib
import shutil
import uuid
from collections.abc import Iterator

_UNFINISHED = ".unfinished-"


@contextlib.contextmanager
def atomic_directory(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """Makes a folder that appears under its name only when it is complete.

    The body writes into a temporary folder beside it, which is synchronised with the
    disk and renamed at the end. If the body fails nothing is left behind; if the
    process is killed, what is left is removed by `remove_unfinished`.

    Args:
        path: The folder to make. It must not exist.

    Yields:
        Path of the temporary folder.

    Raises:
        FileExistsError: If `path` exists at the end.
        OSError: If the disk is full or read-only, among others.
    """
    path = pathlib.Path(path)
    temporary = path.with_name(f"{_UNFINISHED}{path.name}-{uuid.uuid4().hex[:8]}")
    temporary.mkdir()
    try:
        yield temporary
        for folder, _, files in os.walk(temporary):
            for file in files:
                _synchronise(os.path.join(folder, file))
            _synchronise(folder)
        if path.exists():
            raise FileExistsError(f"{str(path)!r} exists already")
        temporary.rename(path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    _synchronise(path.parent)


def remove_directory(path: str | os.PathLike) -> None:
    """Removes a folder so that no reader finds it in part."""
    path = pathlib.Path(path)
    doomed = path.with_name(f"{_UNFINISHED}{path.name}-{uuid.uuid4().hex[:8]}")
    path.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def remove_unfinished(parent: str | os.PathLike) -> None:
    """Removes what killed processes left of folders in `parent`."""
    for path in pathlib.Path(parent).glob(f"{_UNFINISHED}*"):
        shutil.rmtree(path, ignore_errors=True)


def _synchronise(path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
