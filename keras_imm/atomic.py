"""Files and folders that are there whole or not at all, whoever kills the process."""

import contextlib
import errno
import os
import pathlib
import shutil
import socket
import uuid
from collections.abc import Callable, Iterator

_UNFINISHED = ".unfinished-"
_TAKEN = (errno.EEXIST, errno.ENOTEMPTY)


@contextlib.contextmanager
def atomic_directory(
    path: str | os.PathLike | Callable[[], str | os.PathLike],
) -> Iterator[pathlib.Path]:
    """Makes a folder that appears under its name only when it is complete.

    The body writes into a temporary folder beside it, which is synchronised with the
    disk and renamed at the end. If the body fails nothing is left behind; if the
    process is killed, what is left is removed by `remove_unfinished`.

    Args:
        path: The folder to make. It must not exist. Or a function that returns a free
            one, in the same parent, which is asked at the end, and again if another
            process has been faster.

    Yields:
        Path of the temporary folder.

    Raises:
        FileExistsError: If `path` is no function and exists at the end.
        OSError: If the disk is full or read-only, among others.
    """
    choose = path if callable(path) else lambda: path
    chosen = pathlib.Path(choose())
    temporary = _unfinished(chosen)
    temporary.mkdir()
    try:
        yield temporary
        for folder, _, files in os.walk(temporary):
            for file in files:
                synchronise(os.path.join(folder, file))
            synchronise(folder)
        while True:
            chosen = pathlib.Path(choose())
            if not callable(path) and chosen.exists():
                raise FileExistsError(f"{str(chosen)!r} exists already")
            try:
                temporary.rename(chosen)
                break
            except OSError as error:
                if not callable(path) or error.errno not in _TAKEN:
                    raise
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    synchronise(chosen.parent)


@contextlib.contextmanager
def atomic_file(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """Writes a file that appears under its name, in place of another, when complete.

    Args:
        path: The file to write.

    Yields:
        Path of the temporary file for the body to write, of which nothing is left if
        the body fails.
    """
    path = pathlib.Path(path)
    temporary = _unfinished(path)
    try:
        yield temporary
        synchronise(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    synchronise(path.parent)


def remove_directory(path: str | os.PathLike) -> None:
    """Removes a folder so that no reader finds it in part."""
    path = pathlib.Path(path)
    doomed = _unfinished(path)
    path.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def remove_unfinished(parent: str | os.PathLike, ended: bool = False) -> None:
    """Removes what killed processes left of folders in `parent`.

    Args:
        parent: The folder to clean.
        ended: Whether to leave the folders of processes that may be running: of all
            but those of this machine that have ended.
    """
    for path in pathlib.Path(parent).glob(f"{_UNFINISHED}*"):
        if not ended or _has_ended(path):
            shutil.rmtree(path, ignore_errors=True)


def _unfinished(path: pathlib.Path) -> pathlib.Path:
    """A new name beside a folder, which says whose it is."""
    owner = f"{socket.gethostname()}@{os.getpid()}"
    return path.with_name(f"{_UNFINISHED}{path.name}-{owner}@{uuid.uuid4().hex[:8]}")


def _has_ended(path: pathlib.Path) -> bool:
    owner, *numbers = path.name.split("@")
    ours = owner.endswith(f"-{socket.gethostname()}")
    if not ours or not numbers or not numbers[0].isdecimal():
        return False
    try:
        os.kill(int(numbers[0]), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    return False


def synchronise(path: str | os.PathLike) -> None:
    """Waits until a file, or the names in a folder, are on the disk."""
    if os.name != "posix" and os.path.isdir(path):  # elsewhere a folder cannot be
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
