"""Exports from JAX and PyTorch, which run through TensorFlow in another process."""

import importlib.util
import json
import subprocess

import keras
import numpy as np
import pytest
from gaussian_flow import GaussianFlow, gaussian_model
from served_models import in_a_child

import keras_imm
from keras_imm import samplers
from keras_imm.serving import child_process, export_litert, export_saved_model

OWN_LAYER = """
import warnings
import keras

@keras.saving.register_keras_serializable(package="own")
class Half(keras.layers.Layer):
    def build(self, shape):
        warnings.warn("a layer that halves")

    def call(self, x):
        return 0.5 * x
"""


@in_a_child
def test_a_framework_that_is_not_installed_is_named(model, tmp_path, monkeypatch):
    own = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *more: None if name == "tensorflow" else own(name, *more),
    )
    for write, name in ((export_saved_model, "a"), (export_litert, "a.tflite")):
        with pytest.raises(ImportError, match=r"TensorFlow .*`pip install tensorflow`"):
            write(model, tmp_path / name)
    assert not list(tmp_path.iterdir())


@in_a_child
def test_an_error_of_the_child_process_is_passed_on(tmp_path):
    class Own(keras.layers.Layer):
        """A layer that the child cannot import."""

        image_shape = (4, 4, 1)

        def call(self, inputs):
            return inputs[0]

    model = keras_imm.IMM(Own())
    model.compile(keras.optimizers.Adam())
    with pytest.raises(RuntimeError, match=r"(?s)through TensorFlow failed.*'Own'"):
        export_saved_model(model, tmp_path / "served")
    assert list(tmp_path.iterdir()) == []


@in_a_child
def test_the_child_process_knows_classes_of_modules(tmp_path, monkeypatch):
    """Within a functional backbone; and its errors keep their kind."""
    (tmp_path / "own_layers.py").write_text(OWN_LAYER)
    monkeypatch.syspath_prepend(tmp_path)
    import own_layers

    inputs = [keras.Input((4, 4, 1)), keras.Input(()), keras.Input(())]
    model = keras_imm.IMM(keras.Model(inputs, own_layers.Half()(inputs[0])))
    with pytest.warns(UserWarning, match="halves"):
        path = export_saved_model(model, tmp_path / "served", num_steps=(1,))
    assert (path / "saved_model.pb").exists()
    with pytest.raises(ValueError, match="`signatures` must be some of"):
        export_saved_model(model, tmp_path / "served", signatures=["decode"])


@keras.saving.register_keras_serializable(package="tests.serving")
class Midpoint(samplers.Sampler):
    """A sampler of this very module, with an argument."""

    def __init__(self, place=0.5):
        self.place = place

    def step(self, network, x, t, s, index, noise):
        between = t + self.place * (s - t)
        return network.flow_map(network.flow_map(x, t, between), between, s)

    def get_config(self):
        return {"place": self.place}


class OfTheScript(samplers.Sampler):
    __module__ = "__main__"


@in_a_child
def test_an_objective_of_the_main_script_and_a_sampler_of_a_module(tmp_path):
    """The exporting process gets flow map and plan, and never the objective."""
    import tensorflow as tf

    @keras.saving.register_keras_serializable(package="tests.serving.local")
    class Own(keras_imm.objectives.FlowMatching):
        __module__ = "__main__"
        sampler, num_steps = Midpoint(0.25), 3

    model = keras_imm.FlowMapModel(GaussianFlow(), Own())
    path = export_saved_model(model, tmp_path, (1, 3), warmup=False)
    served = tf.saved_model.load(str(path)).signatures
    noise = np.random.default_rng(0).standard_normal((4, 2, 2, 1)).astype("float32")
    found = served["generate_from_noise"](noise=tf.constant(noise))["image"]
    expected = model.generate(noise=noise, num_steps=1)
    np.testing.assert_allclose(found, expected, atol=1e-5)


@in_a_child
def test_a_sampler_of_the_main_script_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"OfTheScript.*put it into a module"):
        export_saved_model(gaussian_model(), tmp_path, sampler=OfTheScript())
    assert list(tmp_path.iterdir()) == []


# -- What the two processes say to each other


def ended(output, errors="", status=1):
    return subprocess.CompletedProcess([], status, output, errors)


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (ValueError("`x` must"), ValueError, "^`x` must$"),
        (ModuleNotFoundError("No module"), ImportError, "^No module$"),
        (OSError("No space"), OSError, "^No space$"),
        (PermissionError("No"), OSError, "^No$"),
        (KeyError("x"), RuntimeError, "through TensorFlow failed: KeyError: 'x'"),
    ],
)
def test_errors_keep_their_kind_and_message(error, kind, message):
    output = f"noise\n{child_process.failed(error)}\nmore noise"
    with pytest.raises(kind, match=message):
        raise child_process._error(ended(output))


def test_of_a_process_that_was_killed_the_end_of_what_it_printed_is_shown():
    errors = "\n".join(map(str, range(100)))
    error = child_process._error(ended("", errors, status=-9))
    assert isinstance(error, RuntimeError)
    assert str(error).splitlines() == [
        "The export's process ended with status -9:",
        *map(str, range(85, 100)),
    ]


def test_the_causes_of_errors_are_shown_without_configurations():
    error = ValueError(
        "Could not. Exception encountered: the cause Full object config: {...}"
    )
    line = child_process.failed(error)
    assert json.loads(line.partition(": ")[2]) == ["ValueError", "the cause"]
