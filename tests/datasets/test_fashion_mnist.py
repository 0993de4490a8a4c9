"""Fashion-MNIST from tiny files in the real format, without a network."""

import sys

import keras
import numpy as np
import pytest
from image_files import pixels, write_idx, write_idx_split

import keras_imm
from keras_imm.datasets import FASHION_MNIST_CLASSES, fashion_mnist

pytestmark = pytest.mark.one_backend("NumPy code")

LABELS = np.array([9, 0, 4])


def images(first):
    return np.stack([pixels(first + i, 28, 28, channels=1) for i in range(3)])


@pytest.fixture
def folder(tmp_path):
    write_idx_split(tmp_path / "data", "train", images(0), LABELS, end=".gz")
    write_idx_split(tmp_path / "data", "t10k", images(3), LABELS[::-1])
    return tmp_path / "data"


@pytest.fixture
def debian(tmp_path, monkeypatch):
    """Where Debian's files would be; there are none yet."""
    module = sys.modules["keras_imm.datasets.fashion_mnist"]
    monkeypatch.setattr(module, "DEBIAN_FOLDER", tmp_path / "debian")
    return tmp_path / "debian"


def no_network():
    raise Exception("URL fetch failure on https://x:\n None -- unreachable")


def check(found, first, labels):
    assert [array.dtype for array in found] == [np.uint8, np.int32]
    np.testing.assert_array_equal(found[0], images(first))
    assert all(type(array) is np.ndarray and array.flags.writeable for array in found)
    np.testing.assert_array_equal(found[1], labels)


def test_files_of_a_folder(folder):
    check(fashion_mnist(data_dir=folder), 0, LABELS)
    check(fashion_mnist("test", data_dir=str(folder)), 3, LABELS[::-1])
    assert len(FASHION_MNIST_CLASSES) == len(set(FASHION_MNIST_CLASSES)) == 10
    assert keras_imm.datasets.fashion_mnist is fashion_mnist


def test_debians_files_and_then_the_download(folder, debian, monkeypatch):
    pairs = tuple((images(i), LABELS.astype("uint8")) for i in (6, 9))
    monkeypatch.setattr(keras.datasets.fashion_mnist, "load_data", lambda: pairs)
    check(fashion_mnist(), 6, LABELS)
    check(fashion_mnist("test"), 9, LABELS)
    folder.rename(debian)
    check(fashion_mnist(), 0, LABELS)


def test_three_ways_are_named_where_there_is_none(debian, monkeypatch):
    monkeypatch.setattr(keras.datasets.fashion_mnist, "load_data", no_network)
    with pytest.raises(OSError, match="unreachable") as caught:
        fashion_mnist()
    message = str(caught.value)
    assert "\n" not in message
    for way in ("--data_dir", "apt-get install dataset-fashion-mnist", "network"):
        assert way in message


def test_wrong_folders_and_files_are_named(folder, debian):
    with pytest.raises(ValueError, match=r"`split` must be .*'val'"):
        fashion_mnist("val")
    with pytest.raises(ValueError, match=r"t10k-images.*data_dir='.*debian'"):
        fashion_mnist("test", debian)
    labels = folder / "train-labels-idx1-ubyte.gz"
    write_idx(labels, [10, 0, 0])
    with pytest.raises(ValueError, match=r"labels below 10.*the label 10"):
        fashion_mnist(data_dir=folder)
    write_idx(labels, [1, 0])
    with pytest.raises(ValueError, match=r"3 images in .* and 2 labels in"):
        fashion_mnist(data_dir=folder)
    labels.unlink()
    with pytest.raises(ValueError, match=r"labels of .*train-images.*must lie beside"):
        fashion_mnist(data_dir=folder)
    write_idx_split(folder, "train", images(0)[:, :8, :8], LABELS)
    with pytest.raises(ValueError, match=r"28x28.*images of 8x8"):
        fashion_mnist(data_dir=folder)
