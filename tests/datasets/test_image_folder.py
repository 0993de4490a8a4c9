"""Folders of images, with and without classes."""

import shutil

import pytest
from image_files import encoded, pixels, write_classes

from keras_imm.datasets.image_folder import ImageFolder

pytestmark = pytest.mark.one_backend("NumPy code")


@pytest.fixture
def folder(tmp_path):
    return write_classes(tmp_path / "images", (3, 2))


def test_classes_are_the_subfolders_in_sorted_order(folder):
    (folder / "class_1" / "deeper").mkdir()
    (folder / "class_1" / "deeper" / "x.JPEG").write_bytes(b"x")
    (folder / "class_0" / "notes.txt").write_text("no image")
    (folder / "class_0" / "._000.png").write_text("no image")
    (folder / "class_0" / ".thumbnails").mkdir()
    (folder / "class_0" / ".thumbnails" / "000.png").write_bytes(b"x")
    (folder / ".hidden").mkdir()
    (folder / "labels.txt").write_text("no image")
    source = ImageFolder(folder)
    assert (source.class_names, source.num_classes) == (["class_0", "class_1"], 2)
    assert [source[i]["label"] for i in range(len(source))] == [0, 0, 0, 1, 1, 1]
    assert source[3]["image"] == encoded(pixels(3))
    assert source.record_name(3) == str(folder / "class_1" / "000.png")


def test_a_flat_folder_has_no_classes(folder):
    source = ImageFolder(folder / "class_0")
    assert (len(source), source.class_names, source.num_classes) == (3, None, 0)
    assert source[2] == {"image": encoded(pixels(2)), "label": -1}


def test_splits_in_subfolders_are_taken_by_name(tmp_path):
    write_classes(tmp_path / "train", (2, 1))
    write_classes(tmp_path / "val", (1, 1))
    assert len(ImageFolder(tmp_path)) == 3
    assert len(ImageFolder(tmp_path, "val")) == 2
    assert len(ImageFolder(tmp_path / "val", "val")) == 2
    with pytest.raises(ValueError, match=r"`split` must be one of .*'train', 'val'"):
        ImageFolder(tmp_path, "test")
    with pytest.raises(ValueError, match="`split` must be left out"):
        ImageFolder(tmp_path / "train", "test")


def test_splits_beside_another_folder_are_no_classes(tmp_path):
    write_classes(tmp_path / "train", (2, 1))
    write_classes(tmp_path / "val", (1, 1))
    write_classes(tmp_path / "devkit", (1,))
    assert ImageFolder(tmp_path).class_names == ["class_0", "class_1"]
    assert len(ImageFolder(tmp_path)) == 3
    assert len(ImageFolder(tmp_path, "val")) == 2
    with pytest.raises(ValueError, match=r"one of .*: 'train', 'val'\. Received"):
        ImageFolder(tmp_path, "devkit")
    (tmp_path / "train").rename(tmp_path / "test")
    with pytest.raises(ValueError, match=r"one of .*: 'test', 'val'\. Received"):
        ImageFolder(tmp_path)


def test_a_class_may_be_called_like_a_split(tmp_path):
    for name in ("bus", "train"):
        write_classes(tmp_path / name, (1,))
    assert ImageFolder(tmp_path).class_names == ["bus", "train"]


def test_links_to_folders_are_followed_but_not_in_circles(folder, tmp_path):
    more = write_classes(tmp_path / "more", (2,)) / "class_0"
    (folder / "class_1" / "more").symlink_to(more)
    (more / "again").symlink_to(more)
    (more / "up").symlink_to(folder)
    (folder / "class_1" / "up").symlink_to(tmp_path)
    source = ImageFolder(folder)
    names = [source.record_name(i) for i in range(3, len(source))]
    expected = ("000.png", "001.png", "more/000.png", "more/001.png")
    assert names == [str(folder / "class_1" / name) for name in expected]
    assert source[5]["image"] == encoded(pixels(0))


def test_a_class_may_be_called_like_an_image(tmp_path):
    write_classes(tmp_path, (2, 1))
    (tmp_path / "class_1").rename(tmp_path / "logo.png")
    source = ImageFolder(tmp_path)
    assert source.class_names == ["class_0", "logo.png"]
    assert [source[i]["label"] for i in range(3)] == [0, 0, 1]


def test_the_fingerprint_knows_the_files_but_not_the_place(folder, tmp_path):
    fingerprint = ImageFolder(folder).fingerprint
    shutil.copytree(folder, tmp_path / "copy")
    assert ImageFolder(tmp_path / "copy").fingerprint == fingerprint
    (folder / "class_0" / "000.png").write_bytes(b"another size")
    assert ImageFolder(folder).fingerprint != fingerprint
    (tmp_path / "copy" / "class_0" / "000.png").rename(
        tmp_path / "copy" / "class_0" / "009.png"
    )
    assert ImageFolder(tmp_path / "copy").fingerprint != fingerprint


def test_wrong_folders_are_named(folder, tmp_path):
    (folder / "class_2").mkdir()
    with pytest.raises(ValueError, match="no image in the class 'class_2'"):
        ImageFolder(folder)
    (folder / "x.png").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"image 'x.png' and the subfolder 'class_0'"):
        ImageFolder(folder)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"no image in .*empty"):
        ImageFolder(tmp_path / "empty")
