"""Files and folders that are there whole or not at all, whoever kills the process."""

import contextlib
import errno
import glob
import json
import os
import pathlib
import shutil
import socket
import sys
import uuid
from collections.abc import Callable, Iterator, Sequence
from typing import Any

_UNFINISHED = ".unfinished-"
_TAKEN = (errno.EEXIST, errno.ENOTEMPTY)
_RELATIVE_TO_CURRENT_FOLDER = -100  # AT_FDCWD of Linux
_RENAME_EXCHANGE = 2


@contextlib.contextmanager
def atomic_directory(
    path: str | os.PathLike[str] | Callable[[], str | os.PathLike[str]],
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
        _synchronise_all(temporary)
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
def made_folder(path: str | os.PathLike[str]) -> Iterator[None]:
    """Makes a folder, with its parents, to write into.

    If the body fails, those that were made are removed again, unless something else has
    been put into them.

    Args:
        path: The folder, which may be there.

    Raises:
        OSError: If it is a file, or cannot be made.
    """
    path = pathlib.Path(path)
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    try:
        path.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        for folder in missing:
            with contextlib.suppress(OSError):
                folder.rmdir()
        raise


@contextlib.contextmanager
def replaced_directory(path: str | os.PathLike[str]) -> Iterator[pathlib.Path]:
    """Makes a folder that takes the place of another once it is complete.

    The body writes into a temporary folder beside it, as in `atomic_directory`. On
    Linux the two change places in one step of the file system; elsewhere there is a
    moment without either between two steps.

    Args:
        path: The folder to make. What is there is removed afterwards.

    Yields:
        Path of the temporary folder, of which nothing is left if the body fails.

    Raises:
        OSError: If the disk is full or read-only, among others.
    """
    path = pathlib.Path(path)
    temporary = _unfinished(path)
    temporary.mkdir()
    try:
        yield temporary
        _synchronise_all(temporary)
        if not path.exists():
            temporary.rename(path)
        elif not _exchange(temporary, path):
            _rename_in_turn(temporary, path)
    finally:  # after an exchange it is what was there before
        shutil.rmtree(temporary, ignore_errors=True)
    synchronise(path.parent)


@contextlib.contextmanager
def atomic_files(*paths: str | os.PathLike[str]) -> Iterator[list[pathlib.Path]]:
    """Writes files that take their places once all of them are complete.

    The temporary files lie beside their places and have the same suffixes. All are
    synchronised with the disk before the first is renamed.

    Args:
        *paths: The files to write, in the order in which they take their places.

    Yields:
        Paths of the temporary files for the body to write, of which nothing is left
        if the body fails.

    Raises:
        OSError: If the disk is full or read-only, among others. It names the files.
    """
    places = [pathlib.Path(path) for path in paths]
    temporaries = [_unfinished(place) for place in places]
    try:
        with _naming(*places, in_place_of=temporaries):
            yield temporaries
        for temporary, place in zip(temporaries, places, strict=True):
            with _naming(place):
                synchronise(temporary)
        for temporary, place in zip(temporaries, places, strict=True):
            os.replace(temporary, place)
    finally:
        for temporary in temporaries:
            temporary.unlink(missing_ok=True)
    for folder in dict.fromkeys(place.parent for place in places):
        synchronise(folder)


@contextlib.contextmanager
def atomic_file(path: str | os.PathLike[str]) -> Iterator[pathlib.Path]:
    """Writes a file that appears under its name, in place of another, when complete.

    Args:
        path: The file to write.

    Yields:
        Path of the temporary file for the body to write, which lies beside `path` and
        has its suffix, and of which nothing is left if the body fails.

    Raises:
        OSError: If the disk is full or read-only, among others. It names the file.
    """
    with atomic_files(path) as (temporary,):
        yield temporary


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Writes a text file in UTF-8, in place of another: whole or not at all."""
    with atomic_file(path) as unfinished:
        unfinished.write_bytes(text.encode())


def write_json(path: str | os.PathLike[str], content: Any) -> None:
    """Writes a JSON file, in place of another: whole or not at all."""
    write_text(path, _json(content))


def write_json_once(path: str | os.PathLike[str], content: Any) -> None:
    """Writes a JSON file whole, unless another process is first."""
    path = pathlib.Path(path)
    temporary = _unfinished(path)
    try:
        with _naming(path):
            temporary.write_bytes(_json(content).encode())
            synchronise(temporary)
        try:
            os.link(temporary, path)
        except FileExistsError:
            pass
        except OSError:  # a file system without links
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    synchronise(path.parent)


def remove_directory(path: str | os.PathLike[str]) -> None:
    """Removes a folder so that no reader finds it in part."""
    path = pathlib.Path(path)
    doomed = _unfinished(path)
    path.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def remove_unfinished(
    parent: str | os.PathLike[str], ended: bool = False, stem: str | None = None
) -> None:
    """Removes what killed processes left of folders and files in `parent`.

    Args:
        parent: The folder to clean.
        ended: Whether to leave what processes that may be running are writing: all
            but those of this machine that have ended.
        stem: What the names begin with, up to their first dot. Default: any.
    """
    pattern = f"{_UNFINISHED}*"
    if stem is not None:
        pattern = f"{_UNFINISHED}{glob.escape(stem)}-*"
    for path in pathlib.Path(parent).glob(pattern):
        if ended and not _has_ended(path):
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def synchronise(path: str | os.PathLike[str]) -> None:
    """Waits until a file, or the names in a folder, are on the disk."""
    if os.name != "posix" and os.path.isdir(path):  # elsewhere a folder cannot be
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _synchronise_all(path: pathlib.Path) -> None:
    """Waits until a folder and all that is in it are on the disk."""
    for folder, _, files in os.walk(path):
        for file in files:
            synchronise(os.path.join(folder, file))
        synchronise(folder)


def _exchange(one: pathlib.Path, other: pathlib.Path) -> bool:
    """Exchanges the names of two folders in one step, where the system can do it."""
    if sys.platform != "linux":
        return False
    import ctypes

    rename = getattr(ctypes.CDLL(None), "renameat2", None)
    names = (os.fsencode(one.absolute()), os.fsencode(other.absolute()))
    here = _RELATIVE_TO_CURRENT_FOLDER
    return rename is not None and not rename(
        here, names[0], here, names[1], _RENAME_EXCHANGE
    )


def _rename_in_turn(new: pathlib.Path, path: pathlib.Path) -> None:
    """Has a folder take the place of another, which comes back if that fails."""
    old = _unfinished(path)
    path.rename(old)
    try:
        new.rename(path)
    except OSError:
        old.rename(path)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _unfinished(path: pathlib.Path) -> pathlib.Path:
    """A new name beside a file or folder, which says whose it is.

    Its suffixes are those of `path`: by them Keras knows what it is to write.
    """
    owner = f"{socket.gethostname()}@{os.getpid()}"
    stem, dot, suffixes = path.name.partition(".")
    unique = f"{owner}@{uuid.uuid4().hex[:8]}"
    return path.with_name(f"{_UNFINISHED}{stem}-{unique}{dot}{suffixes}")


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


@contextlib.contextmanager
def _naming(
    *paths: pathlib.Path, in_place_of: Sequence[pathlib.Path] = ()
) -> Iterator[None]:
    """Lets an error that names no file, such as a full disk's, name `paths`.

    Args:
        *paths: The files that are written.
        in_place_of: Temporary files, each of which is called by its place.
    """
    try:
        yield
    except OSError as error:
        known = {
            str(temporary): place
            for temporary, place in zip(in_place_of, paths, strict=False)
        }
        named = None if error.filename is None else str(error.filename)
        if named is not None and named not in known:
            raise
        names = str(known[named]) if named else ", ".join(map(str, paths))
        if error.errno is None:
            raise OSError(f"Cannot write {names}: {error}") from error
        raise OSError(error.errno, error.strerror, names) from error


def _json(content: Any) -> str:
    return json.dumps(content, indent=1) + "\n"
