"""Pickles as data: what pickle would make of them, or a ValueError."""

import pickle
import struct
from collections import OrderedDict

import numpy as np
import pytest

from keras_imm.files.pickle_reader import (
    Buffer,
    Call,
    Name,
    PersistentId,
    read_pickle,
)

pytestmark = pytest.mark.one_backend("reads files")

SHARED = [1, "shared"]
VALUES = {
    "scalars": [None, True, False, 0, 255, 256, 65536, -1, 2**31, 2**70, -(2**70), 1.5],
    "text": ["", "a", "ä" * 300, "x" * 10_000],
    "bytes": [b"", b"a" * 10, b"b" * 1000],
    "tuples": [(), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4), ((), ((1,),))],
    "containers": [[], {}, {"a": [1, {"b": (2,)}]}, {1: 2, None: 3, False: "x"}],
    "sets": [set(), {1, "a", None}],
    "shared": [SHARED, SHARED, {"again": SHARED}],
    "ordered": OrderedDict(b=1, a=OrderedDict(c=2)),
}


def read(content, allowed=("collections.OrderedDict",)):
    return read_pickle(Buffer(content), lambda name: ".".join(name) in allowed)


@pytest.mark.parametrize("protocol", [4, 5])
@pytest.mark.parametrize("name", VALUES)
def test_data_are_what_pickle_makes_of_them(name, protocol):
    assert read(pickle.dumps(VALUES[name], protocol)) == VALUES[name]


@pytest.mark.parametrize("name", ["scalars", "text", "tuples", "containers", "ordered"])
def test_older_protocols(name):
    for protocol in (0, 1, 2, 3):
        content = pickle.dumps(VALUES[name], protocol)
        found = read_pickle(Buffer(content, len(content)), lambda name: True)
        assert found == VALUES[name]


def test_what_is_shared_stays_shared():
    first, second, third = read(pickle.dumps(VALUES["shared"]))
    assert first is second is third["again"]


def test_long_bytes_are_views_of_the_file():
    content = pickle.dumps(b"x" * 100_000)
    view = read(content)
    assert isinstance(view, memoryview)
    assert view.obj is content
    assert view == b"x" * 100_000


def test_calls_are_recorded_and_not_made():
    content = pickle.dumps(np.dtype("float32"))
    call = read(content, ("numpy.dtype",))
    assert isinstance(call, Call)
    assert call.target == Name("numpy", "dtype")
    assert call.arguments[0] == "f4"
    assert call.state[1] == "<"


def test_persistent_ids_are_kept():
    assert read(b"\x80\x04K\x07Q.") == PersistentId(7)


def test_what_stands_for_persistent_ids_is_chosen():
    buffer = Buffer(b"\x80\x02K\x07QK\x08Q\x86.")
    assert read_pickle(buffer, bool, persistent_load=lambda i: i + 1) == (8, 9)


def test_attributes_of_a_dictionary_are_left_out():
    """As of the dictionaries that PyTorch's `state_dict` returns."""
    ordered = OrderedDict(a=1)
    ordered._metadata = {"version": 2}
    found = read(pickle.dumps(ordered))
    assert found == {"a": 1}
    assert not hasattr(found, "_metadata")


def test_long_lines_are_read_where_they_are_asked_for():
    content = pickle.dumps("x" * 10_000, 0)
    assert read_pickle(Buffer(content, len(content)), bool) == "x" * 10_000
    with pytest.raises(ValueError, match="no newline"):
        read(content)
    assert read(pickle.dumps("x" * 4000, 0)) == "x" * 4000


def test_several_pickles_in_one_file():
    buffer = Buffer(pickle.dumps(1) + pickle.dumps([2]) + b"rest")
    assert read_pickle(buffer, bool) == 1
    assert read_pickle(buffer, bool) == [2]
    assert bytes(buffer.data[buffer.tell() :]) == b"rest"


