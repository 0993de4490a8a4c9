"""Arrays in pickles and PyTorch's files are what was written, or a ValueError."""

import functools
import io
import pickle
import struct
import tracemalloc
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import torch
from hostile_files import attacks, framed, text

from keras_imm.files.pickled_arrays import load_pickle, load_torch

pytestmark = pytest.mark.one_backend("reads files")

RNG = np.random.default_rng(0)
ARRAYS = {
    "float64": RNG.normal(size=(3, 4)),
    "float32": RNG.normal(size=5).astype("f4"),
    "float16": RNG.normal(size=5).astype("f2"),
    "big_endian": RNG.normal(size=(2, 2)).astype(">f8"),
    "fortran": np.asfortranarray(RNG.normal(size=(3, 4))),
    "transposed": RNG.normal(size=(2, 3, 4)).transpose(1, 2, 0),
    "not_contiguous": RNG.normal(size=(6, 4))[::2, 1:],
    "long": RNG.normal(size=10_000),
    "int": np.array([[-1, 2**40]]),
    "uint8": np.arange(256, dtype="u1"),
    "bool": np.array([True, False]),
    "complex": np.array([1 + 2j]),
    "text": np.array(["a", "bcd"]),
    "bytes": np.array([b"a", b"bcd"]),
    "no_axes": np.array(3.5),
    "no_elements": np.zeros((0, 3)),
}
TORCH_DTYPES = (
    *("float64", "float32", "float16", "int64", "int32", "int16", "int8", "uint8"),
    "bool",
)


def assert_equal(found, expected):
    assert type(found) is type(expected)
    if isinstance(expected, np.ndarray):
        assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
        np.testing.assert_array_equal(found, expected)
    else:
        assert found == expected


@pytest.fixture
def read(tmp_path):
    """What `load_pickle` makes of bytes."""

    def load(content, function=load_pickle):
        (tmp_path / "file").write_bytes(content)
        return function(tmp_path / "file")

    return load


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("name", ARRAYS)
def test_arrays_are_those_that_numpy_wrote(read, name, protocol):
    assert_equal(read(pickle.dumps(ARRAYS[name], protocol)), ARRAYS[name])


@pytest.mark.parametrize("protocol", range(6))
def test_what_arrays_lie_in(read, protocol):
    content = {
        "numbers": [1, -(2**40), 1.5, True, None, 2**70],
        "text": ("ä", "x\ny", "", "z" * 10_000),
        "scalar": np.float64(2.5),
        "ordered": OrderedDict(b=[ARRAYS["int"]], a=({"c": ARRAYS["bool"]},)),
    }
    found = read(pickle.dumps(content, protocol))
    assert (found["numbers"], found["text"]) == (content["numbers"], content["text"])
    assert_equal(found["scalar"], content["scalar"])
    assert list(found["ordered"]) == ["b", "a"]
    assert_equal(found["ordered"]["b"][0], ARRAYS["int"])
    assert_equal(found["ordered"]["a"][0]["c"], ARRAYS["bool"])


def test_names_of_numpy_1_and_strings_of_python_2(read):
    array = ARRAYS["float64"]
    content = pickle.dumps(array, 2)
    assert b"numpy._core" in content
    assert_equal(read(content.replace(b"numpy._core", b"numpy.core")), array)
    pairs = b"]]U\x02muaK\x07aa\x85R"
    assert read(b"\x80\x02ccollections\nOrderedDict\n" + pairs + b".") == {"mu": 7}
    assert read(b"S'a\\x41'\n.") == "aA"


def test_what_is_shared_stays_shared(read):
    array = ARRAYS["float32"]
    first, second = read(pickle.dumps([array, [array]]))
    assert first is second[0]


