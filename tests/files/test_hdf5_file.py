"""HDF5 files on a disk that is full."""

import errno
import os

import h5py
import keras
import numpy as np
import pytest
from small_dit import small_dit
from write_faults import room_for

import keras_imm
from keras_imm.files.hdf5_file import hdf5_file
from keras_imm.files.weights_file import narrow

ARRAY = np.arange(50_000, dtype="float32")


def write(path):
    with hdf5_file(path) as file, h5py.File(file, "w") as content:
        content["x"] = ARRAY
        content.create_group("layers/dense")["y"] = ARRAY[::-1]


@pytest.mark.one_backend("h5py alone")
def test_it_is_the_file_that_h5py_writes(tmp_path):
    write(tmp_path / "a.weights.h5")
    with h5py.File(tmp_path / "a.weights.h5") as file:
        np.testing.assert_array_equal(file["x"], ARRAY)
        np.testing.assert_array_equal(file["layers/dense/y"], ARRAY[::-1])


@pytest.mark.one_backend("h5py alone")
@pytest.mark.parametrize("room", [0, 1000, 250_000, 400_000])
def test_a_full_disk_is_an_error_after_the_file_is_closed(tmp_path, room):
    with pytest.raises(OSError) as raised, room_for(room):
        write(tmp_path / "a.weights.h5")
    assert raised.value.errno == errno.EFBIG


@pytest.mark.one_backend("h5py alone")
def test_a_file_is_narrowed_whole_or_not_at_all(tmp_path):
    path = tmp_path / "a.weights.h5"
    write(path)
    before = path.read_bytes()
    with pytest.raises(OSError), room_for(100_000):
        narrow(path, "float16")
    assert path.read_bytes() == before
    narrow(path, "float16")
    with h5py.File(path) as file:
        np.testing.assert_array_equal(file["x"], ARRAY.astype("float16"))


@pytest.mark.parametrize("method", ["save", "save_weights"])
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_a_model_file_is_as_it_was_if_the_disk_is_full(tmp_path, method, share):
    model = keras_imm.IMM(small_dit())
    model.compile(keras.optimizers.Adam(1e-3, use_ema=True))
    path = tmp_path / ("model.keras" if method == "save" else "model.weights.h5")
    getattr(model, method)(path)
    before = path.read_bytes()
    with (
        pytest.raises(OSError, match=r"model\.(keras|weights\.h5)"),
        room_for(max(0, int(share * len(before)) - 1)),
    ):
        getattr(model, method)(path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == [path.name]


def test_a_folder_that_is_missing_is_named_by_the_files_place(tmp_path):
    model = keras_imm.IMM(small_dit())
    for method, name in (("save", "model.keras"), ("save_weights", "a.weights.h5")):
        with pytest.raises(OSError, match=f"'.*/gone/{name}'"):
            getattr(model, method)(tmp_path / "gone" / name)


def test_other_targets_are_left_to_keras(tmp_path, monkeypatch):
    model = keras_imm.IMM(small_dit())
    model.save_weights(tmp_path / "a.weights.json", max_shard_size=0.01)
    assert (tmp_path / "a_00000.weights.h5").exists()
    with pytest.raises(ValueError, match=r"zipped=False.*=.*/folder\.keras"):
        model.save(tmp_path / "folder.keras", zipped=False)
    asked = []
    monkeypatch.setattr("builtins.input", lambda text: asked.append(text) or "n")
    model.save_weights(tmp_path / "b.weights.h5")
    before = (tmp_path / "b.weights.h5").read_bytes()
    model.save_weights(tmp_path / "b.weights.h5", overwrite=False)
    assert asked and (tmp_path / "b.weights.h5").read_bytes() == before
    with pytest.raises(ValueError, match=r"end in `\.weights\.h5`.*b\.h5"):
        model.save_weights(tmp_path / "b.h5")
