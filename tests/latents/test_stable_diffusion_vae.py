"""The autoencoder, against the golden numbers of its published implementation."""

import importlib.util
import os
import sys

import h5py
import huggingface_hub
import keras
import numpy as np
import pytest
import seeded_autoencoder
from keras.src.legacy.saving import legacy_h5_format

if importlib.util.find_spec("tensorflow") is None:
    pytest.skip(
        "KerasCV imports TensorFlow, which is not installed here",
        allow_module_level=True,
    )

from keras_cv.models.stable_diffusion import Decoder, ImageEncoder

from keras_imm.latents import (
    StableDiffusionVAE,
    autoencoder_networks,
    diffusers_weights,
    hub,
    normalize,
)

pytestmark = [
    pytest.mark.any_backend("files of an autoencoder"),
    pytest.mark.slow("builds the published autoencoder"),
]


@pytest.fixture(scope="module")
def golden():
    with np.load(seeded_autoencoder.GOLDEN) as arrays:
        return {name: arrays[name] for name in arrays}


@pytest.fixture(scope="module")
def weights():
    return seeded_autoencoder.seeded_weights()


@pytest.fixture(scope="module")
def file(weights, tmp_path_factory):
    path = tmp_path_factory.mktemp("vae") / diffusers_weights.FILENAME
    seeded_autoencoder.write(path, weights)
    yield path
    path.unlink()  # 335 MB


@pytest.fixture(scope="module")
def vae(file):
    """Made under other settings than its own, from a folder."""
    keras.config.set_dtype_policy("mixed_bfloat16")
    keras.config.set_image_data_format("channels_first")
    try:
        return StableDiffusionVAE.from_diffusers(file.parent, batch_size=2)
    finally:
        keras.config.set_dtype_policy("float32")
        keras.config.set_image_data_format("channels_last")


def forget(vae):
    for variable in (*vae.encoder.weights, *vae.decoder.weights):
        variable.assign(np.zeros(variable.shape, "float32"))


@pytest.fixture
def checksum(vae):
    """A number that changes with any weight."""

    def sums():
        variables = [*vae.encoder.weights, *vae.decoder.weights]
        return [float(np.sum(keras.ops.convert_to_numpy(v))) for v in variables]

    return sums


# KerasCV's own epsilon of 1e-5 would move each of these by 4e-5.
@pytest.mark.every_backend
@pytest.mark.slow("builds the published autoencoder")
def test_moments_are_the_golden_ones(vae, golden):
    mean, std = vae.encode(golden["images"])
    np.testing.assert_allclose(mean, golden["latent_mean"], atol=2.5e-5)
    np.testing.assert_allclose(std, golden["latent_std"], atol=2e-5)


@pytest.mark.every_backend
def test_the_decoder_is_the_golden_one(vae, golden):
    decoded = vae.decoder.predict_on_batch(golden["latents"])
    np.testing.assert_allclose(decoded, golden["decoded"], atol=3e-5)


def test_decode_takes_scaled_latents_and_truncates(vae, golden):
    images = vae.decode(normalize(golden["latents"]))
    assert images.dtype == "uint8"
    exact = 255 * np.clip(0.5 * golden["decoded"].astype("float64") + 0.5, 0, 1)
    # Within rounding of a whole number either side of it is right.
    assert np.all(images <= exact + 0.01)
    assert np.all(images >= exact - 1.01)


def test_floats_and_tensors_and_any_batch_give_the_same(vae, golden):
    mean, std = vae.encode(golden["images"])
    floats = golden["images"].astype("float32") / 127.5 - 1
    three = keras.ops.convert_to_tensor(floats[[0, 1, 0]])  # one full batch, one not
    more_mean, more_std = vae.encode(three)
    np.testing.assert_allclose(more_mean, mean[[0, 1, 0]], atol=1e-5)
    np.testing.assert_allclose(more_std, std[[0, 1, 0]], atol=1e-5)