@pytest.mark.parametrize("as_zip", [True, False])
@pytest.mark.parametrize("dtype", TORCH_DTYPES)
def test_tensors_are_those_that_torch_wrote(tmp_path, dtype, as_zip):
    base = torch.arange(24).to(getattr(torch, dtype))
    tensors = {
        "whole": base.reshape(2, 3, 4),
        "transposed": base.reshape(4, 6).T,
        "part": base[3:17:2],
        "number": base[7],
        "nothing": base[:0].reshape(0, 3),
        "parameter_like": [base, base],
    }
    save = functools.partial(torch.save, _use_new_zipfile_serialization=as_zip)
    save(tensors, tmp_path / "a.pt")
    found = load_torch(tmp_path / "a.pt")
    assert list(found) == list(tensors)
    assert found["parameter_like"][0].base is found["parameter_like"][1].base
    for name in list(tensors)[:-1]:
        assert_equal(found[name], tensors[name].numpy())


@pytest.mark.parametrize("as_zip", [True, False])
def test_bfloat16_becomes_float32(tmp_path, as_zip):
    tensor = torch.linspace(-3, 3, 7).to(torch.bfloat16)
    torch.save(tensor, tmp_path / "a", _use_new_zipfile_serialization=as_zip)
    assert_equal(load_torch(tmp_path / "a"), tensor.float().numpy())


@pytest.mark.parametrize("as_zip", [True, False])
def test_a_state_dict_with_its_attributes(tmp_path, as_zip):
    """`state_dict` returns an `OrderedDict` that has `_metadata`."""
    layer = torch.nn.BatchNorm1d(3)
    state = layer.state_dict()
    assert state._metadata
    torch.save(state, tmp_path / "a", _use_new_zipfile_serialization=as_zip)
    found = load_torch(tmp_path / "a")
    assert found.keys() == state.keys()
    for name, tensor in state.items():
        assert_equal(found[name], tensor.numpy())


# -- Damaged and hostile files

REDUCE = b"cnumpy._core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85C\x01b\x87R"


def dtype(kind):
    return b"cnumpy\ndtype\n" + text(kind) + b"\x89\x88\x87R"


def array(shape, kind="f8", data=b"C\x08" + bytes(8)):
    """A pickled array whose shape and data are given as instructions."""
    return framed(REDUCE + b"(K\x01" + shape + dtype(kind) + b"\x89" + data + b"tb")


def test_the_array_that_the_errors_start_from_is_read(read):
    assert_equal(read(array(b"K\x01\x85")), np.zeros(1))


HUGE = b"\x8a\x08" + struct.pack("<q", 2**60)
DOUBLING = b")" + b"q\x00h\x00\x86" * 100


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (array(b"K\x02\x85"), r"of shape \(2,\) and type float64 holds 8 bytes"),
        (array(HUGE + b"\x85"), "holds 8 bytes"),
        (array(HUGE + HUGE + b"\x86"), "holds 8 bytes"),
        (array(b"J\xff\xff\xff\xffJ\xff\xff\xff\xff\x86"), "a shape that is not one"),
        (array(b"\x88\x85"), "a shape that is not one"),
        (array(b"K\x01"), "a shape that is not one"),
        (array(b"K\x01\x85", "O8"), "'O8' is not numbers or text"),
        (array(b"K\x01\x85", "V8"), "'V8' is not numbers or text"),
        (array(b"K\x01\x85", "S0"), "'S0' is not numbers or text"),
        (array(b"K\x01\x85", "S99999999999"), "is not numbers or text"),
        (array(b"K\x01\x85", "f8,f8"), "is not numbers or text"),
        (array(b"K\x01\x85", data=b"]"), "no type or no elements"),
        (framed(REDUCE), "."),
        (framed(b"cnumpy\ndtype\n)R"), "of type 'None' is not numbers or text"),
        (framed(b"ccollections\nOrderedDict\n" + DOUBLING + b"\x85R"), "."),
        (framed(b"]q\x00h\x00a"), "something in it holds itself"),
        (framed(b"]" * 200 + b"a" * 199), "nested more than 100 deep"),
        (framed(b"K\x01Q"), "refers to something outside of it"),
        (framed(b"cnumpy\nndarray\n)R"), "it makes a 'numpy.ndarray'"),
        (framed(b"c__builtin__\nbytes\n" + HUGE + b"\x85R"), "."),
        (framed(b"cnumpy\nload\n" + text("x") + b"\x85R"), "asks for 'numpy.load'"),
        (b"I1\np" + str(2**61).encode() + b"\n.", "an index that is out of range"),
    ],
)
def test_damage_is_named(read, content, message):
    with pytest.raises(ValueError, match=f"file cannot be read.*({message})"):
        read(content)


