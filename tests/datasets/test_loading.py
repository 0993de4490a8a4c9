"""Each source comes in by the same way."""

import json
import pickle

import numpy as np
import pytest
from image_files import encoded, pixels, write_classes, write_idx, write_prepared

from keras_imm.datasets import center_crop, load
from keras_imm.datasets.decoding import decode
from keras_imm.latents import normalize, shard_files

pytestmark = pytest.mark.any_backend("NumPy code")


def in_model_range(image):
    return np.asarray(image) / np.float32(127.5) - 1


def test_a_folder_is_loaded(tmp_path):
    folder = write_classes(tmp_path / "images", (5, 4), height=20, width=30)
    dataset = load(str(folder), 3, image_size=16)
    assert dataset.class_names == ["class_0", "class_1"]
    assert dataset.image_shape == (16, 16, 3)
    images, labels = dataset[0]
    for image, label, index in zip(
        images, labels, dataset.batch_indices(0), strict=True
    ):
        file = decode(encoded(pixels(index, 20, 30)))
        np.testing.assert_allclose(image, in_model_range(center_crop(file, 16)))
        assert label == (index >= 5)
        name = f"{index if index < 5 else index - 5:03d}.png"
        assert dataset.record_name(index).endswith(name)


def test_grey_folders_are_loaded_in_one_channel(tmp_path):
    write_classes(tmp_path / "images", (3,), channels=1)
    dataset = load(tmp_path / "images", 3, channels=1, shuffle=False)
    np.testing.assert_allclose(
        dataset[0][0][1, ..., 0], in_model_range(pixels(1, channels=1))
    )
    assert load(tmp_path / "images", 3).image_shape == (8, 8, 3)


def test_images_of_several_sizes_need_a_size(tmp_path):
    folder = write_classes(tmp_path / "images", (4,))
    (folder / "class_0" / "002.png").write_bytes(encoded(pixels(2, 8, 9)))
    dataset = load(folder, 4)
    with pytest.raises(ValueError, match=r"002\.png of shape \(8, 9, 3\)"):
        dataset[0]
    assert load(folder, 4, image_size=8)[0][0].shape == (4, 8, 8, 3)


def test_files_of_arrays_are_loaded(tmp_path):
    images = np.stack([pixels(i) for i in range(6)])
    np.savez(tmp_path / "a.npz", x=images, y=np.arange(6))
    np.save(tmp_path / "a.npy", images)
    x, y = load(tmp_path / "a.npz", 6, shuffle=False)[0]
    np.testing.assert_allclose(x, in_model_range(images), rtol=0, atol=1e-7)
    np.testing.assert_array_equal(y, np.arange(6))
    np.testing.assert_array_equal(load(tmp_path / "a.npy", 6, shuffle=False)[0], x)
    small = load(tmp_path / "a.npy", 6, shuffle=False, image_size=4)[0]
    expected = center_crop(decode(encoded(images[3])), 4)
    np.testing.assert_allclose(small[3], in_model_range(expected))


def test_what_is_read_whole_takes_no_split(tmp_path, latents):
    stored = np.stack([pixels(i) for i in range(4)])
    np.savez(tmp_path / "a.npz", images=stored)
    np.save(tmp_path / "b.npy", stored)
    write_idx(tmp_path / "x-images-idx3-ubyte", stored[..., 0])
    (tmp_path / "c").write_bytes((tmp_path / "a.npz").read_bytes())
    files = [tmp_path / n for n in ("a.npz", "b.npy", "x-images-idx3-ubyte", "c")]
    for source in (stored, *files, latents[0]):
        load(source, 2)
        for split in ("validation", "train[:50%]"):
            with pytest.raises(ValueError, match=r"`split` must be left out.*whole"):
                load(source, 2, split=split)


def test_floats_are_taken_as_they_are():
    images = np.random.default_rng(0).standard_normal((4, 3, 3, 2))
    np.testing.assert_array_equal(
        load(images, 4, shuffle=False)[0], images.astype("float32")
    )
    with pytest.raises(ValueError, match="floats"):
        load(images, 4, image_size=2)


@pytest.mark.parametrize("value", [255, -128])
def test_floats_far_from_the_model_range_are_refused(value):
    images = np.zeros((4, 3, 3, 1))
    images[2, 1, 1] = value
    with pytest.raises(ValueError, match=rf"images\[2\] with {abs(value)} in abs"):
        load(images, 4, on_corrupt="skip")[0]


def test_a_prepared_data_set_is_loaded(tmp_path, monkeypatch):
    write_prepared(tmp_path / "tfds", {"train": 7, "test": 3})
    dataset = load("tiny_shapes", 3, data_dir=tmp_path / "tfds", image_size=8)
    assert (dataset.num_records, dataset.num_classes) == (7, 3)
    known = {
        np.asarray(center_crop(decode(encoded(pixels(i, 8, 10))), 8)).tobytes(): i % 3
        for i in range(7)
    }
    for image, label in zip(*dataset[0], strict=True):
        pixel = np.clip(127.5 * image + 128, 0, 255).astype("uint8")
        assert known[pixel.tobytes()] == label
    test = load("tiny_shapes", 3, split="test", data_dir=tmp_path / "tfds")
    assert (test.num_records, test.image_shape) == (3, (8, 10, 3))
    # With `data_dir`, a folder of the same name is not meant.
    (tmp_path / "tiny_shapes").mkdir()
    monkeypatch.chdir(tmp_path)
    assert load("tiny_shapes", 3, data_dir="tfds").num_records == 7
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load("tiny_shapes", 3, data_dir="~/tfds").num_records == 7


