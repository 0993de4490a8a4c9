"""Reference statistics in the formats in use, and of data sets."""

import pickle

import numpy as np
import pytest
import torch

import keras_imm
from keras_imm.metrics import ReferenceStatistics

pytestmark = pytest.mark.one_backend("NumPy code")


@pytest.fixture
def moments():
    features = np.random.default_rng(0).normal(size=(20, 4))
    return {"mu": features.mean(0), "sigma": np.cov(features, rowvar=False)}


def check(statistics, moments):
    np.testing.assert_allclose(statistics.mean, moments["mu"], rtol=1e-6)
    np.testing.assert_allclose(statistics.covariance, moments["sigma"], rtol=1e-6)


def test_edm_npz(moments, tmp_path):
    np.savez(tmp_path / "cifar10-32x32.npz", **moments)
    statistics = ReferenceStatistics.load(tmp_path / "cifar10-32x32.npz")
    check(statistics, moments)
    assert statistics.spatial_mean is None and statistics.features is None


@pytest.mark.parametrize("protocol", range(6))
def test_edm_pickles(moments, tmp_path, protocol):
    path = tmp_path / "img512.pkl"
    content = {"fid": moments, "fd_dinov2": {"mu": np.zeros(3), "sigma": np.eye(3)}}
    path.write_bytes(pickle.dumps(content, protocol))
    check(ReferenceStatistics.load(path), moments)
    path.write_bytes(pickle.dumps(moments, protocol))
    check(ReferenceStatistics.load(path), moments)


def test_adm_npz(moments, tmp_path):
    path = tmp_path / "VIRTUAL_imagenet256_labeled.npz"
    images = np.zeros((2, 8, 8, 3), "uint8")
    spatial = {"mu_s": np.ones(2), "sigma_s": np.eye(2)}
    np.savez(path, arr_0=images, **moments, **spatial)
    statistics = ReferenceStatistics.load(path)
    check(statistics, moments)
    np.testing.assert_array_equal(statistics.spatial_mean, [1, 1])
    np.testing.assert_array_equal(statistics.spatial_covariance, np.eye(2))


def test_torch_fidelity_statistics_and_features(moments, tmp_path):
    path = tmp_path / "cifar10-inception-v3-compat-stat-fid-2048.pt"
    torch.save({"mu": moments["mu"].astype("float32"), "sigma": moments["sigma"]}, path)
    check(ReferenceStatistics.load(path), moments)
    features = np.random.default_rng(1).normal(size=(9, 4)).astype("float32")
    torch.save(torch.tensor(features), path)
    statistics = ReferenceStatistics.load(path)
    np.testing.assert_array_equal(statistics.features, features)
    np.testing.assert_allclose(statistics.mean, features.mean(0), rtol=1e-5)


def test_what_is_saved_is_read_again_and_by_others(moments, tmp_path):
    path = tmp_path / "saved.npz"
    statistics = ReferenceStatistics(
        moments["mu"], moments["sigma"], [1.0], [[2.0]], np.ones((3, 4), "float32")
    )
    statistics.save(path)
    loaded = ReferenceStatistics.load(path)
    for field in ("mean", "covariance", "spatial_mean", "features"):
        np.testing.assert_array_equal(
            getattr(loaded, field), getattr(statistics, field)
        )
    assert set(np.load(path)) == {"mu", "sigma", "mu_s", "sigma_s", "features"}
    assert [p.name for p in tmp_path.iterdir()] == ["saved.npz"]


def channels(images):
    """Features of images that are easily seen: two of their pixels."""
    assert images.dtype == np.uint8
    return images[:, 0, :2, 0].astype("float32")


def test_of_a_data_set(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (12, 4, 4, 3), "uint8")
    dataset = keras_imm.datasets.load((images, np.arange(12) % 3), batch_size=4)
    statistics = ReferenceStatistics.from_dataset(dataset, channels, max_features=5)
    expected = channels(images).astype("float64")
    np.testing.assert_allclose(statistics.mean, expected.mean(0))
    np.testing.assert_allclose(statistics.covariance, np.cov(expected, rowvar=False))
    kept = statistics.features
    assert kept.shape == (5, 2)
    assert {tuple(row) for row in kept} <= {tuple(row) for row in expected}


class Network:
    """The outputs of an `InceptionV3`, small."""

    taps = ("spatial", "2048")

    def features(self, images):
        pixels = images.reshape(len(images), -1).astype("float32")
        return {"spatial": pixels[:, :5], "2048": pixels[:, :3]}


def test_of_a_data_set_through_the_fid_network():
    images = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), "uint8")
    statistics = ReferenceStatistics.from_dataset([images], Network())
    found = Network().features(images)
    np.testing.assert_allclose(statistics.features, found["2048"])
    np.testing.assert_allclose(statistics.mean, found["2048"].mean(0))
    np.testing.assert_allclose(statistics.spatial_mean, found["spatial"].mean(0))
    assert statistics.covariance.shape == (3, 3)
    assert statistics.spatial_covariance.shape == (5, 5)


def test_a_network_without_features_is_told():
    with pytest.raises(ValueError, match=r'tap "2048".*logits'):
        ReferenceStatistics.from_dataset([np.zeros((2, 4, 4, 3), "uint8")], no_features)


def no_features(images):
    return {"logits": images}


def test_records_left_out_are_told():
    images = np.zeros((10, 4, 4, 3), "uint8")
    dataset = keras_imm.datasets.load(images, batch_size=4)
    with pytest.raises(ValueError, match=r"10 records.*2 batches of 4"):
        ReferenceStatistics.from_dataset(dataset, channels)


def test_images_in_another_range_are_told():
    with pytest.raises(ValueError, match=r"\[-1, 1\].*float64 from 0 to 255"):
        ReferenceStatistics.from_dataset([np.array([0.0, 255.0])], channels)
    with pytest.raises(ValueError, match=r"`images`.*finite"):
        ReferenceStatistics.from_dataset([np.full((1, 2, 2, 3), np.nan)], channels)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((np.zeros(3), np.eye(2)), r"`covariance`.*\(3, 3\).*\(2, 2\)"),
        ((np.full(2, np.nan), np.eye(2)), "`mean`.*finite"),
        ((np.zeros(2), np.eye(2), np.zeros(2)), "`spatial_mean` and"),
        ((np.zeros(2), np.eye(2), None, None, np.zeros((4, 3))), "2 columns.*3"),
    ],
)
def test_statistics_that_do_not_fit_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        ReferenceStatistics(*arguments)


def test_files_of_another_kind_are_named(tmp_path):
    def message(name, data):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ValueError, match=name) as caught:
            ReferenceStatistics.load(tmp_path / name)
        return str(caught.value)

    np.savez(tmp_path / "samples.npz", arr_0=np.zeros(3))
    samples = (tmp_path / "samples.npz").read_bytes()
    assert "has arr_0, but no mu" in message("samples.npz", samples)
    assert "cannot be read" in message("cut.npz", samples[:50])
    assert "cannot be read" in message("cut.pkl", pickle.dumps({"mu": 1})[:-2])
    assert "builtins.print" in message("hostile.pkl", pickle.dumps(print))
    assert "holds a str" in message("other.pkl", pickle.dumps("text"))
    assert "end in .npz" in message("other.txt", b"")
    with pytest.raises(ValueError, match="nowhere"):
        ReferenceStatistics.load("nowhere.npz")
