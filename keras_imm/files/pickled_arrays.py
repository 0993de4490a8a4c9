"""Reads arrays from pickles and from PyTorch's files, running nothing in them."""

import math
import os
import re
import zipfile
from typing import Any

import numpy as np

from keras_imm.files.paths import user_path
from keras_imm.files.pickle_reader import Buffer, Call, Name, read_pickle
from keras_imm.files.torch_storage import Storage, read_legacy, read_zip, view

_DEEPEST = 100
_IN_PROGRESS = object()
_KIND = re.compile(r"[biufcSU][1-9]\d{0,8}")


def load_pickle(path: str | os.PathLike[str]) -> Any:
    """Reads numbers, strings, containers and NumPy arrays from a pickle.

    Args:
        path: The file.

    Returns:
        What the pickle holds. Arrays cannot be written to.

    Raises:
        ValueError: If the file is no pickle, or asks for anything but NumPy's arrays.
        OSError: If it cannot be read.
    """
    return _load(path, _read_pickle)


def load_torch(path: str | os.PathLike[str]) -> Any:
    """Reads what `torch.save` wrote, in its zip format or the one before it.

    PyTorch need not be installed.

    Args:
        path: The file.

    Returns:
        What was saved, with tensors as NumPy arrays that cannot be written to;
        bfloat16 as float32.

    Raises:
        ValueError: If the file is none of PyTorch's, is cut short, or asks for
            anything but arrays and tensors.
        OSError: If it cannot be read.
    """
    return _load(path, _read_torch)


def _load(path, read):
    try:
        return _Arrays().of(read(user_path(path)))
    except OSError:
        raise
    except Exception as error:  # a damaged pickle raises nearly anything
        raise ValueError(f"{os.fspath(path)} cannot be read: {error}") from error


def _read_pickle(path):
    content = path.read_bytes()
    buffer = Buffer(content, longest_line=len(content))
    return read_pickle(buffer, _is_allowed, persistent_load=_outside)


def _read_torch(path):
    if zipfile.is_zipfile(path):
        return read_zip(path, _is_allowed)
    return read_legacy(path.read_bytes(), _is_allowed)


def _outside(_):
    raise ValueError("it refers to something outside of it")


def _is_allowed(name: Name) -> bool:
    return name in _MADE_BY or name in _PLAIN_NAMES


class _Arrays:
    """Makes arrays of the calls in a pickle that stand for them, each once."""

    def __init__(self):
        self.made = {}  # by the identity of what they were made from
        self.depth = 0

    def of(self, value: Any) -> Any:
        """`value` with arrays in the place of calls, however deep in containers."""
        make = self._make(value)
        if make is None:
            return value
        if id(value) not in self.made:
            self.made[id(value)] = _IN_PROGRESS
            self.depth += 1
            if self.depth > _DEEPEST:
                raise ValueError(f"it is nested more than {_DEEPEST} deep")
            self.made[id(value)] = make(value)
            self.depth -= 1
        if self.made[id(value)] is _IN_PROGRESS:
            raise ValueError("something in it holds itself")
        return self.made[id(value)]

    def _make(self, value):
        if isinstance(value, dict):
            return lambda items: {key: self.of(item) for key, item in items.items()}
        if isinstance(value, list | tuple) and not isinstance(value, Name):
            return lambda items: type(items)(self.of(item) for item in items)
        if isinstance(value, memoryview):
            return bytes
        if isinstance(value, Storage):
            return lambda storage: storage.elements
        if isinstance(value, Call):
            return self._call
        return None

    def _call(self, call):
        make = _MADE_BY.get(call.target)
        if make is None:
            raise ValueError(f"it makes a {'.'.join(call.target)[:200]!r}")
        return make(self.of(call.arguments), self.of(call.state))


# -- What a name makes of its arguments, and of the state that is given afterwards.


def _array(arguments, state):
    """What `numpy.ndarray.__reduce__` writes."""
    _, shape, dtype, is_fortran, data = state
    return _in_bytes(shape, dtype, data, "F" if is_fortran else "C")


def _array_in_buffer(arguments, _):
    """What `numpy.ndarray.__reduce_ex__` writes from protocol 5 on."""
    data, dtype, shape, order, *axes = arguments
    if order != "K":
        return _in_bytes(shape, dtype, data, order)
    return _in_bytes(shape, dtype, data, "C").transpose(*axes)


def _scalar(arguments, _):
    dtype, data = arguments
    return _in_bytes((), dtype, data, "C")[()]


def _in_bytes(shape, dtype, data, order):
    if not isinstance(dtype, np.dtype) or not isinstance(data, bytes | bytearray):
        raise ValueError("an array has no type or no elements")
    if not isinstance(shape, tuple) or not all(
        type(size) is int and size >= 0 for size in shape
    ):
        raise ValueError("an array has a shape that is not one")
    count = math.prod(shape)
    if len(data) != count * dtype.itemsize:
        raise ValueError(
            f"an array of shape {shape} and type {dtype} holds {len(data)} bytes"
        )
    array = np.ndarray(shape, dtype, data, order=order)
    array.flags.writeable = False
    return array


def _dtype(arguments, state):
    kind = arguments[0] if arguments else None
    if not isinstance(kind, str) or not _KIND.fullmatch(kind):
        raise ValueError(f"an array of type {str(kind)[:200]!r} is not numbers or text")
    is_big = isinstance(state, tuple) and state[1:2] == (">",)
    return np.dtype(kind).newbyteorder(">" if is_big else "<")


def _encoded(arguments, _):
    """How bytes come back from the protocols that had none."""
    text, encoding = arguments
    if encoding != "latin1":
        raise ValueError("it has bytes that are not in latin1")
    return text.encode(encoding)


def _no_bytes(arguments, _):
    """How no bytes at all come back from the protocols that had none."""
    () = arguments
    return b""


def _ordered(arguments, _):
    """How Python 2 wrote an `OrderedDict`: as a list of its items."""
    (pairs,) = arguments
    if not all(isinstance(key, str) for key, _ in pairs):
        raise ValueError("it has keys that are not text")
    return dict(pairs)


def _tensor(arguments, _):
    storage, offset, shape, strides, *_ = arguments
    if not isinstance(storage, np.ndarray):
        raise ValueError("a tensor has no storage")
    if isinstance(shape, tuple) and 0 in shape:
        return _in_bytes(shape, storage.dtype, b"", "C")
    return view(storage, offset, shape, strides)


def _names(modules, name, make):
    return {Name(module, name): make for module in modules}


_PLAIN_NAMES = {Name("numpy", "ndarray")}
_MADE_BY = {
    **_names(("numpy.core.multiarray", "numpy._core.multiarray"), "scalar", _scalar),
    **_names(
        ("numpy.core.multiarray", "numpy._core.multiarray"), "_reconstruct", _array
    ),
    **_names(
        ("numpy.core.numeric", "numpy._core.numeric"), "_frombuffer", _array_in_buffer
    ),
    Name("numpy", "dtype"): _dtype,
    Name("_codecs", "encode"): _encoded,
    Name("__builtin__", "bytes"): _no_bytes,
    Name("collections", "OrderedDict"): _ordered,
    Name("torch._utils", "_rebuild_tensor_v2"): _tensor,
}
