"""Files in a folder or in a zip file, by their paths there.

Both leave out hidden files, and what systems leave behind: `Thumbs.db`, `__MACOSX` and
the like. Paths are relative and have slashes, the empty path is the tree itself.
"""

import collections
import functools
import os
import pathlib
import zipfile

from keras_imm.datasets.decoding import CorruptRecordError
from keras_imm.validation import shortened

_SYSTEM_FILES = frozenset(
    (
        "$recycle.bin",
        "@eadir",
        "__macosx",
        "__pycache__",
        "desktop.ini",
        "ehthumbs.db",
        "lost+found",
        "system volume information",
        "thumbs.db",
    )
)
_ENCRYPTED = 0x1


class FolderTree:
    """Files in a folder. Links to folders are followed, but not in circles.

    Args:
        root: The folder.
    """

    def __init__(self, root: str | os.PathLike[str]):
        self.root = pathlib.Path(root)

    def listing(self, folder: str = "") -> tuple[list[str], list[str]]:
        """Names of the files and of the subfolders of a folder, sorted."""
        files, folders = [], []
        with os.scandir(self.root / folder) as entries:
            for entry in entries:
                if _is_visible(entry.name):
                    (folders if os.path.isdir(entry) else files).append(entry.name)
        return sorted(files), sorted(folders)

    def below(self, folder: str = "") -> list[str]:
        """Paths of the files below a folder, relative to it, sorted."""
        found = []
        top = self.root / folder
        above = [self.root / path for path in pathlib.PurePosixPath(folder).parents]
        # Where a link leads back to, there is a loop.
        seen = {*self.root.resolve().parents, *(path.resolve() for path in above)}
        for parent, subfolders, files in os.walk(top, followlinks=True, onerror=_raise):
            real = pathlib.Path(parent).resolve()
            if real in seen:
                subfolders.clear()
                continue
            seen.add(real)
            subfolders[:] = sorted(filter(_is_visible, subfolders))
            inside = pathlib.Path(parent).relative_to(top).as_posix()
            inside = "" if inside == "." else inside
            found += [_joined(inside, file) for file in files if _is_visible(file)]
        return sorted(found)

    def read(self, file: str) -> bytes:
        """Content of a file.

        Raises:
            CorruptRecordError: If it is a link to what is not there, or a pipe or
                device.
            OSError: If it cannot be read.
        """
        path = self.root / file
        if path.exists() and not path.is_file():
            raise CorruptRecordError("it is no file")
        try:
            return path.read_bytes()
        except OSError as error:
            if not _is_dangling(path):
                raise
            raise CorruptRecordError(
                f"it is a link to what is not there, {os.readlink(path)!r}"
            ) from error

    def size(self, file: str) -> int:
        """Bytes of a file, -1 of a link to what is not there."""
        path = self.root / file
        try:
            return path.stat().st_size
        except OSError:
            if not _is_dangling(path):
                raise
            return -1

    def name(self, path: str = "") -> str:
        """What a file or folder is called in messages."""
        return str(self.root / path)


class ZipTree:
    """Files in a zip file. Pickling keeps its path alone.

    Args:
        path: The zip file.

    Raises:
        ValueError: If it is damaged or encrypted, or two files have one name, or one is
            outside of it, as "../a.png" is.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = pathlib.Path(path)
        self._folders = collections.defaultdict(set)
        self._files = collections.defaultdict(list)
        for name in self._members:
            folder, _, file = name.rpartition("/")
            if file:
                self._files[folder].append(file)
            while folder:
                parent, _, child = folder.rpartition("/")
                self._folders[parent].add(child)
                folder = parent

    def listing(self, folder: str = "") -> tuple[list[str], list[str]]:
        """Names of the files and of the subfolders of a folder, sorted."""
        return sorted(self._files[folder]), sorted(self._folders[folder])

    def below(self, folder: str = "") -> list[str]:
        """Paths of the files below a folder, relative to it, sorted."""
        found, pending = [], [""]
        while pending:
            inside = pending.pop()
            files, folders = self.listing(_joined(folder, inside))
            found += [_joined(inside, file) for file in files]
            pending += [_joined(inside, child) for child in folders]
        return sorted(found)

    def read(self, file: str) -> bytes:
        """Content of a file.

        Raises:
            CorruptRecordError: If it is damaged.
            OSError: If the zip file cannot be read.
        """
        try:
            return self._archive.read(self._members[file])
        except OSError:
            raise
        except Exception as error:  # a damaged file, in the words of its decoder
            raise CorruptRecordError(str(error) or type(error).__name__) from error

    def size(self, file: str) -> int:
        """Bytes of a file."""
        return self._members[file].file_size

    def name(self, path: str = "") -> str:
        """What a file or folder is called in messages."""
        return str(self.path / path)

    @functools.cached_property
    def _archive(self) -> zipfile.ZipFile:
        return zipfile.ZipFile(self.path)

    @functools.cached_property
    def _members(self) -> dict[str, zipfile.ZipInfo]:
        try:
            return zip_members(self._archive)
        except (OSError, zipfile.BadZipFile, ValueError) as error:
            raise ValueError(f"Cannot read {self.path}: {error}") from error

    def __reduce__(self) -> tuple:
        return ZipTree, (self.path,)


def zip_members(archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """The members of a zip file by their paths; those of folders end in a slash.

    Raises:
        ValueError: If one is encrypted, two have one name, or a name is no path in it.
    """
    members = {}
    for info in archive.infolist():
        # Windows has written backslashes.
        parts = info.filename.replace("\\", "/").split("/")
        if not all(_is_visible(part) for part in parts if part not in (".", "..")):
            continue
        name = "/".join(part for part in parts if part != ".")
        problem = _problem(info, parts, name in members)
        if problem:
            raise ValueError(f"{shortened(repr(info.filename))} {problem}")
        members[name] = info
    return members


def _problem(info, parts, is_there):
    """What is wrong with a member of a zip file, or None."""
    if ".." in parts or "" in parts[:-1]:
        return "is a name outside of it: pack files by relative paths"
    if is_there and parts[-1]:
        return "is in it twice: pack each file once"
    if info.flag_bits & _ENCRYPTED:
        return "is encrypted: pack files without a password"
    return None


def _is_visible(name):
    return not name.startswith(".") and name.lower() not in _SYSTEM_FILES


def _joined(folder, name):
    return "/".join(part for part in (folder, name) if part)


def _is_dangling(path):
    return os.path.islink(path) and not os.path.exists(path)


def _raise(error):
    raise error