def test_log_variance_is_clipped(vae, monkeypatch):
    """To [-30, 20], as it is where the weights were trained."""
    moments = np.concatenate(
        [np.zeros((1, 1, 1, 4)), [[[[-90.0, 0, 2, 90]]]]], -1, dtype="float32"
    )
    monkeypatch.setattr(vae.encoder, "predict_on_batch", lambda batch: moments)
    _, std = vae.encode(np.zeros((1, 8, 8, 3), "uint8"))
    expected = np.exp([-15, 0, 1, 10])
    np.testing.assert_allclose(std[0, 0, 0], expected, rtol=1e-5)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_tensors_of_any_floats_reach_the_encoder_in_float32(vae, monkeypatch, dtype):
    seen = []
    monkeypatch.setattr(
        vae.encoder,
        "predict_on_batch",
        lambda x: seen.append(x) or np.zeros((len(x), 1, 1, 8), "float32"),
    )
    images = np.linspace(-1, 1, 3 * 64).reshape(1, 8, 8, 3)
    vae.encode(keras.ops.convert_to_tensor(images, dtype))
    assert seen[0].dtype == np.float32
    np.testing.assert_allclose(seen[0], images, atol=2**-8)


def test_samples_have_the_moments_and_follow_the_seed(vae):
    mean = np.random.default_rng(0).normal(size=(2, 40, 40, 4)).astype("float32")
    std = np.full_like(mean, 0.3)
    x = vae.sample((mean, std), seed=1)
    z = x / vae.sigma_data
    scale = np.array([4.85503674, 5.31922414, 3.93725398, 3.9870003])
    noise = (z - normalize(mean, 1.0)) * scale / 0.3
    assert abs(noise.mean()) < 0.05
    assert abs(noise.std() - 1) < 0.05
    assert abs(np.mean(noise[0] * noise[1])) < 0.05  # each image has its own
    np.testing.assert_array_equal(vae.sample((mean, std), seed=1), x)
    assert np.any(vae.sample((mean, std), seed=2) != x)
    np.testing.assert_array_equal(
        vae.sample((mean, np.zeros_like(mean)), seed=0), normalize(mean)
    )


def test_earlier_names_load(vae, weights, tmp_path, checksum):
    before = checksum()
    forget(vae)
    path = tmp_path / "earlier.safetensors"
    seeded_autoencoder.write(path, seeded_autoencoder.with_earlier_names(weights))
    diffusers_weights.load_weights(path, vae.encoder, vae.decoder)
    path.unlink()
    assert checksum() == before


def test_half_precision_loads(vae, weights, file, tmp_path, checksum):
    before = checksum()
    path = tmp_path / "half.safetensors"
    half = {name: value.astype("float16") for name, value in weights.items()}
    seeded_autoencoder.write(path, half)
    diffusers_weights.load_weights(path, vae.encoder, vae.decoder)
    path.unlink()
    bias = keras.ops.convert_to_numpy(vae.encoder.weights[1])
    np.testing.assert_array_equal(bias, half["encoder.conv_in.bias"].astype("float32"))
    diffusers_weights.load_weights(file, vae.encoder, vae.decoder)
    assert checksum() == before


def test_a_truncated_file_names_the_tensor_it_ends_in(vae, file, checksum):
    before, size = checksum(), file.stat().st_size
    content = file.read_bytes()
    os.truncate(file, size - 4)
    try:
        expected = r"safetensors cannot be read.*before the end of tensor"
        with pytest.raises(ValueError, match=expected):
            diffusers_weights.load_weights(file, vae.encoder, vae.decoder)
        os.truncate(file, 5)
        with pytest.raises(ValueError, match="safetensors cannot be read"):
            diffusers_weights.load_weights(file, vae.encoder, vae.decoder)
    finally:
        file.write_bytes(content)
    assert checksum() == before


def test_a_tensor_that_is_not_finite_changes_nothing(vae, file, checksum):
    before = checksum()
    with open(file, "r+b") as stream:
        stream.seek(-4, os.SEEK_END)
        last = stream.read(4)
        stream.seek(-4, os.SEEK_END)
        stream.write(np.float32(np.nan).tobytes())
    try:
        with pytest.raises(ValueError, match=r"Tensor .* of .* is not finite"):
            diffusers_weights.load_weights(file, vae.encoder, vae.decoder)
    finally:
        with open(file, "r+b") as stream:
            stream.seek(-4, os.SEEK_END)
            stream.write(last)
    assert checksum() == before


