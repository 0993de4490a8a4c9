"""Reads the files that PyTorch writes, as data: its zip files and those before them.

A file is a pickle in which persistent ids stand for storages: flat arrays, whose
elements follow the pickle, or lie beside it in the zip file.
"""

import os
import sys
import zipfile
from collections.abc import Callable
from typing import Any

import numpy as np

from keras_imm.files.pickle_reader import (
    MOST_INSTRUCTIONS,
    Buffer,
    Name,
    read_pickle,
)

_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001
_FEW_INSTRUCTIONS = 40  # PyTorch writes 30 at most before and for one storage
_BFLOAT16 = "BFloat16Storage"
_BOOL = "BoolStorage"
_DTYPES = {
    "DoubleStorage": "<f8",
    "FloatStorage": "<f4",
    "HalfStorage": "<f2",
    _BFLOAT16: "<u2",
    "LongStorage": "<i8",
    "IntStorage": "<i4",
    "ShortStorage": "<i2",
    "CharStorage": "<i1",
    "ByteStorage": "<u1",
    _BOOL: "<u1",
}


class Storage:
    """A storage that a pickle names, and its elements once they are read.

    Attributes:
        kind: Name of its class, as "FloatStorage".
        key: Its name in the file.
        count: Number of its elements.
        elements: Flat array: a view of the file, except that bfloat16 becomes float32
            and truth values are made anew; None before they are read.
    """

    def __init__(self, kind: str, key: str, count: int):
        self.kind = kind
        self.key = key
        self.count = count
        self.elements = None

    @property
    def dtype(self) -> np.dtype:
        """How the elements are stored."""
        return np.dtype(_DTYPES[self.kind])

    @property
    def nbytes(self) -> int:
        """How many bytes the elements take."""
        return self.count * self.dtype.itemsize

    def fill(self, data: Any) -> None:
        """Takes the elements from bytes, or a view of them, of its size."""
        elements = np.ndarray((self.count,), self.dtype, data)
        if self.kind == _BFLOAT16:
            elements = (elements.astype("<u4") << 16).view("<f4")
        if self.kind == _BOOL:
            elements = elements != 0
        self.elements = elements


def is_storage_type(name: Name) -> bool:
    """Whether a name in a pickle is the type of a storage that can be read."""
    return name.module == "torch" and name.name in _DTYPES


def read_legacy(data: Any, is_allowed: Callable[[Name], bool]) -> Any:
    """Reads a file that `torch.save` wrote before it wrote zip files.

    Args:
        data: Bytes or a view of them: five pickles (a magic number, the version, the
            writer's machine, what was saved, a list of the storages' keys), then for
            each key the number of elements and the elements.
        is_allowed: Says whether what was saved may use a name, besides the types of
            storages.

    Returns:
        What was saved, as `read_pickle` returns it, with a `Storage` for a storage.

    Raises:
        ValueError: If `data` is not such a file.
    """
    content, _ = _read_legacy(Buffer(data), is_allowed, MOST_INSTRUCTIONS)
    return content


def read_zip(path: str | os.PathLike[str], is_allowed: Callable[[Name], bool]) -> Any:
    """Reads a zip file that `torch.save` wrote.

    Args:
        path: The file.
        is_allowed: Says whether what was saved may use a name, besides the types of
            storages.

    Returns:
        What was saved, as `read_pickle` returns it, with a `Storage` for a storage.

    Raises:
        ValueError: If it is not such a file, or takes more memory than disk.
        zipfile.BadZipFile: If the zip file is damaged.
        OSError: If it cannot be read.
    """
    with zipfile.ZipFile(path) as archive:
        members = _Members(archive, os.path.getsize(path))
        storages = _Storages()
        content = read_pickle(
            Buffer(members.read("data.pkl")),
            _with_storages(is_allowed),
            persistent_load=storages.load,
        )
        if "byteorder" in members.names and members.read("byteorder") != b"little":
            raise ValueError("it was not written on a little-endian machine")
        for storage in storages.by_key.values():
            elements = members.read(f"data/{storage.key}")
            if len(elements) < storage.nbytes:
                raise _size_error(storage, len(elements))
            storage.fill(elements)
    return content


def read_storage(data: Any) -> np.ndarray:
    """Reads one storage, saved alone in the format before zip files.

    Args:
        data: Bytes or a view of them.

    Returns:
        A flat array; a view of `data`, except that bfloat16 becomes float32.

    Raises:
        ValueError: If `data` is not such a storage.
    """
    buffer = Buffer(data)
    storage, storages = _read_legacy(buffer, _nothing, _FEW_INSTRUCTIONS)
    if not isinstance(storage, Storage) or len(storages) != 1:
        raise ValueError("a tensor has no storage")
    rest = len(buffer.data) - buffer.position
    if rest:
        raise _size_error(storage, storage.nbytes + rest)
    return storage.elements


