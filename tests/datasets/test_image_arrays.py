"""Arrays, in memory and in files."""

import pickle
import warnings
import zipfile

import numpy as np
import pytest
from image_files import pixels

from keras_imm.datasets import load
from keras_imm.datasets.image_arrays import ImageArrays, ImageArraysFile

pytestmark = pytest.mark.one_backend("NumPy code")


def images(count=5):
    return np.stack([pixels(i) for i in range(count)])


LABELS = np.array([2, 0, 1, 1, 0])


def mapped(array):
    while isinstance(array, np.ndarray):
        if isinstance(array, np.memmap):
            return True
        array = array.base
    return False


def test_arrays_are_records():
    source = ImageArrays(images(), LABELS.reshape(5, 1))
    assert (len(source), source.num_classes) == (5, 3)
    assert source.image_shape == (8, 8, 3)
    np.testing.assert_array_equal(source[3]["image"], pixels(3))
    assert source[3]["label"] == 1
    assert ImageArrays(images()[..., 0]).image_shape == (8, 8, 1)
    assert ImageArrays(images())[0]["label"] == -1


@pytest.mark.parametrize(
    "names", [("images", "labels"), ("x", "y"), ("arr_0", "arr_1")]
)
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_files_are_read_and_mapped_where_stored(tmp_path, save, names):
    path = tmp_path / "data.npz"
    stored = dict(zip(names, (images(), LABELS), strict=True))
    save(path, other=np.zeros(3), **stored)
    source = pickle.loads(pickle.dumps(ImageArraysFile(path)))
    for i in range(5):
        np.testing.assert_array_equal(source[i]["image"], pixels(i))
        assert source[i]["label"] == LABELS[i]
    assert mapped(source._images) == (save is np.savez)
    assert len(pickle.dumps(source)) < 1000
    assert source.record_name(2) == f"{path}[2]"


def test_npy_files_and_fortran_order_are_read(tmp_path):
    np.save(tmp_path / "a.npy", images())
    np.savez(tmp_path / "b.npz", images=np.asfortranarray(images()))
    for name in ("a.npy", "b.npz"):
        source = ImageArraysFile(tmp_path / name)
        np.testing.assert_array_equal(source[4]["image"], pixels(4))
        assert mapped(source._images)
        assert source.num_classes == 0


def test_the_fingerprint_knows_the_content():
    fingerprint = ImageArrays(images(), LABELS).fingerprint
    assert ImageArrays(images(), LABELS, "other name").fingerprint == fingerprint
    changed = images()
    changed[4, 0, 0, 0] ^= 1
    assert ImageArrays(changed, LABELS).fingerprint != fingerprint
    assert ImageArrays(images(), LABELS[::-1]).fingerprint != fingerprint
    assert ImageArrays(images()).fingerprint != fingerprint


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((images()[0, 0],), "Received: images of dtype uint8 and shape"),
        ((images().astype("int32"),), "dtype int32"),
        ((images()[:0],), "no image"),
        ((images(), LABELS[:4]), r"integers of shape \(5,\)"),
        ((images(), LABELS / 2), "dtype float64"),
        ((images(), LABELS - 1), "label -1"),
    ],
)
def test_wrong_arrays_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        ImageArrays(*given)


def test_labels_of_another_name_are_said(tmp_path):
    path = tmp_path / "x.npz"
    np.savez(path, images=images(), label=LABELS, mean=np.zeros(5), seed=np.arange(2))
    with pytest.warns(UserWarning, match=r"labels, y, arr_1\. Not read: label\."):
        assert load(path, 5).num_classes == 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load(path, 5, labels=False)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_wrong_files_are_named(tmp_path):
    path = tmp_path / "x.npz"
    path.write_bytes(b"no zip")
    with pytest.raises(ValueError, match=r"Cannot read .*x\.npz"):
        ImageArraysFile(path)
    np.savez(path, pictures=images())
    with pytest.raises(ValueError, match=r"images, x, arr_0; it holds pictures"):
        ImageArraysFile(path)
    np.savez(path, **{f"array_{i}": np.zeros(1) for i in range(1000)})
    with pytest.raises(ValueError, match=r"it holds array_0, .* \.\.\.") as error:
        ImageArraysFile(path)
    assert len(str(error.value)) < 400
    with zipfile.ZipFile(path, "w") as archive:
        for _ in range(2):
            archive.writestr("images.npy", b"")
    with pytest.raises(ValueError, match=r"'images.npy' is in it twice"):
        ImageArraysFile(path)
    np.savez(path, images=np.array([object()]))
    with pytest.raises(ValueError, match=r"Cannot read .*x\.npz"):
        ImageArraysFile(path)
    np.savez(path, images=images())
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(ValueError, match=r"Cannot read .*x\.npz"):
        ImageArraysFile(path)
