"""An export that fails leaves every file and folder as it was."""

import errno
import os
import pathlib

import faulty_disk
import pytest
from long_tests import long

import keras_imm
from keras_imm.serving import (
    child_process,
    export_litert,
    export_onnx,
    export_openvino,
    export_saved_model,
    export_stablehlo,
    export_torch,
    export_triton,
    litert_export,
    onnx_export,
    openvino_export,
    server_files,
    stablehlo_export,
    tensorflow_export,
    torch_export,
)


def into_repository(model, path, num_steps=None):
    return export_triton(model, path.parent, path.name, num_steps)


# The function, what it makes, and a file that an earlier export has left.
EXPORTS = {
    "saved_model": (export_saved_model, "served", "3/saved_model.pb"),
    "onnx": (export_onnx, "model.onnx", ""),
    "torch": (export_torch, "model.pt2", ""),
    "stablehlo": (export_stablehlo, "model.jax", ""),
    "openvino": (export_openvino, "model", "model.xml"),
    "litert": (export_litert, "model.tflite", ""),
    "triton": (into_repository, "model", "config.pbtxt"),
}
WRITERS = (
    *(litert_export, onnx_export, openvino_export, stablehlo_export),
    *(tensorflow_export, torch_export),
)
each = pytest.mark.parametrize("name", EXPORTS)


@pytest.fixture(scope="module")
def model():
    return keras_imm.IMM(
        faulty_disk.SmallDiT(
            image_shape=(4, 4, 1), patch_size=2, hidden_size=16, depth=1, num_heads=2
        )
    )


@pytest.fixture
def writers(monkeypatch):
    """Puts a function in the place of all that writes, here and in child processes."""

    def replace(write):
        monkeypatch.setattr(
            child_process, "run", lambda task, *given, **options: write(given[2])
        )
        for module in WRITERS:
            monkeypatch.setattr(module, "write", lambda *given, **_: write(given[2]))

    return replace


def tree(folder):
    """Names and contents of all that is in a folder."""
    return {
        path.relative_to(folder): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


@each
@pytest.mark.parametrize("place", ["there", "new/below"])
def test_when_writing_fails(model, tmp_path, writers, name, place):
    export, file, earlier = EXPORTS[name]
    path = tmp_path / place / file
    if place == "there":
        (path / earlier).parent.mkdir(parents=True)
        (path / earlier).write_text("before")
    before = tree(tmp_path)
    begun = []

    def write(path):
        begun.append(path.parent.is_dir())
        if path.is_dir() and name == "saved_model":
            (path / "saved_model.pb").write_text("half of")
        raise RuntimeError("no room")

    writers(write)
    with pytest.raises(RuntimeError, match="no room"):
        export(model, path)
    assert begun == [True]
    assert tree(tmp_path) == before


@each
def test_where_it_cannot_be_put_is_known_before_anything_is_computed(
    model, tmp_path, writers, name
):
    export, file, _ = EXPORTS[name]
    writers(lambda path: pytest.fail("it has begun"))
    (tmp_path / "file").write_text("mine")
    below = tmp_path / "file" / file
    with pytest.raises(OSError, match=r"file"):
        export(model, below)
    if file.count("."):
        (tmp_path / file).mkdir()
        with pytest.raises(ValueError, match=r"`path` must be .*which is a folder"):
            export(model, tmp_path / file)
    for path in (None, b"model.onnx"):
        if name != "triton":
            with pytest.raises(TypeError, match="must be a path, a string"):
                export(model, path)
    assert (tmp_path / "file").read_text() == "mine"


@each
@pytest.mark.skipif(not os.path.isdir("/proc"), reason="no folder is known to be full")
def test_a_folder_that_takes_no_files(model, writers, name):
    export, file, _ = EXPORTS[name]
    writers(lambda path: pytest.fail("it has begun"))
    with pytest.raises(OSError):
        export(model, pathlib.Path("/proc") / file)


def test_when_a_model_repositorys_configuration_cannot_be_written(
    model, tmp_path, writers, monkeypatch
):
    writers(lambda path: path.write_text("whole"))
    export_triton(model, tmp_path, "digits")
    before = tree(tmp_path)

    def synchronise(path):
        if str(path).endswith(".pbtxt"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("keras_imm.files.atomic.synchronise", synchronise)
    with pytest.raises(OSError, match=r"No space left.*config\.pbtxt"):
        export_triton(model, tmp_path, "digits", max_batch_size=3)
    assert tree(tmp_path) == before


@pytest.mark.parametrize("place", ["", "new/below"])
def test_when_what_stands_beside_a_version_cannot_be_written(
    model, tmp_path, writers, monkeypatch, place
):
    writers(lambda path: (path / "saved_model.pb").write_text("whole"))
    served = []

    def synchronise(path):
        if str(path).endswith(".config"):
            served.append((tmp_path / place / "1" / "saved_model.pb").exists())
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("keras_imm.files.atomic.synchronise", synchronise)
    with pytest.raises(OSError, match=r"No space left.*models\.config"):
        export_saved_model(model, tmp_path / place)
    assert served == [True]
    assert not tree(tmp_path)
    monkeypatch.undo()
    (tmp_path / "models.config").write_text("mine")
    server_files.write_configuration(tmp_path)
    assert (tmp_path / "models.config").read_text() == "mine"
    assert (tmp_path / "batching_parameters.txt").exists()


@pytest.mark.slow("exports")
@pytest.mark.one_backend("what is written is the same on all backends")
@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("onnx", "full"),
        ("stablehlo", "killed"),
        *long("one is tested", *((name, "full") for name in EXPORTS if name != "onnx")),
    ],
)
def test_when_the_disk_is_full_or_the_process_killed(
    model, tmp_path, monkeypatch, name, fault
):
    export, file, _ = EXPORTS[name]
    monkeypatch.setenv(faulty_disk.FAULT, fault)
    monkeypatch.setattr(os, "fsync", faulty_disk.full)
    kind, message = {
        "full": (OSError, "No space left on device"),
        "killed": (RuntimeError, "ended with status -9"),
    }[fault]
    with pytest.raises(kind, match=message):
        export(model, tmp_path / "new" / "below" / file, 1)
    assert not tree(tmp_path)