# Numbers too large that nobody takes for anything.
HARMLESS = {"memo_index", "long_frame"}


@pytest.mark.slow("reads dozens of hostile files")
@pytest.mark.parametrize("function", [load_pickle, load_torch])
@pytest.mark.parametrize("name", [name for name, _ in attacks("marker")])
def test_attacks(read, tmp_path, name, function):
    content = dict(attacks(str(tmp_path / "marker")))[name]
    tracemalloc.start()
    try:
        if function is load_pickle and name in HARMLESS:
            assert isinstance(read(content, function), dict)
        else:
            with pytest.raises(ValueError, match="file cannot be read"):
                read(content, function)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert not (tmp_path / "marker").exists()
    assert peak < 5e6 + 300 * len(content)


def test_what_is_shared_is_made_once(read):
    """Of 2 ** 60 paths to one tuple each leads to the same."""
    pairs = b")" + b"q\x00h\x00\x86" * 60
    found = read(framed(b"}" + text("a") + pairs + b"s"))["a"]
    for _ in range(60):
        assert found[0] is found[1]
        found = found[0]


def rezipped(path, change):
    """A zip file of PyTorch's with its parts, (name, data), changed or left out."""
    file = io.BytesIO()
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(file, "w") as new:
        for info in old.infolist():
            changed = change(info.filename, old.read(info))
            if changed is not None:
                new.writestr(*changed)
    return file.getvalue()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda n, d: None if n.endswith("/data/0") else (n, d), "has no 'data/0'"),
        (lambda n, d: (n, d[:-1] if n.endswith("/data/0") else d), "cut short.*19 b"),
        (lambda n, d: (n, b"big" if n.endswith("order") else d), "little-endian"),
        (lambda n, d: (n.replace("data.pkl", "x"), d), "not a file that torch.save"),
        (
            lambda n, d: (n, d, zipfile.ZIP_DEFLATED),
            "takes more memory than disk",
        ),
    ],
)
def test_damaged_zip_files(read, tmp_path, change, message):
    torch.save(torch.ones(5), tmp_path / "a.pt")
    unchanged = rezipped(tmp_path / "a.pt", lambda name, data: (name, data))
    assert_equal(read(unchanged, load_torch), np.ones(5, "float32"))
    with pytest.raises(ValueError, match=f"file cannot be read.*{message}"):
        read(rezipped(tmp_path / "a.pt", change), load_torch)


def legacy(tensors):
    file = io.BytesIO()
    torch.save(tensors, file, _use_new_zipfile_serialization=False)
    return file.getvalue()


def test_a_storage_of_any_declared_size_allocates_nothing(read):
    content = legacy(torch.ones(5))
    declared = content.replace(b"K\x05N", b"J\xff\xff\xff\x7fN", 1)
    assert declared != content
    tracemalloc.start()
    try:
        with pytest.raises(
            ValueError, match=r"cut short.*declares 2147483647 elements"
        ):
            read(declared, load_torch)
        assert tracemalloc.get_traced_memory()[1] < 1e6
    finally:
        tracemalloc.stop()


def test_views_of_storages_are_not_guessed(read):
    content = legacy(torch.ones(5))
    part = content.replace(b"K\x05N", b"K\x05K\x00K\x05\x86", 1)
    with pytest.raises(ValueError, match="a part of another"):
        read(part, load_torch)


def test_files_of_others_are_not_torchs(read, tmp_path):
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("a/b", b"x")
    for content in (pickle.dumps({"mu": 1}) * 5, (tmp_path / "other.zip").read_bytes()):
        with pytest.raises(ValueError, match=r"PyTorch's format|torch\.save wrote"):
            read(content, load_torch)
    with pytest.raises(OSError):
        load_torch(tmp_path / "missing")
