"""The measure of Fashion-MNIST: its network against NumPy, its parts against theirs."""

import hashlib
import importlib.util
import pathlib
import sys

import keras
import numpy as np
import pytest

from keras_imm import metrics
from keras_imm.datasets import fashion_mnist

MODULE = importlib.util.find_spec("keras_imm.metrics.fashion_mnist").origin
WEIGHTS = pathlib.Path(MODULE).with_name("fashion_mnist_v1.npz")


def synthetic(count, seed=0):
    """Blurred noise and boxes, uint8 of shape (count, 28, 28)."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (count, 7, 7)).repeat(4, axis=1).repeat(4, axis=2)
    for image in images[::2]:
        top, left = rng.integers(0, 14, 2)
        image[: top + 2], image[:, : left + 2] = 0, 255
    return images.astype("uint8")


@pytest.fixture(scope="module")
def classifier():
    return metrics.FashionMNISTClassifier()


@pytest.fixture(scope="module")
def quality():
    labels = np.arange(60) % 10
    train = synthetic(60, seed=1), labels[::-1]
    return metrics.FashionMNISTQuality(test=synthetic(50), train=train)


def convolve(x, kernel, bias, stride=1):
    """Sums of products over windows, then ReLU; float64, channels last."""
    windows = np.lib.stride_tricks.sliding_window_view(x, kernel.shape[:2], (1, 2))
    windows = windows[:, ::stride, ::stride]  # (batch, H, W, channels, kh, kw)
    return np.maximum(np.einsum("bhwcij,ijco->bhwo", windows, kernel) + bias, 0)


def expected(images):
    """The network in float64 NumPy, from the file of its weights."""
    with np.load(WEIGHTS) as file:
        arrays = {name: file[name].astype("float64") for name in file.files}

    def of(name):
        return arrays[f"{name}/kernel"], arrays[f"{name}/bias"]

    x = images[..., None] / 127.5 - 1
    x = convolve(x, *of("conv_1"), stride=2)
    x = convolve(x, *of("conv_2"))
    x = x.reshape(-1, 5, 2, 5, 2, 64).max((2, 4))
    x = convolve(np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))), *of("conv_3"))
    kernel, bias = of("features")
    x = x.reshape(len(x), -1) @ kernel + bias
    features = np.where(x > 0, x, 0.2 * x)
    kernel, bias = of("logits")
    return features, features @ kernel + bias


def test_the_network_is_that_of_numpy(classifier):
    images = synthetic(7)
    features, logits = expected(images)
    found = classifier.outputs_of(images)
    assert np.ptp(features, axis=0).max() > 1  # the images differ in them
    np.testing.assert_allclose(found["features"], features, rtol=0, atol=1e-4)
    np.testing.assert_allclose(found["logits"], logits, rtol=0, atol=1e-4)


def test_floats_are_clipped_and_rounded_as_pictures_are(classifier):
    images = synthetic(3)
    whole = classifier.outputs_of(images)
    floats = images[..., None] / 127.5 - 1
    inside = np.abs(floats) < 0.99
    beyond = np.where(inside, 0, 0.3 * np.sign(floats))
    up, down = floats + beyond + 0.003 * inside, floats + beyond - 0.003 * inside
    for given in (up, down, up.astype("float32"), up[..., 0]):
        found = classifier.outputs_of(given)
        for name in ("features", "logits"):
            np.testing.assert_array_equal(found[name], whole[name])


def test_the_policy_changes_nothing(classifier):
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        found = metrics.FashionMNISTClassifier().outputs_of(synthetic(3))
    finally:
        keras.config.set_dtype_policy("float32")
    for name, value in found.items():
        assert value.dtype == np.float32
        expected = classifier.outputs_of(synthetic(3))[name]
        np.testing.assert_array_equal(value, expected)


def test_many_images_are_taken_in_batches(classifier):
    images = synthetic(503)
    found = classifier.outputs_of(images)["features"]
    np.testing.assert_allclose(
        found[500:], classifier.outputs_of(images[500:])["features"], atol=1e-5
    )


@pytest.mark.one_backend("reads a file")
def test_the_weights_are_those_that_the_measure_is_defined_by():
    digest = hashlib.sha256(WEIGHTS.read_bytes()).hexdigest()
    assert digest == "3d650c5b9a07210669eb1e33665a688c5645abca62db189f6f21eb3ebe91ccc0"
    assert WEIGHTS.stat().st_size <= 600_000
    with np.load(WEIGHTS) as file:
        assert sum(file[name].size for name in file.files) <= 250_000


@pytest.mark.one_backend("reads a file")
def test_other_weights_are_refused(tmp_path, monkeypatch):
    (tmp_path / WEIGHTS.name).write_bytes(WEIGHTS.read_bytes() + b"0")
    module = sys.modules["keras_imm.metrics.fashion_mnist"]
    monkeypatch.setattr(module, "__file__", str(tmp_path / "fashion_mnist.py"))
    with pytest.raises(ValueError, match=r"not the file that fashion_mnist_v1"):
        metrics.FashionMNISTClassifier()
    with pytest.raises(ValueError, match=r"`weights` must be one of"):
        metrics.FashionMNISTClassifier(weights="fashion_mnist_v2")


def test_it_is_saved_with_its_weights(classifier, tmp_path):
    classifier.save(tmp_path / "classifier.keras")
    again = keras.saving.load_model(tmp_path / "classifier.keras")
    for name, value in again.outputs_of(synthetic(2)).items():
        expected = classifier.outputs_of(synthetic(2))[name]
        np.testing.assert_array_equal(value, expected)


def test_the_measures_are_those_of_the_features(quality, classifier):
    samples, labels = synthetic(40, seed=2), quality.labels(40)
    features, logits = expected(samples)
    reference, _ = expected(synthetic(50))
    found = quality.measure(samples, labels)
    frechet = metrics.frechet_distance(features, reference)
    assert found["frechet"] == pytest.approx(frechet, rel=1e-4)
    assert found["frechet"] == quality.frechet(samples)
    kernel = metrics.kernel_distance(features, reference, subset_size=40)
    assert found["kernel_distance"] == pytest.approx(kernel.mean, rel=1e-3)
    precision = metrics.precision_recall(features, reference)
    assert (found["precision"], found["recall"]) == pytest.approx(precision)
    agreement = np.mean(logits.argmax(1) == labels)
    assert found["agreement"] == quality.agreement(samples, labels) == agreement
    ratio = found["frechet"] / quality.floor()["frechet"]
    assert found["frechet_ratio"] == pytest.approx(ratio, rel=1e-12)


@pytest.mark.one_backend("NumPy around the network")
def test_the_floor_is_that_of_the_first_images_of_each_class(quality, monkeypatch):
    module = sys.modules["keras_imm.metrics.fashion_mnist"]
    monkeypatch.setattr(module, "_PER_CLASS", 4)
    train, labels = synthetic(60, seed=1), np.arange(60)[::-1] % 10
    fresh = metrics.FashionMNISTQuality(test=synthetic(50), train=(train, labels))
    order = np.argsort(labels, kind="stable").reshape(10, 6)[:, :4].ravel()
    found = fresh.measure(train[order], labels[order])
    assert found.pop("frechet_ratio") == 1
    assert fresh.floor() == found != quality.floor()


@pytest.mark.one_backend("NumPy around the network")
def test_the_test_images_themselves_are_best(quality):
    found = quality.measure(synthetic(50), quality.labels(50))
    assert found["frechet"] == pytest.approx(0, abs=1e-3)
    assert (found["precision"], found["recall"]) == (1, 1)
    labels = quality.labels()
    assert (labels.shape, labels.dtype) == ((10_000,), np.int32)
    assert np.array_equal(np.bincount(labels), [1000] * 10)


@pytest.mark.one_backend("NumPy around the network")
def test_the_kernel_distance_is_of_subsets_of_a_thousand(quality, monkeypatch):
    module = sys.modules["keras_imm.metrics.fashion_mnist"]
    quality.floor()  # measured once, with a size of its own
    sizes = []

    def kernel_distance(*features, subset_size):
        sizes.append(subset_size)
        return metrics.kernel_distance(*features, subset_size=subset_size)

    monkeypatch.setattr(module, "kernel_distance", kernel_distance)
    monkeypatch.setattr(quality, "reference", np.tile(quality.reference, (40, 1)))
    for count in (40, 1500):
        quality.measure(
            np.tile(synthetic(20), (count // 20, 1, 1)), quality.labels(count)
        )
    assert sizes == [40, 1000]


@pytest.mark.one_backend("argument checks")
@pytest.mark.parametrize("count", [0, -1, 1.5, "a", True])
def test_wrong_numbers_of_labels_are_refused(quality, count):
    with pytest.raises(ValueError, match="`count` must be"):
        quality.labels(count)


@pytest.mark.one_backend("argument checks")
@pytest.mark.parametrize(
    ("samples", "labels", "message"),
    [
        (np.zeros((4, 32, 32, 1)), np.zeros(4, int), r"Received: shape \(4, 32, 32, 1"),
        (np.zeros((4, 28, 28), int), np.zeros(4, int), "Received: dtype int64$"),
        (np.full((4, 28, 28), np.nan), np.zeros(4, int), "float64, with values that"),
        (255 * np.eye(28)[None], np.zeros(1, int), r"\[-1, 1\].*values in \[0, 255\]"),
        (synthetic(5), np.zeros(4, int), r"integers of shape \(5,\).*shape \(4,\)"),
        (synthetic(5), np.zeros(5), "dtype float64"),
    ],
)
def test_wrong_samples_are_refused(quality, samples, labels, message):
    with pytest.raises(ValueError, match=message):
        quality.measure(samples, labels)


def has_data():
    return sys.modules["keras_imm.datasets.fashion_mnist"].DEBIAN_FOLDER.is_dir()


@pytest.mark.slow("20,000 images and their distances")
@pytest.mark.one_backend("the network is compared on each backend above")
@pytest.mark.skipif(not has_data(), reason="dataset-fashion-mnist is not installed")
def test_accuracy_and_floor_are_those_that_were_recorded():
    """benchmarks/RESULTS.md, Fashion-MNIST."""
    quality = metrics.FashionMNISTQuality()
    accuracy = quality.agreement(*fashion_mnist("test"))
    assert accuracy == pytest.approx(0.9142, abs=2e-4)
    floor = quality.floor()
    assert floor["frechet"] == pytest.approx(0.03766, rel=1e-3)
