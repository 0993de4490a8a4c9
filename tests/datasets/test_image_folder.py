"""Folders of images, with and without classes."""

import hashlib
import json
import os
import shutil

import pytest
from image_files import encoded, pixels, write_classes
from PIL import Image

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
    with pytest.raises(
        ValueError,
        match=r"`split` must be left out.*\[90%:\].*'validation' beside 'train'",
    ):
        ImageFolder(tmp_path / "train", "test")


def names_of(source):
    return [source.record_name(i)[-15:] for i in range(len(source))]


@pytest.mark.parametrize("percent", [10, 33, 50, 90])
def test_parts_are_of_each_class_and_make_the_whole(tmp_path, percent):
    counts = (10, 7, 3)
    write_classes(tmp_path, counts)
    whole = ImageFolder(tmp_path)
    first = ImageFolder(tmp_path, f"train[:{percent}%]")
    rest = ImageFolder(tmp_path, f"train[{percent}%:]")
    assert sorted(names_of(first) + names_of(rest)) == names_of(whole)
    for label, count in enumerate(counts):
        of_class = [n for n in names_of(first) if n.startswith(f"class_{label}")]
        assert abs(len(of_class) - count * percent / 100) <= 0.5
        assert of_class == [f"class_{label}/{i:03d}.png" for i in range(len(of_class))]
    for source in (first, rest):
        assert (source.num_classes, source.class_names) == (3, whole.class_names)
        for i in range(len(source)):
            name = source.record_name(i)
            assert f"class_{source[i]['label']}" in name
    assert first.fingerprint != whole.fingerprint
    assert ImageFolder(tmp_path, "train[:]").fingerprint == whole.fingerprint


def test_parts_of_splits_and_of_images_without_classes(tmp_path):
    write_classes(tmp_path / "train", (10,))
    write_classes(tmp_path / "val", (4,))
    middle = ImageFolder(tmp_path, "train[20%:50%]")
    assert names_of(middle) == [f"class_0/{i:03d}.png" for i in (2, 3, 4)]
    assert len(ImageFolder(tmp_path, "validation[:50%]")) == 2
    assert len(ImageFolder(tmp_path / "val" / "class_0", "train[75%:]")) == 1


@pytest.mark.parametrize(
    "part", ["[:10]", "[10:]", "[50%:50%]", "[60%:50%]", "[:101%]", "[a:b]", "[:0%]"]
)
def test_parts_are_in_percent(folder, part):
    with pytest.raises(ValueError, match=r"must be in percent.*Received: split='train"):
        ImageFolder(folder, f"train{part}")


def test_a_part_holds_an_image(folder):
    with pytest.raises(ValueError, match=r"`split` must hold an image.* has 3"):
        ImageFolder(folder, "train[:10%]")


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
    write_classes(tmp_path, (1, 1))
    (tmp_path / "class_0").rename(tmp_path / "bus")
    (tmp_path / "class_1").rename(tmp_path / "train")
    assert ImageFolder(tmp_path).class_names == ["bus", "train"]
    # A class of images, not one of folders of images.
    write_classes(tmp_path / "train", (1,))
    (tmp_path / "train" / "000.png").unlink()
    with pytest.raises(ValueError, match=r"'train', a split .* beside 'bus'"):
        ImageFolder(tmp_path)


@pytest.mark.parametrize(
    "folders",
    [
        ("bus", "extra", "train"),
        ("freight_train", "passenger_train"),
        ("crash_test", "steam_train"),
        ("extra", "unlabeled"),
        ("model_a", "model_b"),
    ],
)
def test_words_of_splits_among_classes_make_none(tmp_path, folders):
    for name in folders:
        (tmp_path / name).mkdir()
        (tmp_path / name / "0.png").write_bytes(encoded(pixels(0)))
    assert ImageFolder(tmp_path).class_names == list(folders)


@pytest.mark.parametrize(
    "folders", [("train", "extra"), ("imgs_test", "imgs_train"), ("holdout", "train")]
)
def test_splits_may_hold_their_images(tmp_path, folders):
    for count, name in enumerate(folders):
        (tmp_path / name).mkdir()
        for number in range(count + 1):
            (tmp_path / name / f"{number}.png").write_bytes(encoded(pixels(number)))
    source = ImageFolder(tmp_path)
    (train,) = (count for count, name in enumerate(folders) if "train" in name)
    assert (len(source), source.class_names) == (train + 1, None)


@pytest.mark.parametrize(
    ("folders", "split", "taken"),
    [
        (("training", "valid"), "train", "training"),
        (("Train", "VALID"), "validation", "VALID"),
        (("train", "test", "dev"), "val", "dev"),
        (("train_64x64", "valid_64x64"), "train", "train_64x64"),
        (("train2017", "val2017", "annotations"), "val", "val2017"),
        (("train", "training", "test"), "train", "train"),
        (("testing", "eval"), "test", "testing"),
        (("valid",), "valid", "valid"),
        (("valid", "test"), "train", None),
        (("trainA", "trainB", "testA", "testB"), "train", None),
        (("trainval", "test"), "train", None),
        (("val", "dev", "train"), "validation", None),
        (("seg_test", "seg_train"), "train", "seg_train"),
        (("seg_pred", "seg_test", "seg_train"), "test", "seg_test"),
        (("imgs_train_64x64", "imgs_test_64x64"), "train", "imgs_train_64x64"),
        (("train-clean", "test-clean"), "test", "test-clean"),
        (("seg_train", "seg_test"), "valid", None),
        (("train", "extra"), "train", "train"),
        (("Unlabelled", "train"), "unlabeled", "Unlabelled"),
        (("train", "hold_out"), "holdout", "hold_out"),
        (("train", "test", "extra"), "extra", "extra"),
        (("test", "unlabeled"), "train", None),
    ],
)
def test_splits_have_many_names(tmp_path, folders, split, taken):
    for number, name in enumerate(folders):
        write_classes(tmp_path / name, (number + 1,))
    if taken is None:
        with pytest.raises(ValueError, match=r"`split` must be one of .*, '") as error:
            ImageFolder(tmp_path, split)
        assert all(repr(name) in str(error.value) for name in folders)
        assert len(ImageFolder(tmp_path, folders[0])) == 1
    else:
        source = ImageFolder(tmp_path, split)
        assert len(source) == folders.index(taken) + 1
        assert source.record_name(0) == str(tmp_path / taken / "class_0" / "000.png")