@pytest.fixture
def latents(tmp_path):
    layout = shard_files.record_dtype((2, 3, 8), "float16", mirrored=True)
    records = np.zeros(6, layout)
    rng = np.random.default_rng(0)
    for name in ("moments", "mirrored"):
        records[name] = rng.uniform(0.5, 2.0, (6, 2, 3, 8))
    records["label"] = np.arange(6)
    folder = tmp_path / "latents"
    shard_files.claim_folder(folder, {"image_size": 16})
    shard_files.write_shard(folder, 0, records[:4])
    shard_files.write_shard(folder, 1, records[4:])
    description = {
        "moments_shape": [2, 3, 8],
        "dtype": "float16",
        "mirrored": True,
        "num_classes": 6,
        "class_names": None,
    }
    shard_files.write_manifest(folder, 2, description)
    return folder, records


def test_latents_are_sampled_afresh_and_normalized(latents):
    folder, records = latents
    dataset = load(folder, 6, shuffle=False, steps_per_epoch=400)
    assert (dataset.image_shape, dataset.num_classes) == ((2, 3, 4), 6)
    samples, labels = zip(*(dataset[i] for i in range(400)), strict=True)
    samples = np.stack(samples)
    assert samples.dtype == np.float32
    np.testing.assert_array_equal(labels, [np.arange(6)] * 400)
    moments = records["moments"].astype("float32")
    std = normalize(moments[..., 4:]) - normalize(0 * moments[..., 4:])
    z = (samples - normalize(moments[..., :4])) / std  # standard normal
    assert np.abs(z.mean(axis=0)).max() < 5 / 400**0.5
    assert np.abs(z.std(axis=0) - 1).max() < 5 / 800**0.5
    correlation = (z[1:] * z[:-1]).mean()
    assert abs(correlation) < 5 / z.size**0.5
    np.testing.assert_array_equal(load(folder, 6, shuffle=False)[0][0], samples[0])
    scaled = load(folder, 6, shuffle=False, sigma_data=1.0)
    np.testing.assert_allclose(scaled[0][0], 2 * samples[0], rtol=1e-6)
    assert scaled.fingerprint != dataset.fingerprint
    same = load(folder, 6, shuffle=False, sigma_data=np.float32(1.0))
    assert json.dumps(same.fingerprint) == json.dumps(scaled.fingerprint)
    assert (
        load(folder, 6, seed=1, shuffle=False)[0][0][0, 0, 0, 0] != samples[0].flat[0]
    )


def test_latents_come_mirrored_from_their_folder(latents):
    folder, _ = latents
    dataset = load(folder, 12, flip=True)
    assert dataset.num_records == 12
    assert sorted(dataset.batch_indices(0)) == list(range(12))
    assert "mirrored" in dataset.record_name(7)
    with pytest.raises(ValueError, match="`image_size` must be left out for latents"):
        load(folder, 6, image_size=32)
    with pytest.raises(ValueError, match="`channels` must be left out for latents"):
        load(folder, 6, channels=3)


def test_labels_outside_the_classes_are_named(tmp_path):
    write_prepared(tmp_path, {"test": 3}, labels=[0, 1, -1])
    with pytest.raises(ValueError, match=r"tiny_shapes.*label -1.*labels=False"):
        load("tiny_shapes", 3, split="test", data_dir=tmp_path)[0]
    dataset = load("tiny_shapes", 3, split="test", data_dir=tmp_path, labels=False)
    assert dataset[0].shape == (3, 8, 10, 3)
    assert [dataset.read_record(i)[1] for i in range(3)] == [-1, -1, -1]


@pytest.mark.parametrize("labels", [[0, 1, -1], [0.5, 1.0, 2.0], [0, 1]])
def test_labels_that_are_not_read_are_not_checked(tmp_path, labels):
    images = np.stack([pixels(i) for i in range(3)])
    np.savez(tmp_path / "a.npz", images=images, labels=labels)
    for source in ((images, labels), tmp_path / "a.npz"):
        with pytest.raises(ValueError, match="Labels must be"):
            load(source, 3)
        dataset = load(source, 3, shuffle=False, labels=False)
        np.testing.assert_array_equal(dataset[0], load(images, 3, shuffle=False)[0])
        again = pickle.loads(pickle.dumps(dataset._records.source))
        assert again.num_classes == 0


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("./nowhere", "`source` must be there"),
        ("/nowhere/at/all", "`source` must be there"),
        ("nowhere.npz", r"Cannot read nowhere\.npz"),
        ("no_such_data", "file, a folder or the name of a data set"),
        ("", "`source` must not be empty"),
        (7, "`source` must be a name, a path, an array or a tuple"),
        ((pixels(0),), "of 1 elements"),
    ],
)
def test_wrong_sources_are_named(source, message):
    with pytest.raises(ValueError, match=message):
        load(source, 4)
