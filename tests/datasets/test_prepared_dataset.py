"""Data sets that tfds has prepared, with and without TensorFlow."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from image_files import pixels, write_classes, write_prepared
from scripts import ROOT

from keras_imm.datasets import load
from keras_imm.datasets.decoding import decode
from keras_imm.datasets.prepared_dataset import PreparedDataset

WITHOUT_TENSORFLOW = """
import json, sys
from importlib.machinery import PathFinder

class NoTensorFlow(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        hidden = name.split(".")[0] == "tensorflow"
        return None if hidden else PathFinder.find_spec(name, path, target)

sys.meta_path[:] = [NoTensorFlow if f is PathFinder else f for f in sys.meta_path]
data_dir, folder = sys.argv[1:]

from keras_imm.datasets import load
for source, where in (("tiny_shapes", data_dir), (folder, None)):
    images, labels = load(source, 4, data_dir=where, image_size=8, flip=True)[0]
    print(json.dumps([float(images.sum()), labels.tolist()]))
try:
    load("cifar10", 4, data_dir=data_dir)
except ValueError as error:
    print("cifar10 is not prepared" if "not prepared" in str(error) else error)
print("tensorflow" in sys.modules)
"""


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return write_prepared(tmp_path_factory.mktemp("tfds"), {"train": 7, "test": 3})


def test_a_prepared_data_set_is_records(data_dir):
    source = PreparedDataset("tiny_shapes", "train", data_dir)
    assert (len(source), source.num_classes) == (7, 3)
    assert source.class_names == ["circle", "square", "star"]
    assert source.image_shape == (None, None, 3)
    seeds = {pixels(i, 8, 10).tobytes(): i for i in range(7)}
    found = [seeds[np.asarray(decode(source[i]["image"])).tobytes()] for i in range(7)]
    assert sorted(found) == list(range(7))
    assert [source[i]["label"] for i in range(7)] == [i % 3 for i in found]
    assert source.record_name(2) == "tiny_shapes/1.0.0 train[2]"
    assert len(PreparedDataset("tiny_shapes:1.0.0", "train[:3]", data_dir)) == 3


def test_the_fingerprint_knows_version_and_split(data_dir):
    train = PreparedDataset("tiny_shapes", "train", data_dir).fingerprint
    assert json.loads(json.dumps(train)) == {
        "kind": "tfds",
        "num_records": 7,
        "name": "tiny_shapes/1.0.0",
        "split": "train",
    }
    assert PreparedDataset("tiny_shapes", "test", data_dir).fingerprint != train


def test_what_is_not_prepared_says_how_to_prepare_it(tmp_path):
    with pytest.raises(ValueError, match=r"cifar10/\S+ is not prepared") as error:
        PreparedDataset("cifar10", "train", tmp_path)
    (command,) = (x for x in str(error.value).splitlines() if "python -c" in x)
    assert "file_format='array_record').download_and_prepare()" in command
    assert f"data_dir={str(tmp_path)!r}" in command
    compile(command.split('"')[1], "the command", "exec")
    with pytest.raises(ValueError, match=r"ILSVRC2012_img_train\.tar") as error:
        PreparedDataset("imagenet2012", "train", tmp_path)
    assert str(tmp_path / "downloads" / "manual") in str(error.value)


def test_another_format_is_to_be_prepared_in_another_folder(tmp_path):
    """tfds refuses to prepare a second format beside the first."""
    write_prepared(tmp_path, {"train": 2})
    info = tmp_path / "tiny_shapes" / "1.0.0" / "dataset_info.json"
    content = info.read_text()
    assert '"array_record"' in content
    info.write_text(content.replace('"array_record"', '"tfrecord"'))
    with pytest.raises(ValueError, match="prepared as tfrecord, not as array_re") as e:
        PreparedDataset("tiny_shapes", "train", tmp_path)
    assert "tfds.builder('tiny_shapes', data_dir='another_folder', " in str(e.value)


def test_wrong_names_and_splits_are_said_shortly(data_dir):
    with pytest.raises(ValueError, match="source='no_such_data'") as error:
        PreparedDataset("no_such_data", "train", data_dir)
    assert len(str(error.value)) < 300
    for split in ("validation", "", "train[", "all[:2]"):
        with pytest.raises(ValueError, match="one of 'train', 'test', or a part"):
            PreparedDataset("tiny_shapes", split, data_dir)


@pytest.mark.parametrize("split", ["train[5:2]", "train[2:2]", "train[7:]"])
def test_an_empty_part_of_a_split_is_refused(data_dir, split):
    with pytest.raises(ValueError, match="`split` must hold a record") as error:
        load("tiny_shapes", 1, split=split, data_dir=data_dir)
    assert f"split={split!r} of tiny_shapes/1.0.0" in str(error.value)


@pytest.mark.parametrize("split", ["train", "train[:3]", "train+test", "all"])
def test_missing_files_are_found_whatever_the_split(tmp_path, data_dir, split):
    shutil.copytree(data_dir, tmp_path / "copy")
    assert len(PreparedDataset("tiny_shapes", split, tmp_path / "copy")) in (3, 7, 10)
    (file,) = (tmp_path / "copy").rglob("*-train.array_record*")
    file.unlink()
    with pytest.raises(ValueError, match=r"1 of [12] files are missing"):
        PreparedDataset("tiny_shapes", split, tmp_path / "copy")


def test_a_file_that_cannot_be_opened_is_not_skipped(data_dir, monkeypatch):
    dataset = load("tiny_shapes", 7, data_dir=data_dir, on_corrupt="skip")

    class Unreachable:
        def __getitem__(self, index):
            raise OSError("Stale file handle")

    monkeypatch.setattr(dataset._records.source, "_source", Unreachable())
    with pytest.raises(OSError, match="Stale file handle"):
        dataset.read_record(0)


def test_damaged_files_are_corrupt_records_and_missing_ones_an_error(tmp_path):
    write_prepared(tmp_path, {"train": 40})
    (file,) = (tmp_path / "tiny_shapes" / "1.0.0").glob("*.array_record*")
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"tiny_shapes/1\.0\.0 train\[\d+\] cannot be"):
        load("tiny_shapes", 40, data_dir=tmp_path)[0]
    file.unlink()
    with pytest.raises(ValueError, match="1 of 1 files are missing"):
        load("tiny_shapes", 40, data_dir=tmp_path, on_corrupt="skip")


def test_data_without_images_is_refused(tmp_path):
    import tensorflow_datasets as tfds

    kinds = tfds.features
    features = {"label": kinds.ClassLabel(num_classes=3), "image": kinds.Text()}
    write_prepared(tmp_path, {"train": 2}, features=features)
    with pytest.raises(ValueError, match="one image per record"):
        PreparedDataset("tiny_shapes", "train", tmp_path)


@pytest.mark.slow("child processes")
def test_reading_takes_no_tensorflow(data_dir, tmp_path):
    """Under JAX and torch; Keras imports TensorFlow for its own backend alone."""
    backend = os.environ["KERAS_BACKEND"]
    write_classes(tmp_path / "images", (4, 4))
    result = subprocess.run(
        [sys.executable, "-c", WITHOUT_TENSORFLOW, data_dir, tmp_path / "images"],
        env={
            **os.environ,
            "KERAS_BACKEND": "jax" if backend == "tensorflow" else backend,
            "PYTHONPATH": str(ROOT),
        },
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    prepared, folder, cifar10, imported = result.stdout.splitlines()
    assert len(json.loads(prepared)[1]) == len(json.loads(folder)[1]) == 4
    assert (cifar10, imported) == ("cifar10 is not prepared", "False")
