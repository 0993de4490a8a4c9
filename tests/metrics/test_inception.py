"""The FID network against features of its PyTorch conversion, on seeded weights."""

import hashlib
import pickle
import warnings

import keras
import numpy as np
import pytest
import torch
from metrics.seeded_inception import seeded_weights

from keras_imm import backend
from keras_imm.metrics import InceptionV3, inception, inception_blocks

pytestmark = [
    pytest.mark.any_backend("files of a network"),
    pytest.mark.slow("builds the published network"),
]

GOLDEN_TAPS = ("64", "192", "768", "2048", "logits_unbiased", "logits")


@pytest.fixture(scope="module")
def weights():
    return seeded_weights()


@pytest.fixture(scope="module")
def path(weights, tmp_path_factory):
    """The file in the format that PyTorch had before zip files, as the published."""
    path = tmp_path_factory.mktemp("weights") / inception.FILENAME
    tensors = {name: torch.tensor(value) for name, value in weights.items()}
    torch.save(tensors, path, _use_new_zipfile_serialization=False)
    return path


@pytest.fixture(scope="module")
def network(path):
    with pytest.warns(UserWarning, match="not the published"):
        return InceptionV3(path, taps=inception.TAPS)


@pytest.mark.every_backend
@pytest.mark.parametrize("size", [32, 64, 256])
def test_every_tap_equals_the_golden_features(network, golden, size):
    features = network.features(golden[f"images_{size}"])
    assert not network.trainable_weights
    for tap in GOLDEN_TAPS:
        expected = golden[f"features_{size}_{tap}"]
        error = np.abs(features[tap] - expected).max() / np.abs(expected).max()
        assert error < 2e-5, (tap, error)


def test_a_batch_that_is_not_full_changes_nothing(network, golden):
    features = network.features(np.tile(golden["images_32"], (2, 1, 1, 1))[:3], 2)
    expected = golden["features_32_2048"][[0, 1, 0]]
    np.testing.assert_allclose(features["2048"], expected, rtol=0, atol=1e-3)
    assert features["2048"].shape == (3, 2048)


def test_the_spatial_tap_is_mixed_6_conv(network, weights, golden):
    """From the 17x17x768 before it, with the file's own arrays in float64."""
    before = network.get_layer("Mixed_6d_branch1x1_conv").input
    images = golden["images_64"]
    x = (
        keras.Model(network.inputs[0], before)
        .predict_on_batch(images)
        .astype("float64")
    )
    name = "Mixed_6d.branch1x1"
    x = x @ weights[f"{name}.conv.weight"][:, :, 0, 0].T.astype("float64")
    x = (x - weights[f"{name}.bn.running_mean"]) / np.sqrt(
        weights[f"{name}.bn.running_var"] + 1e-3
    )
    x = x * weights[f"{name}.bn.weight"] + weights[f"{name}.bn.bias"]
    expected = np.maximum(x, 0)[..., :7].reshape(2, 2023)
    spatial = network.features(images)["spatial"]
    np.testing.assert_allclose(spatial, expected, atol=1e-4 * expected.max())


@pytest.mark.every_backend
def test_settings_of_keras_change_nothing(path):
    keras.config.set_dtype_policy("mixed_bfloat16")
    keras.config.set_image_data_format("channels_first")
    try:
        network = load(path)
    finally:
        keras.config.set_dtype_policy("float32")
        keras.config.set_image_data_format("channels_last")
    formats = [getattr(layer, "data_format", None) for layer in network.layers]
    assert set(formats) == {None, "channels_last"}
    assert {layer.compute_dtype for layer in network.layers if layer.weights} == {
        "float32"
    }


WAYS = {
    "features": lambda network, images: network.features(images)["64"],
    "predict": lambda network, images: network.predict(images, verbose=0)["64"],
    "call": lambda network, images: network(images)["64"],
}


@pytest.mark.every_backend
@pytest.mark.parametrize("way", WAYS)
def test_it_multiplies_in_full_float32_whatever_else_does(
    way, set_tensorfloat32, monkeypatch
):
    """Asked where the first layer is called, and where TensorFlow runs the graph."""
    asked = []
    resize = inception_blocks.Resize.call

    def ask_and_resize(*arguments):
        asked.append(backend.multiplies_in_tf32())
        return resize(*arguments)

    network = InceptionV3(None, taps=["64"])
    monkeypatch.setattr(inception_blocks.Resize, "call", ask_and_resize)
    network.make_predict_function()
    run = network.predict_function

    def ask_and_run(*arguments):
        asked.append(backend.multiplies_in_tf32())
        return run(*arguments)

    network.predict_function = ask_and_run
    set_tensorfloat32(True)
    WAYS[way](network, np.zeros((1, 8, 8, 3), "uint8"))
    assert len(asked) == (1 if way == "call" else 2) and not any(asked)
    assert backend.multiplies_in_tf32()


def test_a_batch_that_fails_leaves_the_precision_as_it_was(set_tensorfloat32):
    network = InceptionV3(None, taps=["64"])
    set_tensorfloat32(True)
    with pytest.raises(ValueError):
        network.predict_on_batch(np.zeros((1, 8, 8, 4), "uint8"))
    assert backend.multiplies_in_tf32()


