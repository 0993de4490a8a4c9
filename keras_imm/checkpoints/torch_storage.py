"""Reads tensors in the format that PyTorch wrote storages in before its zip files."""

import sys
from typing import Any

import numpy as np

from keras_imm.checkpoints.pickle_reader import Buffer, Name, PersistentId, read_pickle

_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001
_MOST_INSTRUCTIONS = 40  # PyTorch writes 30 at most
_BFLOAT16 = "BFloat16Storage"
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
    "BoolStorage": "<u1",
}


def read_storage(data: Any) -> np.ndarray:
    """Reads one storage.

    Args:
        data: Bytes or a view of them: five pickles (a magic number, the version, the
            writer's machine, the storage's persistent id, a list of keys), then the
            number of elements and the elements.

    Returns:
        A flat array; a view of `data`, except that bfloat16 becomes float32.

    Raises:
        ValueError: If `data` is not such a storage.
    """
    buffer = Buffer(data)
    magic, protocol, machine, storage, keys = (
        read_pickle(buffer, _is_storage_type, _MOST_INSTRUCTIONS) for _ in range(5)
    )
    if magic != _MAGIC or protocol != _PROTOCOL:
        raise ValueError("a tensor is not in PyTorch's format")
    if not isinstance(machine, dict) or machine.get("little_endian") is not True:
        raise ValueError("a tensor was not written on a little-endian machine")
    kind, key, count = _described(storage)
    if keys != [key]:
        raise ValueError("a tensor has no storage of its own")
    dtype = np.dtype(_DTYPES[kind])
    stored = int.from_bytes(buffer.read(8), "little", signed=True)
    rest = buffer.data[buffer.position :]
    if stored != count or len(rest) != count * dtype.itemsize:
        raise ValueError(
            f"a tensor declares {count} elements of {dtype.itemsize} bytes and holds "
            f"{len(rest)} bytes"
        )
    elements = np.frombuffer(rest, dtype)
    if kind == _BFLOAT16:
        return (elements.astype("<u4") << 16).view("<f4")
    return elements


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


def _is_storage_type(name: Name) -> bool:
    return name.module == "torch" and name.name in _DTYPES


def _described(storage: Any) -> tuple[str, str, int]:
    """Type, key and number of elements in a storage's persistent id."""
    is_id = isinstance(storage, PersistentId) and isinstance(storage.value, tuple)
    if not is_id or len(storage.value) != 6 or storage.value[0] != "storage":
        raise ValueError("a tensor has no storage")
    _, kind, key, _, count, window = storage.value
    known = isinstance(kind, Name) and isinstance(key, str) and type(count) is int
    if not known or window is not None or count < 0:
        raise ValueError("a tensor has no storage")
    return kind.name, key, count