def view(storage: np.ndarray, offset: Any, shape: Any, strides: Any) -> np.ndarray:
    """A tensor in its storage.

    Args:
        storage: Flat array.
        offset: Index of the first element.
        shape: Tuple of integers.
        strides: Tuple of integers: elements from one index to the next, per axis.

    Returns:
        A read-only view of the storage.

    Raises:
        ValueError: If the tensor does not lie inside its storage, or repeats elements.
    """
    for numbers in ((offset,), shape, strides):
        if not isinstance(numbers, tuple) or not all(
            type(number) is int and 0 <= number <= sys.maxsize for number in numbers
        ):
            raise ValueError("a tensor has a shape that is not one")
    if len(shape) != len(strides) or len(shape) > 8:
        raise ValueError("a tensor has a shape that is not one")
    count, last = 1, offset
    for size, stride in zip(shape, strides, strict=True):
        count *= size
        last += (size - 1) * stride
    if count < 1 or count > storage.size or last >= storage.size:
        raise ValueError(
            f"a tensor of shape {shape} does not fit its {storage.size} elements"
        )
    return np.lib.stride_tricks.as_strided(
        storage[offset:],
        shape,
        [stride * storage.itemsize for stride in strides],
        writeable=False,
    )


class _Storages:
    """The storages that a pickle names, each once."""

    def __init__(self):
        self.by_key = {}

    def load(self, identity: Any) -> Storage:
        """The storage that a persistent id describes."""
        if not isinstance(identity, tuple) or len(identity) not in (5, 6):
            raise ValueError("a tensor has no storage")
        what, kind, key, _, count, *window = identity
        known = isinstance(kind, Name) and isinstance(key, str) and type(count) is int
        if what != "storage" or not known or count < 0:
            raise ValueError("a tensor has no storage")
        if window not in ([], [None]):
            raise ValueError("a tensor has no storage of its own but a part of another")
        storage = self.by_key.setdefault(key, Storage(kind.name, key, count))
        if (storage.kind, storage.count) != (kind.name, count):
            raise ValueError(f"storage {key[:200]!r} is described in two ways")
        return storage


class _Members:
    """The files in a zip file of PyTorch's, of which all together fit into it."""

    def __init__(self, archive: zipfile.ZipFile, nbytes: int):
        self.archive = archive
        self.left = nbytes
        names = archive.namelist()
        pickles = [name for name in names if name.split("/")[1:] == ["data.pkl"]]
        if len(pickles) != 1:
            raise ValueError("it is not a file that torch.save wrote")
        self.folder = pickles[0].removesuffix("data.pkl")
        self.names = {name.removeprefix(self.folder) for name in names}

    def read(self, name: str) -> bytes:
        if name not in self.names:
            raise ValueError(f"it has no {name[:200]!r}")
        member = self.archive.getinfo(self.folder + name)
        self.left -= member.file_size
        if member.compress_type != zipfile.ZIP_STORED or self.left < 0:
            raise ValueError("it takes more memory than disk")
        return self.archive.read(member)


def _read_legacy(buffer, is_allowed, most_instructions):
    """What was saved, and the storages in it by key."""
    magic, protocol, machine = (
        read_pickle(buffer, _nothing, _FEW_INSTRUCTIONS) for _ in range(3)
    )
    if magic != _MAGIC or protocol != _PROTOCOL:
        raise ValueError("it is not in PyTorch's format")
    if not isinstance(machine, dict) or machine.get("little_endian") is not True:
        raise ValueError("it was not written on a little-endian machine")
    storages = _Storages()
    content = read_pickle(
        buffer, _with_storages(is_allowed), most_instructions, storages.load
    )
    keys = read_pickle(buffer, _nothing, most_instructions)
    storages = storages.by_key
    is_list = isinstance(keys, list) and all(isinstance(key, str) for key in keys)
    if not is_list or sorted(keys) != sorted(storages):
        raise ValueError("a tensor has no storage of its own")
    for key in keys:
        _read_elements(buffer, storages[key])
    return content, storages


def _read_elements(buffer, storage):
    stored = int.from_bytes(buffer.read(8), "little", signed=True)
    rest = len(buffer.data) - buffer.position
    if stored != storage.count or rest < storage.nbytes:
        raise _size_error(storage, rest)
    storage.fill(buffer.read(storage.nbytes))


def _size_error(storage, held):
    short = "is cut short: it " if held < storage.nbytes else ""
    return ValueError(
        f"storage {storage.key[:200]!r} {short}declares {storage.count} elements of "
        f"{storage.dtype.itemsize} bytes and holds {held} bytes"
    )


def _with_storages(is_allowed):
    return lambda name: is_storage_type(name) or is_allowed(name)


def _nothing(name):
    return False