def test_classes_do_not_hold_splits(folder):
    for name in ("train", "Test"):
        write_classes(folder / "class_1" / name, (1,))
    for labels in (True, False):
        with pytest.raises(ValueError, match=r"not classes splits.*'Test', 'train'"):
            ImageFolder(folder, labels=labels)


def test_a_folder_around_all_classes_is_no_class(folder):
    with pytest.raises(ValueError, match=r"one folder, 'images'.*source='.*images'"):
        ImageFolder(folder.parent)
    assert len(ImageFolder(folder.parent, labels=False)) == 5
    assert ImageFolder(write_classes(folder / "one", (2,))).class_names == ["class_0"]


@pytest.mark.parametrize("name", ["img{:08d}.png", "{:05d}.png"])
@pytest.mark.parametrize("step", [1, 1000])
def test_parts_of_a_numbered_list_are_no_classes(tmp_path, name, step):
    for part in range(2):
        (tmp_path / f"{part * step:05d}").mkdir()
        path = tmp_path / f"{part * step:05d}" / name.format(1000 * part + 7)
        path.write_bytes(encoded(pixels(part)))
    with pytest.raises(ValueError, match=r"'00000' and so on.*without its dataset\.js"):
        ImageFolder(tmp_path)
    source = ImageFolder(tmp_path, labels=False)
    assert (len(source), source[1]["image"]) == (2, encoded(pixels(1)))
    path.rename(path.with_name("00007_00001.png"))  # as traffic signs have it
    assert ImageFolder(tmp_path).num_classes == 2


def test_images_are_what_pillow_reads(folder):
    kinds = {"a.jfif": "jpeg", "b.JPE": "jpeg", "c.J2K": "jpeg2000", "d.tga": "tga"}
    if "AVIF" in Image.SAVE:  # of newer versions
        kinds["e.AVIF"] = "avif"
    for name, kind in kinds.items():
        (folder / "class_0" / name).write_bytes(encoded(pixels(7), kind))
    for name in ("a.pdf", "b.eps", "c.h5", "d.mpg", "e.heic", "F.TXT", "f.txt", "g"):
        (folder / "class_0" / name).write_bytes(b"no raster image")
    with pytest.warns(UserWarning) as caught:
        source = ImageFolder(folder)
    names = {source.record_name(i).rpartition("/")[2] for i in range(len(source))}
    assert names == {"000.png", "001.png", "002.png", *kinds}
    (message,) = (str(w.message) for w in caught)
    assert "8 in all: 2 '.txt', 1 '.pdf'" in message and message.endswith("2 others.")


def test_only_other_files_are_said(tmp_path):
    (tmp_path / "a.heic").write_bytes(b"")
    (tmp_path / "b").write_bytes(b"")
    with pytest.raises(ValueError, match=r"only 1 '\.heic', 1 without an ending"):
        ImageFolder(tmp_path)


@pytest.mark.filterwarnings("error")
def test_what_systems_leave_behind_does_not_count(folder):
    for name in ("__MACOSX", "@eaDir", "class_0/@eaDir", "class_1/$RECYCLE.BIN"):
        write_classes(folder / name, (1,))
    for name in ("Thumbs.db", "class_0/Thumbs.db", "class_1/desktop.ini", ".DS_Store"):
        (folder / name).write_bytes(b"")
    source = ImageFolder(folder)
    assert (len(source), source.class_names) == (5, ["class_0", "class_1"])


def test_a_folder_that_cannot_be_listed_is_an_error(folder, monkeypatch):
    (folder / "class_1" / "deeper").mkdir()
    scan = os.scandir

    def refusing(path):
        if str(path).endswith("deeper"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(PermissionError, match="deeper"):
        ImageFolder(folder)


def test_the_fingerprint_is_of_names_and_sizes(tmp_path):
    """As runs that were saved have it."""
    for name in ("b/1.png", "a/2.png", "a/deeper/3.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"five!")
    hashed = b"a/2.png\x005\na/deeper/3.png\x005\nb/1.png\x005\n"
    assert ImageFolder(tmp_path).fingerprint == {
        "kind": "folder",
        "num_records": 3,
        "sha256": hashlib.sha256(hashed).hexdigest(),
    }


def test_names_need_not_be_text(folder):
    before = ImageFolder(folder).fingerprint
    name = os.fsdecode(b"caf\xe9.png")
    (folder / "class_0" / name).write_bytes(encoded(pixels(9)))
    source = ImageFolder(folder)
    assert source[3]["image"] == encoded(pixels(9))
    assert source.record_name(3) == str(folder / "class_0" / name)
    assert json.loads(json.dumps(source.fingerprint)) != before


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
