"""Images in zip files."""

import pickle
import zipfile

import numpy as np
import pytest
from image_files import encoded, pixels, write_classes

from keras_imm.datasets import load
from keras_imm.datasets.decoding import CorruptRecordError
from keras_imm.datasets.image_folder import ImageFolder, ImageZip

pytestmark = pytest.mark.one_backend("NumPy code")


def write(path, names, compression=zipfile.ZIP_STORED):
    """A zip file of images; those in a folder that ends in a slash are none."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        for i, name in enumerate(names):
            # Given a name, Python would replace a backslash on Windows alone.
            info = zipfile.ZipInfo("a")
            info.filename, info.compress_type = name, compression
            archive.writestr(info, b"" if name.endswith("/") else encoded(pixels(i)))
    return path


def test_a_zip_file_is_the_folder_that_was_packed(tmp_path):
    folder = write_classes(tmp_path / "images", (3, 2))
    names = [p.relative_to(tmp_path).as_posix() for p in sorted(folder.rglob("*.png"))]
    plain = [name.removeprefix("images/") for name in names]
    expected = ImageFolder(folder)
    for packed in (plain, names, [f"./{name}" for name in names]):
        path = write(tmp_path / "x.zip", packed, zipfile.ZIP_DEFLATED)
        source = pickle.loads(pickle.dumps(ImageZip(path)))
        assert source.class_names == expected.class_names
        assert source.fingerprint == expected.fingerprint
        for i in range(5):
            assert source[i] == expected[i]
    assert source.record_name(4) == str(path / "images" / "class_1" / "001.png")
    write(path, [name.replace("/", "\\") for name in plain])
    assert ImageZip(path).class_names == expected.class_names


def test_splits_and_flat_images(tmp_path):
    path = write(tmp_path / "x.zip", ["Train/a/0.png", "Train/b/1.png", "val/a/2.png"])
    assert ImageZip(path).class_names == ["a", "b"]
    assert ImageZip(path, "valid").record_name(0).endswith("x.zip/val/a/2.png")
    assert len(ImageZip(path, "train[:50%]")) == 2
    with pytest.raises(ValueError, match=r"one of the splits in .*x\.zip"):
        ImageZip(path, "test")
    flat = ImageZip(write(path, ["some/0.png", "some/1.png", "__MACOSX/some/._0.png"]))
    assert (len(flat), flat.class_names, flat[1]["label"]) == (2, None, -1)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a/0.png", "/b/0.png"], "'/b/0.png' is a name outside"),
        (["a/0.png", "../b/0.png"], r"'\.\./b/0.png' is a name outside"),
        (["a/0.png", "a/0.png"], "'a/0.png' is in it twice"),
        (["a/0.png", "a\\0.png"], "is in it twice"),
        (["a/0.png", "b/"], "no image in the class 'b'"),
        (["a/0.txt"] + [f"{i}/{'x' * 90}.txt" for i in range(50)], "no image in"),
        ([], "no image in"),
    ],
)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_other_names_are_refused_shortly(tmp_path, names, message):
    path = write(tmp_path / "x.zip", names)
    with pytest.raises(ValueError, match=message) as error:
        load(path, 1)
    assert str(path) in str(error.value)
    assert len(str(error.value)) < 400


def test_encrypted_and_damaged_files(tmp_path):
    path = write(tmp_path / "x.zip", ["a/0.png", "a/1.png", "b/2.png"])
    whole = path.read_bytes()
    start = whole.index(encoded(pixels(1)))
    path.write_bytes(whole[: start + 20] + b"!" + whole[start + 21 :])
    source = ImageZip(path)
    with pytest.raises(CorruptRecordError, match="CRC"):
        source[1]
    dataset = load(path, 3, shuffle=False, on_corrupt="skip")
    with pytest.warns(UserWarning, match=r"Skipping .*x\.zip/a/1\.png: Bad CRC"):
        dataset[0]
    flags = whole.index(b"PK\x01\x02") + 8
    path.write_bytes(whole[:flags] + b"\1" + whole[flags + 1 :])
    with pytest.raises(ValueError, match=r"Cannot read .*x\.zip: 'a/0.png' is encrypt"):
        ImageZip(path)
    path.write_bytes(whole[:-40])
    with pytest.raises(ValueError, match="a file of another kind"):
        load(path, 2)


def test_zip_files_of_arrays_are_arrays_and_others_are_named(tmp_path):
    images = np.stack([pixels(i) for i in range(4)])
    with open(tmp_path / "a.ZIP", "wb") as file:
        np.savez(file, images=images)
    assert load(tmp_path / "a.ZIP", 4).num_records == 4
    np.save(tmp_path / "a.npy", images)
    (tmp_path / "a.npy").rename(tmp_path / "b.NPY")
    assert load(tmp_path / "b.NPY", 4).num_records == 4
    (tmp_path / "one.png").write_bytes(encoded(images[0]))
    with pytest.raises(ValueError, match=r"source='.*one.png', a file of another kind"):
        load(tmp_path / "one.png", 1)
    with pytest.raises(ValueError, match="`source` must be there"):
        load("nowhere.zip", 1)


@pytest.mark.slow("child processes")
def test_processes_that_read_a_zip_file_change_nothing(tmp_path):
    path = write(tmp_path / "x.zip", [f"{'ab'[i % 2]}/{i}.png" for i in range(9)])
    alone, shared = (load(path, 4, num_workers=n) for n in (0, 2))
    for i in range(2):
        for found, expected in zip(shared[i], alone[i], strict=True):
            np.testing.assert_array_equal(found, expected)
    shared.close()
