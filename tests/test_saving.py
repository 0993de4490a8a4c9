"""Saving and loading, within a backend and from each backend to this one."""

import importlib.util
import os
import pathlib
import shutil
import subprocess
import sys

import keras
import numpy as np
import pytest
import save_model
from keras import ops
from scripts import ON_THE_CPU
from small_dit import small_dit

import keras_imm

SCRIPT = pathlib.Path(save_model.__file__)


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(name, marks=pytest.mark.slow("child processes"))
        for name in ("tensorflow", "jax", "torch")
    ],
)
def saved(request, tmp_path_factory):
    """A folder written under another backend (or this one), in another process."""
    folder = tmp_path_factory.mktemp(request.param)
    if importlib.util.find_spec(request.param) is None:
        pytest.skip(f"{request.param} is not installed here")
    environment = os.environ | ON_THE_CPU | {"KERAS_BACKEND": request.param}
    subprocess.run(
        [sys.executable, SCRIPT, folder], env=environment, check=True, timeout=300
    )
    return folder


def load(folder, name):
    if name == "model.keras":
        return keras.models.load_model(folder / name)
    model = save_model.new_model()
    model.load_weights(folder / name)
    return model


FORMATS = pytest.mark.parametrize("name", ["model.keras", "model.weights.h5"])


@pytest.mark.one_backend("each loads the witnesses of all")
@FORMATS
def test_from_each_backend(saved, name):
    expected = dict(np.load(saved / "state.npz"))
    model = load(saved, name)
    found = save_model.state(model)
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        np.testing.assert_allclose(found[key], value, atol=1e-5, err_msg=key)
    np.testing.assert_array_equal(found["streams"], expected["streams"])
    assert np.max(np.abs(expected["images_ema"] - expected["images_raw"])) > 1e-3
    save_model.train(model, 1)  # and it trains on
    assert int(ops.convert_to_numpy(model.optimizer.iterations)) == 4


@FORMATS
def test_training_goes_on_as_if_it_had_not_stopped(tmp_path, name):
    model = save_model.new_model()
    save_model.train(model)
    model.save(tmp_path / name) if name.endswith(".keras") else model.save_weights(
        tmp_path / name
    )
    loaded = load(tmp_path, name)
    for one in (model, loaded):
        save_model.train(one)
    expected = save_model.state(model)
    for key, value in save_model.state(loaded).items():
        np.testing.assert_array_equal(value, expected[key], err_msg=key)


def test_an_uncompiled_model_saves_and_loads(make_model, tmp_path, images):
    model = make_model()
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(
        loaded.generate(noise=images[:2]), model.generate(noise=images[:2]), atol=1e-6
    )


def test_compile_arguments_come_back_as_given(make_model, tmp_path):
    model = make_model({"steps_per_execution": 2})
    model.save(tmp_path / "model.keras")
    config = keras.models.load_model(tmp_path / "model.keras").get_compile_config()
    assert config["jit_compile"] == "auto"  # not what it meant on one backend
    assert config["steps_per_execution"] == 2


def everything(model):
    variables = [*model.variables, *model.optimizer.variables]
    return [ops.convert_to_numpy(v) for v in variables]


def test_frozen_layers_stay_frozen_and_keep_their_averages_apart(tmp_path):
    model = save_model.new_model()
    save_model.train(model)
    before = model.generate(save_model.LABELS, noise=save_model.IMAGES)
    model.backbone.blocks[0].trainable = False
    # Freezing alone changes no image.
    np.testing.assert_array_equal(
        model.generate(save_model.LABELS, noise=save_model.IMAGES), before
    )
    model.compile(keras.optimizers.Adam(1e-2, use_ema=True, ema_momentum=0.8))
    save_model.train(model)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert not loaded.backbone.blocks[0].trainable
    assert len(loaded.trainable_variables) == len(model.trainable_variables)
    expected = save_model.state(model)
    for key, value in save_model.state(loaded).items():
        np.testing.assert_allclose(value, expected[key], atol=1e-6, err_msg=key)
    assert np.any(expected["images_ema"] != expected["images_raw"])


def test_averages_start_anew_with_weights_from_a_file_that_has_none(tmp_path):
    source = save_model.new_model()
    save_model.train(source, 1)
    source.compile(keras.optimizers.SGD(0.1))
    source.save_weights(tmp_path / "model.weights.h5")
    model = save_model.new_model()
    save_model.train(model)
    with pytest.warns(UserWarning, match="loading for optimizer"):
        model.load_weights(tmp_path / "model.weights.h5")
    found = save_model.state(model)
    np.testing.assert_array_equal(found["images_ema"], found["images_raw"])
    np.testing.assert_array_equal(
        found["images_raw"], save_model.state(source)["images_raw"]
    )


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"depth": 2}, r"block_1/modulation/kernel of shape \(16, 96\)"),
        ({"num_classes": 4}, r"label_embedding/embeddings of shape \(5, 16\)"),
        ({"qk_norm": True}, r"query_norm/gamma of shape \(8,\)"),
    ],
)
@pytest.mark.parametrize("larger", ["file", "model"])
def test_weights_of_another_network_are_refused(tmp_path, more, message, larger):
    file, model = (
        keras_imm.IMM(small_dit(**(more if larger == who else {})))
        for who in ("file", "model")
    )
    file.save_weights(tmp_path / "model.weights.h5")
    before = [ops.convert_to_numpy(v) for v in model.variables]
    with pytest.raises(ValueError, match=r"model.weights.h5(.|\n)*" + message):
        model.load_weights(tmp_path / "model.weights.h5")
    for old, new in zip(before, model.variables, strict=True):
        np.testing.assert_array_equal(old, ops.convert_to_numpy(new))


@pytest.mark.parametrize(
    "damage", ["truncated", "text", "missing", "other shape", "missing weight"]
)
def test_a_wrong_file_changes_nothing(tmp_path, damage):
    model = save_model.new_model()
    save_model.train(model, 1)
    path = tmp_path / "model.weights.h5"
    model.save_weights(path)
    named = str(path)
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif damage == "text":
        path.write_text("no weights here")
    elif damage == "missing":
        shutil.move(path, tmp_path / "elsewhere.h5")
    else:
        import h5py

        with h5py.File(path, "r+") as file:
            group = file["backbone/label_embedding/vars"]
            table = group["0"][:]
            del group["0"]
            if damage == "other shape":
                group["0"] = table[:, :-1]
        named = "label_embedding"
    save_model.train(model, 1)
    before = everything(model)
    with pytest.raises(ValueError, match=r"model.weights.h5") as error:
        model.load_weights(path)
    assert named in str(error.value)
    for old, new in zip(before, everything(model), strict=True):
        np.testing.assert_array_equal(old, new)
