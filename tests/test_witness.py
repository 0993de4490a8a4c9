"""What was saved before the redesign loads, and makes and answers what it did then.

data/make_witness.py says how the files came about, witness.py what was asked. The
library that wrote them gives the same bits again under the backend that wrote, or, of
PyTorch's convolutions on other numbers of threads, one unit in the last place away.
"""

import gzip
import json
import shutil

import keras
import numpy as np
import pytest
import witness

from keras_imm.callbacks import TrainingCheckpoint
from keras_imm.serving import export_onnx, export_saved_model

pytestmark = pytest.mark.slow("loads saved models of three backends")

BACKEND = keras.backend.backend()
OWN = witness.ROOT / BACKEND


@pytest.fixture(scope="module", params=witness.BACKENDS)
def folder(request):
    return witness.ROOT / request.param


@pytest.fixture(scope="module")
def model():
    return keras.models.load_model(OWN / "model.keras")


def load(path):
    return dict(np.load(path, allow_pickle=False))


def part(arrays, prefix):
    """The arrays whose names begin with a prefix, without it."""
    return {
        name.removeprefix(prefix): value
        for name, value in arrays.items()
        if name.startswith(prefix)
    }


def assert_same(found, expected, atol):
    """Compares arrays by name; `atol` is a number or a function of the name."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        bound = atol(name) if callable(atol) else atol
        assert found[name].dtype == value.dtype, name
        if value.dtype == np.uint8:
            np.testing.assert_array_equal(found[name], value, err_msg=name)
        else:
            np.testing.assert_allclose(
                found[name], value, rtol=0, atol=bound, err_msg=name
            )


def bound(folder):
    """How far images may be from those of a file, by their name.

    1e-6 under the backend that wrote it. From one backend to another the old library
    itself differed by 1.3e-6 after rounding; and by 1.6e-5 on the EDM grid, whose times
    JAX computes in float32, TensorFlow and PyTorch in float64, and which the network
    sees a thousandfold.
    """
    if folder == OWN:
        return lambda name: 1e-6
    edm = 3e-5 if "jax" in (folder.name, BACKEND) else 2e-6
    return lambda name: edm if name.startswith("edm") else 2e-6


def read(folder, name, tmp_path):
    if name.endswith(".keras"):
        return keras.models.load_model(folder / name)
    path = tmp_path / name
    path.write_bytes(gzip.decompress((folder / f"{name}.gz").read_bytes()))
    model = witness.conditional()
    model.load_weights(path)
    return model


@pytest.mark.parametrize("name", ["model.keras", "model.weights.h5", "unet.keras"])
def test_saved_models_make_the_same_images(folder, name, tmp_path):
    saved = load(folder / f"{name.split('.')[0]}.npz")
    drawn = part(saved, "own/")
    given = {key: value for key, value in saved.items() if not key.startswith("own/")}
    model = read(folder, name, tmp_path)
    if folder == OWN:  # first, because it goes on with the saved random stream
        assert_same(witness.drawn_answers(model), drawn, 1e-6)
    assert_same(witness.answers_to_noise(model), given, bound(folder))


def test_a_run_goes_on_where_it_was_killed(tmp_path):
    saved = load(OWN / "run.npz")
    shutil.copytree(OWN / "checkpoint", tmp_path / "run")
    model, data = witness.conditional(), witness.Stream()
    checkpoint = TrainingCheckpoint(tmp_path / "run", data, keep=1)
    history = model.fit(
        data, epochs=witness.EPOCHS, verbose=0, callbacks=[checkpoint]
    ).history
    np.testing.assert_allclose(history["loss"], saved["loss"], rtol=1e-6)
    assert data.epoch == witness.EPOCHS
    change = part(saved, "change/")
    found = witness.weights_and_averages(model)
    # One unit in a weight's last place: so far apart are the old library's own compiled
    # and eager steps, 7e-6 of the change.
    assert_same(found, part(saved, "end/"), lambda name: 2e-5 * change[name])


def assert_served(name, described, answers):
    signatures = json.loads((OWN / "signatures.json").read_text())
    assert described == signatures[name]
    assert_same(answers, part(load(OWN / "answers.npz"), f"{name}/"), 1e-6)


@pytest.mark.slow("exports")
def test_an_export_has_the_same_signatures_and_answers(model, tmp_path):
    arguments = witness.EXPORTS["pushforward"]
    path = export_saved_model(model, tmp_path / "served", **arguments)
    assert_served("pushforward", *witness.served(path))


@pytest.mark.slow("exports")
@pytest.mark.one_backend("an export takes seconds and runs through TensorFlow")
def test_an_export_of_restart_has_the_same_signatures_and_answers(model, tmp_path):
    arguments = witness.EXPORTS["restart"]
    path = export_saved_model(model, tmp_path / "served", **arguments)
    assert_served("restart", *witness.served(path))


@pytest.mark.slow("exports")
@pytest.mark.one_backend("an export takes seconds and runs through PyTorch")
def test_an_onnx_file_has_the_same_inputs_and_answers(model, tmp_path):
    path = export_onnx(model, tmp_path / "model.onnx", **witness.ONNX)
    assert_served("onnx", *witness.through_onnx(path))
