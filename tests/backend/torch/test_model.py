"""Keras's hooks under PyTorch: what Keras would do around a step, it does not."""

import warnings

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


@pytest.fixture
def compiler(monkeypatch):
    """Graphs that were handed to the compiler, which runs them as they are."""
    from keras_imm.backend.torch import graphs

    compiled = []

    def compile_graph(module, tensors):
        compiled.append(module)
        return module

    monkeypatch.setattr(graphs, "compile_graph", compile_graph)
    return compiled


def on_cuda(monkeypatch, answer=True):
    from keras_imm.backend.torch import model

    monkeypatch.setattr(model, "computes_on_cuda", lambda: answer)


def fit(model, images, labels, batch_size=8):
    options = {"batch_size": batch_size, "verbose": 0, "shuffle": False}
    return model.fit(images, labels, **options).history["loss"]


@pytest.mark.slow("trains or builds for seconds")
@pytest.mark.parametrize(
    "cuda, options, compiles",
    [
        (True, {}, True),
        (False, {}, False),
        (True, {"jit_compile": False}, False),
        (False, {"jit_compile": True}, True),
        (True, {"run_eagerly": True}, False),
    ],
)
def test_cuda_compiles_by_default(
    make_model, images, labels, monkeypatch, compiler, cuda, options, compiles
):
    on_cuda(monkeypatch, cuda)
    model = make_model(dict(options))
    assert model.jit_compile == compiles
    assert model.get_compile_config()["jit_compile"] == options.get(
        "jit_compile", "auto"
    )
    for _ in range(2):
        assert np.isfinite(fit(model, images, labels)).all()
    # Draws, losses and gradients; then a step of the sampler.
    assert len(compiler) == 2 * int(compiles)
    for _ in range(2):
        model.generate(labels, num_steps=2, seed=0)
    assert len(compiler) == 3 * int(compiles)


def test_a_model_that_was_not_compiled_samples_with_a_compiled_graph(
    make_model, labels, monkeypatch, compiler
):
    on_cuda(monkeypatch)
    make_model().generate(labels, num_steps=2, seed=0)
    assert len(compiler) == 1


@pytest.mark.slow("trains or builds for seconds")
def test_what_cannot_be_compiled_is_said_once_and_traced(
    make_model, images, labels, monkeypatch
):
    from keras_imm.backend.torch import graphs

    attempts = []

    def fail(module, tensors):
        attempts.append(0)
        raise RuntimeError("no compiler")

    monkeypatch.setattr(graphs, "compile_graph", fail)
    on_cuda(monkeypatch)
    model, plain = make_model({}), make_model({"jit_compile": False})
    calls = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        losses = [fit(model, images, labels), fit(model, images, labels, 16)]
    messages = [str(w.message) for w in caught if "PyTorch" in str(w.message)]
    assert len(attempts) == 4  # draws, and losses and gradients, for each shape
    assert len(messages) == 1
    assert "RuntimeError: no compiler" in messages[0]
    assert losses == [fit(plain, images, labels), fit(plain, images, labels, 16)]
    monkeypatch.setattr(model.backbone, "call", lambda *args, **_: calls.append(args))
    fit(model, images, labels)
    assert not calls  # it is traced


def test_the_device_is_the_one_that_keras_uses():
    from keras_imm.backend.torch.devices import computes_on_cuda

    kind = ops.zeros(()).device.type
    assert computes_on_cuda() == (kind == "cuda")
    with keras.device("meta"):
        assert not computes_on_cuda()