def test_tensors_that_do_not_fit_are_named(vae, weights, tmp_path, checksum):
    before = checksum()
    first = "encoder.conv_in.weight"
    path = tmp_path / "other.safetensors"
    seeded_autoencoder.write(path, {first: weights[first]})
    with pytest.raises(ValueError, match=r"safetensors has no tensor encoder.conv_in."):
        diffusers_weights.load_weights(path, vae.encoder, vae.decoder)
    seeded_autoencoder.write(path, {first: weights[first][:, :1]})
    expected = r"conv_in.weight of .* \(128, 3, 3, 3\). Received: \(128, 1, 3, 3\)"
    with pytest.raises(ValueError, match=expected):
        diffusers_weights.load_weights(path, vae.encoder, vae.decoder)
    seeded_autoencoder.write(path, {first: weights[first].astype("int32")})
    with pytest.raises(ValueError, match=r"conv_in.weight of .* F32, .*Received: I32"):
        diffusers_weights.load_weights(path, vae.encoder, vae.decoder)
    path.write_bytes(b"PK not a safetensors file")
    with pytest.raises(ValueError, match="safetensors cannot be read"):
        diffusers_weights.load_weights(path, vae.encoder, vae.decoder)
    with pytest.raises(ValueError, match="There is no file"):
        StableDiffusionVAE.from_diffusers(tmp_path / "nowhere")
    assert checksum() == before


def test_a_tensor_too_many_is_named():
    class File:
        """Of the right tensor and one more."""

        def keys(self):
            return ["a", "encoder.extra"]

        def get_slice(self, name):
            return self

        def get_shape(self):
            return (1,)

        def get_dtype(self):
            return "F32"

    tensors = [diffusers_weights.Tensor(("a",), ((1,),), None, None)]
    with pytest.raises(ValueError, match=r"x.safetensors has tensor encoder.extra"):
        diffusers_weights._match("x.safetensors", File(), tensors)


@pytest.mark.slow("builds the published autoencoder")
def test_kerascvs_own_files_load(vae, golden, tmp_path, monkeypatch, checksum):
    """Its networks scale by 0.18215 with the very weights that we read."""
    before = checksum()
    networks = {
        "encoder": ImageEncoder(download_weights=False),
        "decoder": Decoder(64, 64, download_weights=False),
    }
    files = {}
    for name, network in networks.items():
        network.set_weights(getattr(vae, name).get_weights())
        for layer in network._flatten_layers():
            if isinstance(layer, keras.layers.GroupNormalization):
                layer.epsilon = 1e-6
        files[name] = tmp_path / f"{name}.h5"
        with h5py.File(files[name], "w") as file:  # as Keras 2 wrote them
            legacy_h5_format.save_weights_to_hdf5_group(file, network)
    floats = golden["images"].astype("float32") / 127.5 - 1
    scaled = networks["encoder"].predict_on_batch(floats)
    np.testing.assert_allclose(scaled / 0.18215, golden["latent_mean"], atol=1e-4)
    images = networks["decoder"].predict_on_batch(0.18215 * golden["latents"])
    np.testing.assert_allclose(images, golden["decoded"], atol=1e-4)

    forget(vae)
    for name in networks:  # another build takes seconds
        build = getattr(vae, name)
        monkeypatch.setattr(autoencoder_networks, f"build_{name}", lambda b=build: b)
    monkeypatch.setattr(
        keras.utils,
        "get_file",
        lambda origin, **_: files["encoder" if "enc" in origin else "decoder"],
    )
    StableDiffusionVAE.from_keras_cv()
    assert checksum() == before

    networks["encoder"].save_weights(tmp_path / "new.weights.h5")
    forget(vae)
    StableDiffusionVAE.from_keras_cv(tmp_path / "new.weights.h5", files["decoder"])
    assert checksum() == before


def test_a_wrong_file_of_kerascv_is_named(vae, tmp_path, file):
    path = tmp_path / "vae_encoder.h5"
    small = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    with h5py.File(path, "w") as stream:
        legacy_h5_format.save_weights_to_hdf5_group(stream, small)
    expected = "vae_encoder.h5 does not hold the weights of KerasCV's encoder"
    with pytest.raises(ValueError, match=expected):
        autoencoder_networks.load_keras_cv_weights(vae.encoder, path)
    path.write_bytes(b"nothing")
    with pytest.raises(ValueError, match=expected):
        autoencoder_networks.load_keras_cv_weights(vae.encoder, path)
    with pytest.raises(ValueError, match=r"ending in .h5.*no.h5"):
        autoencoder_networks.load_keras_cv_weights(vae.encoder, tmp_path / "no.h5")
    with pytest.raises(ValueError, match=r"ending in .h5.*safetensors"):
        autoencoder_networks.load_keras_cv_weights(vae.encoder, file)


