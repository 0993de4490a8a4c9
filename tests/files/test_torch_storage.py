"""Storages and the tensors in them, against PyTorch's own."""

import io
import pickle

import numpy as np
import pytest
import torch
from hostile_files import legacy_storage

from keras_imm.files.torch_storage import read_storage, view

pytestmark = pytest.mark.one_backend("reads files")

DTYPES = (
    *("float64", "float32", "float16", "bfloat16"),
    *("int64", "int32", "int16", "int8", "uint8", "bool"),
)


def saved(tensor):
    file = io.BytesIO()
    torch.save(tensor.storage(), file, _use_new_zipfile_serialization=False)
    return file.getvalue()


@pytest.mark.filterwarnings("ignore:TypedStorage")
@pytest.mark.parametrize("dtype", DTYPES)
def test_storages_of_every_type(dtype):
    tensor = torch.tensor([-3.25, 0.0, 1.0, 2.0, 100.0]).abs()
    tensor = tensor.to(getattr(torch, dtype))
    array = read_storage(saved(tensor))
    expected = tensor.float() if dtype == "bfloat16" else tensor
    np.testing.assert_array_equal(array, expected.numpy())
    assert array.dtype.itemsize == expected.element_size()


@pytest.mark.parametrize(
    ("offset", "shape", "strides"),
    [
        (0, (24,), (1,)),
        (0, (2, 3, 4), (12, 4, 1)),
        (3, (4, 2), (5, 1)),
        (1, (3, 4), (1, 3)),
        (23, (1,), (7,)),
        (5, (), ()),
    ],
)
def test_views_are_torchs(offset, shape, strides):
    storage = np.arange(24, dtype="float32")
    expected = torch.as_strided(torch.arange(24.0), shape, strides, offset).numpy()
    found = view(storage, offset, shape, strides)
    np.testing.assert_array_equal(found, expected)
    assert not found.flags.writeable


@pytest.mark.parametrize(
    ("offset", "shape", "strides"),
    [
        (0, (25,), (1,)),
        (1, (24,), (1,)),
        (24, (1,), (1,)),
        (0, (2, 3), (23, 1)),
        (0, (0,), (1,)),
        (0, (100, 100), (0, 0)),
        (0, (2**40,), (0,)),
        (0, (2**62, 2**62), (0, 0)),
        (-1, (2,), (1,)),
        (0, (2,), (-1,)),
        (0, (-2,), (1,)),
        (0, (2, 2), (1,)),
        (0, 9 * (1,), 9 * (1,)),
        (True, (2,), (1,)),
        (0, (2.0,), (1,)),
        (0, [2], (1,)),
        (None, (2,), (1,)),
        (2**70, (2,), (1,)),
    ],
)
def test_tensors_outside_their_storage(offset, shape, strides):
    with pytest.raises(ValueError, match=r"a tensor (of|has a) shape"):
        view(np.zeros(24, "float32"), offset, shape, strides)


def identity(*changes):
    """The identity of a storage of one float, with some of its fields changed."""
    fields = ["storage", b"ctorch\nFloatStorage\n", "0", "cpu", 1, None]
    for index, value in changes:
        fields[index] = value
    parts = [
        field if isinstance(field, bytes) else pickle.dumps(field, 2)[2:-1]
        for field in fields
    ]
    return b"\x80\x02(" + b"".join(parts) + b"tQ."


def test_the_storage_that_the_errors_start_from_is_read():
    np.testing.assert_array_equal(read_storage(legacy_storage(identity())), [1.0])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (legacy_storage(identity((4, 2))), "declares 2 elements of 4 bytes"),
        (legacy_storage(identity((4, True))), "has no storage"),
        (legacy_storage(identity((4, -1))), "has no storage"),
        (legacy_storage(identity((0, "tensor"))), "has no storage"),
        (legacy_storage(identity((5, (0, 1)))), "has no storage"),
        (legacy_storage(identity((1, "FloatStorage"))), "has no storage"),
        (legacy_storage(identity((2, "1"))), "no storage of its own"),
        (legacy_storage(identity((1, b"ctorch\nUntypedStorage\n"))), "asks for"),
        (legacy_storage(identity((1, b"ctorch\nDoubleStorage\n"))), "of 8 bytes"),
        (legacy_storage(b"\x80\x02K\x01."), "has no storage"),
        (legacy_storage(identity())[:-1], "holds 3 bytes"),
        (legacy_storage(identity()) + b"x", "holds 5 bytes"),
        (pickle.dumps(7, 2) * 5, "not in PyTorch's format"),
        (
            legacy_storage(identity()).replace(b"\x8a\n\x6c", b"\x8a\n\x6d"),
            "not in PyTorch's format",
        ),
        (
            legacy_storage(identity()).replace(
                b"little_endianq\x02\x88", b"little_endianq\x02\x89"
            ),
            "little-endian",
        ),
    ],
)
def test_other_storages(content, message):
    with pytest.raises(ValueError, match=message):
        read_storage(content)
