"""Models of latents, exported with their autoencoder, in each runtime."""

import functools
import importlib.util
import shutil

import keras
import numpy as np
import pytest

if importlib.util.find_spec("tensorflow") is None:
    pytest.skip(
        "KerasCV imports TensorFlow, which is not installed here",
        allow_module_level=True,
    )

import narrow_autoencoder
from long_tests import long
from program_answers import answers

from keras_imm.serving import (
    export_litert,
    export_onnx,
    export_openvino,
    export_stablehlo,
    export_torch,
    export_triton,
)
from keras_imm.serving.server.row_noise import row_normal

EXPORTS = {
    "torch": (export_torch, "model.pt2"),
    "jax": (export_stablehlo, "model.jax"),
    "onnx": (export_onnx, "model.onnx"),
    "openvino": (export_openvino, "model"),
    "litert": (export_litert, "model.tflite"),
    "aot": (functools.partial(export_torch, compiled=True), "model.pt2"),
}
# What a backend writes itself, and one thing that a child process writes for it.
WRITTEN = {
    "torch": EXPORTS,
    "tensorflow": ("litert", "torch"),
    "jax": ("jax", "torch"),
}
# The first of each is its own.
OWN, *OTHERS = WRITTEN[keras.backend.backend()]
COUNTS = (1, 3)


@pytest.fixture(scope="module")
def model():
    return narrow_autoencoder.latent_model()


@pytest.fixture(scope="module")
def vae():
    return narrow_autoencoder.NarrowAutoencoder()


def rows(count):
    rng = np.random.default_rng(count)
    noise = rng.standard_normal((count, 4, 4, 4)).astype("float32")
    return noise, rng.integers(0, 4, count).astype("int32")


@pytest.mark.slow("exports, and processes that run them")
@pytest.mark.parametrize(
    "framework", [OWN, *long("one format of each backend is tested", *OTHERS)]
)
def test_images_are_those_that_are_decoded(model, vae, tmp_path, framework):
    if framework == "aot" and shutil.which("g++") is None:
        pytest.skip("there is no C++ compiler")
    export, name = EXPORTS[framework]
    path = export(model, tmp_path / name, 2, latents=vae)
    found, _ = answers(framework, path, {count: rows(count) for count in COUNTS})
    for count in COUNTS:
        noise, label = rows(count)
        x = model.generate(label, noise=noise, num_steps=2, verbose=0)
        decoded = vae.decode(x).astype("float64")
        assert (found[count].shape, found[count].dtype) == (decoded.shape, "float32")
        assert np.abs(found[count]).max() == 1.0  # where it is clipped
        assert decoded.std() > 50
        above = 255 * (0.5 * found[count] + 0.5) - decoded  # bytes are truncated
        assert above.min() > -0.01 and above.max() < 1.01


@pytest.mark.slow("exports")
@pytest.mark.one_backend("what is written is the same on all backends")
def test_bytes_of_seeds_in_a_model_repository(model, vae, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    path = export_triton(model, tmp_path, "latents", 2, latents=vae)
    config = (tmp_path / "latents" / "config.pbtxt").read_text()
    assert "dims: [32, 32, 3]" in config.partition("output")[2]
    session = onnxruntime.InferenceSession(path / "model.onnx")
    seed, label = np.array([5, 6, 7]), np.array([0, 3, 1], "int32")
    (image,) = session.run(None, {"seed": seed, "label": label})
    noise = row_normal(seed, 64).reshape(3, 4, 4, 4)
    x = model.generate(label, noise=noise, num_steps=2, verbose=0)
    decoded = vae.decode(x)
    assert (image.shape, image.dtype) == (decoded.shape, np.uint8)
    difference = np.abs(image.astype(int) - decoded)
    assert difference.max() <= 1 and (difference == 0).mean() > 0.99