@pytest.mark.every_backend
@pytest.mark.skipif(
    keras.backend.backend() != "jax", reason="under JAX alone it is in the program"
)
def test_every_product_of_the_program_has_the_highest_precision(set_tensorfloat32):
    import jax

    network = InceptionV3(None, taps=["logits"])
    set_tensorfloat32(True)
    images = jax.ShapeDtypeStruct((1, 299, 299, 3), "uint8")
    text = jax.jit(lambda images: network(images)).lower(images).as_text()
    products = [
        line
        for line in text.splitlines()
        if "stablehlo.convolution" in line or "stablehlo.dot_general" in line
    ]
    assert len(products) == 95  # 94 convolutions and the last matrix
    assert all(line.count("HIGHEST") == 2 for line in products)


def test_only_the_asked_taps_come_in_their_order():
    network = InceptionV3(None, taps=["192", "64"])
    features = network.features(np.zeros((1, 8, 8, 3), "uint8"))
    assert {tap: array.shape for tap, array in features.items()} == {
        "192": (1, 192),
        "64": (1, 64),
    }


def test_saving_keeps_weights_and_taps(path, tmp_path):
    network = load(path)
    network.save(tmp_path / "network.keras")
    loaded = keras.saving.load_model(tmp_path / "network.keras")
    images = np.random.default_rng(0).integers(0, 256, (2, 20, 20, 3), "uint8")
    np.testing.assert_array_equal(
        loaded.features(images)["64"], network.features(images)["64"]
    )


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((2, 8, 8, 3), "float32"), "uint8.*float32, values from 0 to 0"),
        (np.full((2, 8, 8, 3), 300), r"uint8.*\[0, 255\].*int64, values.*300"),
        (np.zeros((2, 8, 8, 1), "uint8"), r"3 channels.*\(2, 8, 8, 1\)"),
        (np.zeros((8, 8, 3), "uint8"), r"3 channels.*\(8, 8, 3\)"),
        (np.zeros((0, 8, 8, 3), "uint8"), r"empty.*\(0, 8, 8, 3\)"),
    ],
)
def test_wrong_images_are_named(network, images, message):
    with pytest.raises(ValueError, match=message):
        network.features(images)


@pytest.mark.parametrize("taps", [[], "2048", ["2047"]])
def test_wrong_taps_are_named(taps):
    with pytest.raises(ValueError, match=r"`taps`.*'logits_unbiased'"):
        InceptionV3(None, taps=taps)


def load(path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return InceptionV3(path, taps=["64"])


def test_zip_files_are_read_too(weights, tmp_path, golden):
    tensors = {name: torch.tensor(value) for name, value in weights.items()}
    tensors["Conv2d_1a_3x3.bn.num_batches_tracked"] = torch.tensor(0)
    torch.save(tensors, tmp_path / "zip.pth")
    features = load(tmp_path / "zip.pth").features(golden["images_32"])["64"]
    np.testing.assert_allclose(features, golden["features_32_64"], rtol=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fc.bias": None}, "has no tensor fc.bias"),
        ({"fc.weight": np.zeros((10, 2048), "float32")}, r"fc.weight.*\(10, 2048\)"),
        ({"fc.bias": np.full(1008, np.nan, "float32")}, "fc.bias.*not finite"),
    ],
)
def test_files_of_other_networks_are_named(weights, tmp_path, change, message):
    tensors = {
        name: torch.tensor(value)
        for name, value in (weights | change).items()
        if value is not None
    }
    torch.save(tensors, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=message):
        load(tmp_path / "other.pth")


def test_a_file_that_is_cut_short_is_named(path, tmp_path):
    cut = tmp_path / "cut.pth"
    cut.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(ValueError, match=r"cut\.pth cannot be read.*cut short"):
        load(cut)


class Hostile:
    def __reduce__(self):
        return print, ("run",)


def test_nothing_in_a_file_is_run(tmp_path, capsys):
    path = tmp_path / "hostile.pth"
    torch.save({"fc.bias": Hostile()}, path)
    with pytest.raises(ValueError, match=r"asks for '(__builtin__|builtins)\.print'"):
        load(path)
    path.write_bytes(pickle.dumps(Hostile()))
    with pytest.raises(ValueError, match=r"asks for 'builtins\.print'"):
        load(path)
    assert capsys.readouterr().out == ""


def test_a_path_that_is_not_there_is_named():
    with pytest.raises(ValueError, match=r'`weights` must be "fid".*nowhere'):
        InceptionV3("nowhere.pth")


def test_without_a_connection_the_error_says_what_to_do(monkeypatch):
    def fail(*_, **__):
        raise Exception("URL fetch failure")

    monkeypatch.setattr(keras.utils, "get_file", fail)
    with pytest.raises(OSError, match=r"URL fetch failure(.|\n)*download https.*pth"):
        InceptionV3()


def test_a_damaged_download_is_refused(monkeypatch, tmp_path):
    path = tmp_path / inception.FILENAME
    path.write_bytes(b"not the weights")
    monkeypatch.setattr(keras.utils, "get_file", lambda *_, **__: str(path))
    begins = hashlib.sha256(b"not the weights").hexdigest()[:8]
    with pytest.raises(OSError, match=f"damaged.*{begins}.*6726825d"):
        InceptionV3()