def test_wrong_images_latents_and_moments_are_refused(vae):
    with pytest.raises(ValueError, match=r"\(batch, H, W, 3\).*\(8, 8, 3\)"):
        vae.encode(np.zeros((8, 8, 3), "uint8"))
    with pytest.raises(ValueError, match=r"multiples of 8.*\(1, 8, 12, 3\)"):
        vae.encode(np.zeros((1, 8, 12, 3), "uint8"))
    with pytest.raises(ValueError, match=r"above 0.*\(1, 0, 8, 3\)"):
        vae.encode(np.zeros((1, 0, 8, 3)))
    with pytest.raises(ValueError, match=r"above 0.*\(1, 8, 0, 3\)"):
        vae.encode(np.zeros((1, 8, 0, 3), "uint8"))
    with pytest.raises(ValueError, match=r"at least 1.*\(1, 0, 2, 4\)"):
        vae.decode(np.zeros((1, 0, 2, 4)))
    with pytest.raises(ValueError, match="int64"):
        vae.encode(np.zeros((1, 8, 8, 3), "int64"))
    with pytest.raises(ValueError, match=r"\[-1, 1\]. Received: floats in \[0.0, 255"):
        images = np.zeros((1, 8, 8, 3))
        images[0, 0] = 255
        vae.encode(images)
    with pytest.raises(ValueError, match="nan"):
        vae.encode(np.full((1, 8, 8, 3), np.nan))
    with pytest.raises(ValueError, match=r"\(batch, h, w, 4\).*\(1, 2, 2, 3\)"):
        vae.decode(np.zeros((1, 2, 2, 3)))
    with pytest.raises(ValueError, match="finite"):
        vae.decode(np.full((1, 2, 2, 4), np.inf))
    mean = np.zeros((1, 2, 2, 4))
    with pytest.raises(ValueError, match="pair"):
        vae.sample(mean, seed=0)
    with pytest.raises(ValueError, match="one shape"):
        vae.sample((mean, mean[:, :1]), seed=0)
    with pytest.raises(ValueError, match="seed=-1"):
        vae.sample((mean, mean), seed=-1)
    with pytest.raises(ValueError, match="sigma_data=0"):
        StableDiffusionVAE(sigma_data=0)
    with pytest.raises(ValueError, match="batch_size=0"):
        StableDiffusionVAE(batch_size=0)


def test_names_are_fetched_from_their_repository(monkeypatch, tmp_path):
    asked = []

    def download(repository, filename):
        asked.append((repository, filename))
        return tmp_path / "no.safetensors"

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert hub.fetch("sd-vae-ft-mse") == tmp_path / "no.safetensors"
    assert asked == [
        ("stabilityai/sd-vae-ft-mse", "diffusion_pytorch_model.safetensors")
    ]


def test_without_a_connection_the_error_says_what_to_do(monkeypatch):
    def download(*args, **kwargs):
        raise RuntimeError("no route to host")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    expected = (
        r"no route to host\n.*download https://huggingface.co/stabilityai/sd-vae-ft-ema"
        r"/resolve/main/diffusion_pytorch_model.safetensors"
    )
    with pytest.raises(OSError, match=expected):
        StableDiffusionVAE.from_diffusers("sd-vae-ft-ema")
    monkeypatch.setattr(keras.utils, "get_file", download)
    with pytest.raises(OSError, match=r"no route(.|\n)*download https.*encoder.h5"):
        StableDiffusionVAE.from_keras_cv()
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(OSError, match=r"keras_imm\[latents\].*download https"):
        StableDiffusionVAE.from_diffusers("sd-vae-ft-ema")


def test_what_is_not_installed_is_named(monkeypatch, vae, file):
    monkeypatch.setitem(sys.modules, "keras_cv.models.stable_diffusion", None)
    with pytest.raises(ImportError, match=r"keras_imm\[latents\]"):
        StableDiffusionVAE()
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(ImportError, match=r"keras_imm\[latents\]"):
        diffusers_weights.load_weights(file, vae.encoder, vae.decoder)
