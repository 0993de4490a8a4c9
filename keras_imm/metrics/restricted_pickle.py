"""Reads arrays from pickles and from PyTorch's files, running nothing in them."""

import io
import os
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np

_MAGIC = 0x1950A86A20F9469CFC6C
_DTYPES = {
    "DoubleStorage": "<f8",
    "FloatStorage": "<f4",
    "HalfStorage": "<f2",
    "LongStorage": "<i8",
    "IntStorage": "<i4",
    "ShortStorage": "<i2",
    "CharStorage": "<i1",
    "ByteStorage": "<u1",
    "BoolStorage": "?",
}


def read_pickle(path: str | os.PathLike) -> Any:
    """Reads numbers, strings, containers and NumPy arrays from a pickle.

    Args:
        path: The file.

    Returns:
        What the pickle holds.

    Raises:
        ValueError: If the file is no pickle, or asks for anything but NumPy's arrays.
        OSError: If it cannot be read.
    """
    with open(path, "rb") as file:
        return _load(path, _Unpickler(file))


def read_torch(path: str | os.PathLike) -> Any:
    """Reads what `torch.save` wrote, in its zip format or the one before it.

    PyTorch need not be installed.

    Args:
        path: The file.

    Returns:
        What was saved, with tensors as NumPy arrays.

    Raises:
        ValueError: If the file is none of PyTorch's, is cut short, or asks for
            anything but arrays and tensors.
        OSError: If it cannot be read.
    """
    if zipfile.is_zipfile(path):
        return _load(path, None, _read_zip)
    return _load(path, None, _read_legacy)


def _load(path, unpickler, read=None):
    try:
        return unpickler.load() if read is None else read(path)
    except OSError:
        raise
    except Exception as error:  # a damaged pickle raises nearly anything
        raise ValueError(f"{os.fspath(path)} cannot be read: {error}") from error


def _read_zip(path):
    with zipfile.ZipFile(path) as archive:
        (name,) = (n for n in archive.namelist() if n.endswith("data.pkl"))
        folder = name.removesuffix("data.pkl")

        def storage(kind, key, _location, count):
            data = archive.read(f"{folder}data/{key}")
            return np.frombuffer(data, _DTYPES[kind])[:count]

        return _Unpickler(io.BytesIO(archive.read(name)), _cached(storage)).load()


def _read_legacy(path):
    with open(path, "rb") as file:
        if _Unpickler(file).load() != _MAGIC:
            raise ValueError("it is not a file that torch.save wrote")
        _Unpickler(file).load()  # the version
        if _Unpickler(file).load().get("little_endian") is not True:
            raise ValueError("it was written on a big-endian machine")
        storages = {}

        def storage(kind, key, _location, count, view=None):
            if view is not None:
                raise ValueError("a storage is part of another")
            return storages.setdefault(key, np.zeros(count, _DTYPES[kind]))

        saved = _Unpickler(file, storage).load()
        for key in _Unpickler(file).load():
            elements = storages[key]
            count = int.from_bytes(file.read(8), "little")
            data = file.read(elements.nbytes)
            if count != elements.size or len(data) != elements.nbytes:
                raise ValueError(f"storage {key!r} is cut short")
            elements[:] = np.frombuffer(data, elements.dtype)
        return saved


def _cached(function):
    """One storage for all the tensors that share it."""
    known = {}

    def cached(kind, key, *arguments):
        if key not in known:
            known[key] = function(kind, key, *arguments)
        return known[key]

    return cached


class _Unpickler(pickle.Unpickler):
    """Knows the few names that such files need, and calls none of PyTorch's."""

    def __init__(self, file: Any, storage: Callable | None = None):
        super().__init__(file)
        self.storage = storage

    def find_class(self, module: str, name: str) -> Any:
        module = module.replace("numpy.core", "numpy._core")
        if module == "torch" and name in _DTYPES:
            return name  # a string, which the persistent id hands on
        if (module, name) in _NUMPY:
            return super().find_class(module, name)
        if (module, name) not in _REPLACED:
            raise pickle.UnpicklingError(f"it asks for {f'{module}.{name}'[:200]!r}")
        return _REPLACED[module, name]

    def persistent_load(self, pid: Any) -> np.ndarray:
        if self.storage is None or pid[0] != "storage":
            raise pickle.UnpicklingError("it refers to something outside of it")
        return self.storage(*pid[1:])


def _tensor(storage, offset, shape, strides, *_):
    end = offset + sum((n - 1) * s for n, s in zip(shape, strides, strict=True)) + 1
    if min((offset, *shape, *strides), default=0) < 0 or (
        0 not in shape and end > storage.size
    ):
        raise ValueError("a tensor does not lie inside its storage")
    return np.lib.stride_tricks.as_strided(
        storage[offset:], shape, [s * storage.itemsize for s in strides]
    )


def _bytes(text, encoding):
    """How Python 2's strings of bytes come back."""
    return str(text).encode("latin1" if encoding == "latin1" else "ascii")


_REPLACED = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("_codecs", "encode"): _bytes,
}
_NUMPY = {
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "scalar"),
    ("numpy._core.numeric", "_frombuffer"),
}