DAG = b")" + b"q\x00h\x00\x86" * 60  # a tuple of two of a tuple of two ...


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "."),
        (b"\x80\x04", "."),
        (b"\x80\x04X\x05\x00\x00\x00ab.", r"file ends after 10 bytes"),
        # Long enough for the text, but not from where it starts.
        (b"\x80\x04" + b"K\x01" * 20 + b"X\x20\x00\x00\x00ab.", "file ends after"),
        (b"\x80\x04K\x01K\x02.", "leaves objects behind"),
        (b"\x80\x04K\x01(.", "leaves objects behind"),
        (b"\x80\x04(.", "leaves objects behind"),
        (b"\x80\x04\x85.", "takes more than it made"),
        (b"\x80\x04t.", "takes more than it made"),
        (b"\x80\x04K\x01(\x85.", "takes more than it made"),
        (b"\x80\x04h\x00.", "takes more than it made"),
        (b"\x80\x04\x94.", "takes more than it made"),
        (b"\x80\x04]K\x01K\x02s.", "treats a list as another"),
        (b"\x80\x04}K\x01a.", "treats a dict as another"),
        (b"\x80\x04}(K\x01\x90.", "treats a dict as another"),
        (b"\x80\x04}(K\x01u.", "a key without a value"),
        (b"\x80\x04}]K\x01s.", "a list as a key"),
        # Python's hash of these is one number: a dictionary of many takes forever.
        (
            b"\x80\x04}" + pickle.dumps(2**61 - 1, 2)[2:-1] + b"K\x01s.",
            "a int as a key",
        ),
        (b"\x80\x04}" + pickle.dumps(0.5, 2)[2:-1] + b"K\x01s.", "a float as a key"),
        (b"\x80\x04}" + DAG + b"K\x01s.", "a tuple as a key"),
        (b"\x80\x04\x8f(" + DAG + b"\x90.", "a tuple as a key"),
        (b"\x80\x04}}b.", "treats a dict as another"),
        (b"\x80\x04K\x01)R.", "calls something that is not a name"),
        (b"\x80\x04ccollections\nOrderedDict\n]R.", "calls something that is not"),
        (b"\x80\x04ccollections\nOrderedDict\n)R)R.", "calls something that is not"),
        (b"\x80\x04cos\nsystem\n.", r"asks for 'os\.system'"),
        (b"\x80\x04c" + b"o" * 201 + b"\nsystem\n.", "a name that is too long"),
        (b"\x80\x04K\x01K\x02\x93.", "names something that is not a name"),
        (b"\x80\x04X\x02\x00\x00\x00osX\x06\x00\x00\x00system\x93.", r"'os\.system'"),
        (b"I1\np" + str(2**61).encode() + b"\n.", "an index that is out of range"),
        (b"I1\np-1\n.", "an index that is out of range"),
        (b"(ios\nsystem\n.", "instruction INST is not allowed"),
        (b"\x80\x04\x82\x01.", "instruction EXT1 is not allowed"),
        (b"P1\n.", "instruction PERSID is not allowed"),
        (b"\x80\x04\xff.", "."),
    ],
)
def test_damage_is_named(content, message):
    with pytest.raises(ValueError, match=message):
        read(content)


def test_the_number_of_instructions_is_limited():
    many = b"\x80\x04" + b"]K\x01a" * 90_000 + b"N."
    with pytest.raises(ValueError, match="more than 250,000 instructions"):
        read(many)
    fewer = b"\x80\x04](" + b"K\x01" * 200_000 + b"e."
    assert len(read(fewer)) == 200_000


def test_a_length_beyond_the_file_allocates_nothing():
    for opcode, size in ((b"\x8e", "<Q"), (b"B", "<I"), (b"X", "<I"), (b"\x95", "<Q")):
        length = struct.pack(size, 2 ** (60 if size == "<Q" else 32) - 1)
        with pytest.raises(ValueError):
            read(b"\x80\x04" + opcode + length)
