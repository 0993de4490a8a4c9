"""Labels in StyleGAN's dataset.json, in folders and zip files."""

import json
import shutil

import numpy as np
import pytest
from image_files import encoded, pixels

from keras_imm.datasets import load
from keras_imm.datasets.image_folder import ImageFolder, ImageZip

pytestmark = pytest.mark.one_backend("NumPy code")

NAMES = [f"{i // 2:05d}/img{i:08d}.png" for i in range(6)]
LABELS = [6, 0, 3, 3, 1, 0]


def write(folder, content, encoding="utf-8"):
    for i, name in enumerate(NAMES):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(encoded(pixels(i)))
    text = content if isinstance(content, str) else json.dumps(content)
    (folder / "dataset.json").write_text(text, encoding)
    return folder


def pairs(labels=LABELS, names=NAMES):
    return [[name, label] for name, label in zip(names, labels, strict=True)]


@pytest.fixture(params=["folder", "zip"])
def opened(request, tmp_path):
    """Opens what `write` takes: as a folder, or as a zip file of it."""

    def open_(content, **options):
        folder = write(tmp_path / "data", content)
        if request.param == "folder":
            return ImageFolder(folder, **options)
        return ImageZip(shutil.make_archive(folder, "zip", folder), **options)

    return open_


def test_labels_are_the_files(opened):
    source = opened({"labels": pairs()[::-1], "other": 1})
    assert (source.num_classes, source.class_names) == (7, None)
    assert [source[i]["label"] for i in range(6)] == LABELS
    assert [source[i]["image"] for i in range(6)] == [
        encoded(pixels(i)) for i in range(6)
    ]
    assert source.record_name(5).endswith("/00002/img00000005.png")


def test_null_is_no_labels(opened):
    source = opened({"labels": None})
    assert (len(source), source.num_classes, source[0]["label"]) == (6, 0, -1)


def test_labels_that_are_not_asked_for_are_not_read(opened):
    source = opened("no JSON", labels=False)
    assert (len(source), source.num_classes) == (6, 0)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            {"labels": pairs()[1:]},
            r"none for 1 of 6 images.*'00000/img0+\.",
        ),
        ({"labels": []}, "none for 6 of 6 images"),
        ({"labels": [*pairs(), ["00009/a.png", 1]]}, "1 that are not.*'00009/a.png'"),
        (
            {"labels": [*pairs(), pairs()[0]]},
            "one label for '00000/img0+.png', not",
        ),
        ({"labels": pairs([[0, 1]] * 6)}, r"one-hot.* give the index.*\[0, 1\]\]"),
        ({"labels": pairs([1.0] * 6)}, "integer of at least 0.*1.0"),
        ({"labels": pairs([True] * 6)}, "integer of at least 0.*True"),
        ({"labels": pairs([-1] * 6)}, "integer of at least 0.*-1"),
        ({"labels": pairs([2**31] * 6)}, "integer of at least 0.*2147483648"),
        ({"labels": pairs([None] * 6)}, "integer of at least 0.*None"),
        ({"labels": [["a.png"]]}, r"\[file, integer.*\['a.png'\]"),
        ({"labels": {"0": "background"}}, "rename it if it is something else"),
        ({"name": "x" * 1000}, "rename it if it is something else"),
        (pairs(), "rename it if it is something else"),
        ("{", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
    ],
)
def test_other_labels_are_refused_shortly(opened, content, message):
    with pytest.raises(ValueError, match=rf"dataset\.json .*{message}") as error:
        opened(content)
    assert len(str(error.value)) < 700


def test_files_that_are_no_images_are_said_before_their_labels(tmp_path):
    (tmp_path / "latents-0.npy").write_bytes(b"")
    (tmp_path / "dataset.json").write_text('{"labels": [["latents-0.npy", 0]]}')
    with pytest.raises(ValueError, match=r"no image in .*, only 1 '\.npy'"):
        ImageFolder(tmp_path)


def test_a_mark_of_byte_order_is_no_content(tmp_path):
    folder = write(tmp_path, {"labels": pairs()}, encoding="utf-8-sig")
    assert ImageFolder(folder).num_classes == 7


def test_the_fingerprint_knows_the_labels_and_not_the_form(opened, tmp_path):
    fingerprint = opened({"labels": pairs()}).fingerprint
    assert ImageFolder(tmp_path / "data").fingerprint == fingerprint
    assert opened({"labels": pairs(LABELS[::-1])}).fingerprint != fingerprint


def test_it_lies_beside_the_images_of_one_split(tmp_path):
    write(tmp_path / "train", {"labels": pairs()})
    write(tmp_path / "val", {"labels": pairs(LABELS[::-1])})
    assert ImageFolder(tmp_path, "val")[5]["label"] == 6
    (tmp_path / "dataset.json").write_text('{"labels": null}')
    with pytest.raises(ValueError, match=r"lie in the folder of a split.*'train'"):
        ImageFolder(tmp_path)


def test_a_class_has_none_of_its_own(tmp_path):
    for name in ("ffhq", "other"):
        write(tmp_path / name, {"labels": pairs()})
    with pytest.raises(ValueError, match=r"a dataset\.json of its own.*='.*ffhq'"):
        ImageFolder(tmp_path)


def test_batches_have_the_labels(tmp_path):
    dataset = load(write(tmp_path, {"labels": pairs()}), 6, shuffle=False)
    np.testing.assert_array_equal(dataset[0][1], LABELS)
