"""What cannot be read is named, and skipped or not."""

import json
import os
import warnings

import numpy as np
import pytest
from image_files import encoded, pixels, write_classes
from PIL import Image

from keras_imm.datasets import load
from keras_imm.metrics import ReferenceStatistics

pytestmark = pytest.mark.one_backend("NumPy code")


@pytest.fixture
def folder(tmp_path):
    """Twelve images, of which numbers 3, 4 and 11 are corrupt."""
    folder = write_classes(tmp_path / "images", (6, 6), height=40, width=40)
    jpeg = encoded(pixels(0, 40, 40), "jpeg")
    (folder / "class_0" / "003.png").write_bytes(jpeg[:-300])
    (folder / "class_0" / "004.png").write_bytes(b"")
    (folder / "class_1" / "005.png").write_bytes(b"<html>not found</html>")
    return folder


CORRUPT = {"003.png": 5, "004.png": 5, "005.png": 0}
REPLACED = {3: 5, 4: 5, 11: 0}


def read(dataset, epochs=2):
    read = []
    for _ in range(epochs):
        dataset.on_epoch_begin()
        read += [dataset[i] for i in range(len(dataset))]
        dataset.on_epoch_end()
    images, labels = zip(*read, strict=True)
    return np.concatenate(images), np.concatenate(labels)


def test_a_corrupt_image_stops_the_run_and_is_named(folder):
    dataset = load(folder, 3, shuffle=False)
    good, _ = dataset[0]
    for _ in range(2):  # again, and not what comes after it
        with pytest.raises(
            ValueError, match=r"class_0/003\.png cannot be read: .*trunc"
        ):
            dataset[1]
    np.testing.assert_array_equal(dataset[0][0], good)
    assert len(dataset[2][0]) == 3
    (folder / "class_0" / "003.png").write_bytes(encoded(pixels(3, 40, 40)))
    with pytest.raises(ValueError, match=r"004\.png cannot be read: it is no image"):
        dataset[1]


def test_a_skipped_image_is_named_once_and_replaced_by_the_next(folder):
    dataset = load(folder, 4, on_corrupt="skip")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        images, labels = read(dataset)
    told = [str(w.message) for w in caught if "Skipping" in str(w.message)]
    assert len(told) == 3
    assert {name.rsplit("/", 1)[1] for name in dataset.corrupt} == set(CORRUPT)
    for name, reason in dataset.corrupt.items():
        assert f"Skipping {name}: {reason}" in told
    indices = [dataset.batch_indices(i, epoch) for epoch in (0, 1) for i in range(3)]
    for image, label, index in zip(
        images, labels, np.concatenate(indices), strict=True
    ):
        index = REPLACED.get(index, index)
        expected = pixels(index, 40, 40) / np.float32(127.5) - 1
        np.testing.assert_allclose(image, expected, rtol=0, atol=1e-7)
        assert label == index // 6


@pytest.mark.slow("child processes")
def test_processes_that_read_change_nothing_and_report_what_they_skip(folder):
    with pytest.warns(UserWarning, match="Skipping"):
        expected = read(load(folder, 4, on_corrupt="skip", flip=True))
    dataset = load(folder, 4, on_corrupt="skip", flip=True, num_workers=2)
    with pytest.warns(UserWarning, match="Skipping"):
        found = read(dataset)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a, b)
    assert len(dataset.corrupt) == 3
    dataset.close()


@pytest.mark.parametrize("target", ["nowhere.png", "000.png/below.png", "002.png"])
def test_a_link_to_what_is_not_there_is_corrupt(tmp_path, target):
    folder = write_classes(tmp_path / "images", (3,))
    (folder / "class_0" / "002.png").unlink()
    (folder / "class_0" / "002.png").symlink_to(target)  # the last to itself
    dataset = load(folder, 3, shuffle=False)
    with pytest.raises(ValueError, match=rf"002\.png cannot .* not there, '{target}"):
        dataset[0]
    dataset = load(folder, 3, shuffle=False, on_corrupt="skip")
    with pytest.warns(UserWarning, match=r"Skipping .*002\.png: it is a link"):
        assert len(dataset[0][0]) == 3
    json.dumps(dataset.fingerprint)


def test_links_in_circles_and_pipes_are_corrupt(tmp_path):
    """A pipe would be read until somebody writes to it."""
    Image.fromarray(np.zeros((4, 4, 3), "uint8")).save(tmp_path / "c.png")
    (tmp_path / "a.png").symlink_to("a.png")
    os.mkfifo(tmp_path / "b.png")
    with pytest.warns(UserWarning, match="Skipping") as caught:
        dataset = load(tmp_path, 3, shuffle=False, on_corrupt="skip")
        assert dataset[0].shape == (3, 4, 4, 3)
    said = " ".join(str(one.message) for one in caught)
    assert "a.png: it is a link to what is not there" in said
    assert "b.png: it is no file" in said


def test_only_corrupt_images_are_an_error(tmp_path):
    for name in "ab":
        (tmp_path / f"{name}.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match="No record can be read"):
        load(tmp_path, 2, on_corrupt="skip")
    with pytest.raises(ValueError, match=r"a\.png cannot be read"):
        load(tmp_path, 2)


def test_a_file_that_is_gone_is_not_skipped(folder):
    dataset = load(folder, 4, on_corrupt="skip", shuffle=False)
    (folder / "class_0" / "001.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"001\.png"):
        dataset[0]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_floats_that_are_not_finite_are_corrupt(tmp_path, value, dtype):
    images = np.arange(6, dtype=dtype).reshape(6, 1, 1, 1) + np.zeros((4, 4, 1), dtype)
    images = images / 2 - 1
    images[2, 3, 1] = value
    np.save(tmp_path / "a.npy", images)
    for source, name in ((images, "images"), (tmp_path / "a.npy", "a.npy")):
        with pytest.raises(ValueError, match=rf"{name}\[2\] cannot be read: .*finite"):
            load(source, 6)[0]
        dataset = load(source, 6, shuffle=False, on_corrupt="skip")
        with pytest.warns(UserWarning, match=r"\[2\]: its pixels are not finite"):
            seen = dataset[0]
        assert (2 * seen[:, 0, 0, 0] + 2).tolist() == [0, 1, 3, 3, 4, 5]
        assert len(dataset.corrupt) == 1


def test_statistics_count_no_image_twice(folder):
    dataset = load(folder, 4, shuffle=False, on_corrupt="skip")
    with pytest.raises(ValueError, match=r"3 records .* count twice.*003\.png"):
        ReferenceStatistics.from_dataset(
            dataset, lambda x: x.reshape(len(x), -1)[:, :4]
        )
