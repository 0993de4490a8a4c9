"""Keras's hooks under PyTorch: what Keras would do around a step, it does not."""

import keras
import numpy as np
import pytest
from keras import ops

import keras_imm

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "torch", reason="hooks of Keras under PyTorch"
)


def keras_trainer():
    """The class of Keras that has the hooks."""
    return next(b for b in keras.Model.__mro__ if "make_train_function" in vars(b))


@pytest.fixture
def wrapping_keras(monkeypatch):
    """Keras as from 3.16 on: it wraps a model before it makes its functions.

    Returns the models that were wrapped.
    """
    trainer, wrapped = keras_trainer(), []

    def wrap(model):
        wrapped.append(model)

    monkeypatch.setattr(trainer, "_initialize_ddp", wrap, raising=False)
    for name in ("make_train_function", "make_test_function"):
        own = getattr(trainer, name)

        def make(self, force=False, own=own):
            self._initialize_ddp()
            return own(self, force)

        monkeypatch.setattr(trainer, name, make)
    return wrapped


def test_keras_does_not_wrap_the_model(make_model, images, labels, wrapping_keras):
    plain = keras.Sequential([keras.layers.Dense(1)])
    plain.compile("sgd", "mse")
    plain.fit(np.ones((2, 1)), np.ones((2, 1)), verbose=0)
    assert wrapping_keras == [plain]  # the simulation works
    model = make_model({})
    model.fit(images, labels, batch_size=8, verbose=0)
    model.evaluate(images, labels, batch_size=8, verbose=0)
    assert wrapping_keras == [plain]


@pytest.mark.parametrize("run_eagerly", [False, True])
def test_a_step_never_calls_the_model(
    make_model, images, labels, monkeypatch, run_eagerly
):
    """So that whatever wraps it is neither needed nor used."""
    model = make_model({"run_eagerly": run_eagerly})

    def fail(self, *args, **kwargs):
        raise AssertionError("the model was called")

    monkeypatch.setattr(keras_imm.FlowMapModel, "__call__", fail)
    monkeypatch.setattr(keras_imm.FlowMapModel, "call", fail)
    before = [ops.convert_to_numpy(v).copy() for v in model.trainable_variables]
    options = {"batch_size": 8, "verbose": 0}
    losses = model.fit(
        images, labels, validation_data=(images, labels), **options
    ).history
    assert np.isfinite([*losses["loss"], *losses["val_loss"]]).all()
    after = [ops.convert_to_numpy(v) for v in model.trainable_variables]
    assert any(np.any(a != b) for a, b in zip(before, after, strict=True))


def test_keras_compiles_nothing(make_model, images, labels, monkeypatch):
    """Its own bookkeeping would be compiled with the step."""
    import torch

    def fail(*args, **kwargs):
        raise AssertionError("Keras compiles")

    monkeypatch.setattr(torch, "compile", fail)
    model = make_model()
    model.compile(keras.optimizers.SGD(0.1), jit_compile=True, run_eagerly=True)
    history = model.fit(images, labels, batch_size=8, verbose=0).history
    assert np.isfinite(history["loss"]).all()
