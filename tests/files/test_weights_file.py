"""Files of weights with fewer bits."""

import h5py
import numpy as np
import pytest

from keras_imm.files.weights_file import is_weights_file, narrow


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "model.weights.h5"
    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        file.attrs["note"] = "kept"
        group = file.create_group("layers/dense/vars")
        group.attrs["name"] = "dense"
        group["0"] = rng.standard_normal((300, 200)).astype("float32")
        group["1"] = rng.standard_normal(3)
        group["2"] = np.float16([0.1, 65504])
        group["3"] = np.zeros((1000, 1000), "float32")
        group["4"] = np.float32(0.3)
        file["seed"] = np.array([3, 2**40], "int64")
        file["text"] = np.frombuffer(b"names", "u1")
        file.create_group("empty")
    return path


def content(path):
    """Arrays and groups by their paths, and attributes."""
    found, attributes = {}, {}

    def visit(name, item):
        found[name] = item[()] if isinstance(item, h5py.Dataset) else None
        attributes[name] = dict(item.attrs)

    with h5py.File(path) as file:
        file.visititems(visit)
        attributes["/"] = dict(file.attrs)
    return found, attributes


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_wider_floats_are_rounded_and_all_else_is_kept(path, dtype):
    before, attributes = content(path)
    narrow(path, dtype)
    after, kept = content(path)
    assert kept == attributes and after.keys() == before.keys()
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    for name, value in before.items():
        if value is None:
            assert after[name] is None
            continue
        wider = value.dtype.kind == "f" and value.dtype.itemsize > int(dtype[-2:]) / 8
        expected = np.dtype(dtype) if wider else value.dtype
        assert after[name].dtype == expected, name
        np.testing.assert_array_equal(after[name], value.astype(expected))


def test_half_precision_takes_half_the_space_and_zeros_none(path):
    narrow(path, "float16")
    numbers = 300 * 200 * 2
    assert numbers < path.stat().st_size < numbers + 20_000  # of 4 MB that it was


def test_what_is_no_such_file(path, tmp_path):
    assert is_weights_file(path)
    assert not is_weights_file(tmp_path)
    assert not is_weights_file(tmp_path / "missing")
    path.write_text("text")
    assert not is_weights_file(path)
