"""Traced train steps under PyTorch train as layers called one by one do."""

import contextlib
import warnings

import keras
import numpy as np
import pytest
from keras import ops

import keras_imm

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "torch",
    reason="the other backends always trace: only PyTorch's step has two ways",
)


def weights_of(model):
    return [ops.convert_to_numpy(v) for v in model.weights]


def train(model, images, labels, epochs=2):
    batches = {"batch_size": 8, "epochs": epochs, "verbose": 0, "shuffle": False}
    history = model.fit(images, labels, **batches)
    return history.history["loss"]


def assert_train_alike(one, other, images, labels, atol=1e-5):
    before = weights_of(one)
    losses = train(one, images, labels), train(other, images, labels)
    np.testing.assert_allclose(*losses, rtol=1e-4)
    after = weights_of(one)
    for a, b in zip(after, weights_of(other), strict=True):
        np.testing.assert_allclose(a, b, atol=atol)
    changes = [np.abs(a - b).max() for a, b in zip(before, after, strict=True)]
    assert max(changes) > 1000 * atol


@contextlib.contextmanager
def counted_calls(model):
    """A list that grows whenever the Python of a model's backbone runs."""
    calls, call = [], model.backbone.call

    def counted(*args, **kwargs):
        calls.append(0)
        return call(*args, **kwargs)

    model.backbone.call = counted
    try:
        yield calls
    finally:
        model.backbone.call = call


def is_traced(model, *data):
    """Whether steps of a model that was fitted before run without its Python."""
    with counted_calls(model) as calls:
        model.fit(*data, batch_size=8, verbose=0, shuffle=False)
    return not calls


def pair(make_model, **options):
    """A model that is traced, and the same one called layer by layer."""
    models = make_model(**options), make_model(**options)
    for model in models:
        optimizer = keras.optimizers.SGD(0.1, use_ema=True, ema_momentum=0.9)
        model.compile(optimizer, run_eagerly=model is models[1])
    return models


@pytest.mark.slow("trains or builds for seconds")
@pytest.mark.parametrize(
    "options", [{}, {"accumulation_steps": 2}, {"group_size": 2}, {"num_classes": 0}]
)
def test_both_ways_train_alike(make_model, images, labels, options):
    traced, eager = pair(make_model, **options)
    assert_train_alike(traced, eager, images, labels)
    assert is_traced(traced, images, labels)
    assert not is_traced(eager, images, labels)


@pytest.mark.slow("trains or builds for seconds")
def test_the_layers_are_called_once_for_each_shape(make_model, images, labels):
    model = make_model({})
    with counted_calls(model) as calls:
        train(model, images, labels)
        assert len(calls) == 2  # the target and the output
        train(model, images[:16], labels[:16])
        assert len(calls) == 2
        model.fit(images, labels, batch_size=16, verbose=0)
        assert len(calls) == 4


class Deciding(keras.layers.Layer):
    """A backbone whose Python asks for the values of its input."""

    image_shape = (4, 4, 1)

    def build(self, input_shape):
        self.scale = self.add_weight(shape=(), initializer="ones")

    def call(self, inputs):
        x = inputs[0]
        return self.scale * (x if ops.sum(x) > 0 else -x)


def test_what_cannot_be_traced_is_said_once_and_trains(images):
    models = [keras_imm.IMM(Deciding(), seed=1) for _ in range(2)]
    for model in models:
        model.compile(keras.optimizers.SGD(0.1), run_eagerly=model is models[1])
    with pytest.warns(UserWarning, match="PyTorch cannot trace it"):
        models[0].fit(images, batch_size=8, verbose=0, shuffle=False)
    models[1].fit(images, batch_size=8, verbose=0, shuffle=False)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*cannot trace")
        models[0].fit(images, batch_size=8, verbose=0, shuffle=False)
    models[1].fit(images, batch_size=8, verbose=0, shuffle=False)
    with pytest.warns(UserWarning, match="PyTorch cannot trace it"):
        samples = models[0].generate(noise=images)
    np.testing.assert_allclose(samples, models[1].generate(noise=images), atol=1e-5)
    scales = [float(model.backbone.scale) for model in models]
    assert scales[0] == pytest.approx(scales[1], abs=1e-6)
    assert scales[0] != 1.0


class Refusing(keras_imm.objectives.MomentMatching):
    """An objective that raises an error of its own when it is told to."""

    refuses = False

    def loss(self, network, particles, target):
        if self.refuses:
            raise ValueError("no such loss")
        return super().loss(network, particles, target)


def test_a_step_that_failed_is_traced_when_it_is_right(make_model, images, labels):
    model = make_model()
    model = keras_imm.FlowMapModel(model.backbone, Refusing(), seed=0)
    model.compile(keras.optimizers.SGD(0.1))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*PyTorch")
        model.objective.refuses = True
        with pytest.raises(ValueError, match="no such loss"):
            train(model, images, labels)
        model.objective.refuses = False
        train(model, images, labels)
        assert is_traced(model, images, labels)


class Normalized(keras.layers.Layer):
    """A backbone that keeps moving averages in weights that are not trained."""

    image_shape = (4, 4, 1)

    def __init__(self):
        super().__init__()
        self.norm = keras.layers.BatchNormalization(momentum=0.5)
        self.dense = keras.layers.Dense(1)

    def build(self, input_shape):
        self.norm.build((None, 4, 4, 1))
        self.dense.build((None, 4, 4, 1))

    def call(self, inputs, training=False):
        return self.dense(self.norm(inputs[0], training=training))


def test_weights_that_are_not_trained_move_too(images):
    keras.utils.set_random_seed(0)
    models = [keras_imm.IMM(Normalized(), seed=1) for _ in range(2)]
    models[1].set_weights(models[0].get_weights())
    for model in models:
        model.compile(keras.optimizers.SGD(0.1), run_eagerly=model is models[1])
        model.fit(images + 0.3, batch_size=8, verbose=0, shuffle=False)
    traced, eager = (model.backbone.norm.moving_mean for model in models)
    assert abs(float(traced[0])) > 0.05
    assert float(traced[0]) == pytest.approx(float(eager[0]), abs=1e-6)
    assert is_traced(models[0], images)


def test_modules_of_pytorch_keep_their_parameters(images):
    import torch

    class Backbone(keras.layers.Layer):
        image_shape = (4, 4, 1)

        def __init__(self):
            super().__init__()
            self.net = torch.nn.Linear(16, 16)  # Keras wraps it

        def call(self, inputs):
            x = inputs[0]
            return ops.reshape(self.net(ops.reshape(x, (-1, 16))), x.shape)

    model = keras_imm.IMM(Backbone())
    model.compile(keras.optimizers.SGD(0.1))
    before = [ops.convert_to_numpy(v).copy() for v in model.trainable_variables]
    assert len(before) == 2
    model.fit(images, batch_size=8, verbose=0)
    after = [ops.convert_to_numpy(v) for v in model.trainable_variables]
    assert all(np.any(a != b) for a, b in zip(before, after, strict=True))
    model.compile(keras.optimizers.SGD(0.1), jit_compile=True)
    with pytest.warns(UserWarning, match="not compiled"):
        model.fit(images, batch_size=8, verbose=0)


def test_layers_frozen_between_two_fits_stay_as_they_are(make_model, images, labels):
    model = make_model({})
    train(model, images, labels, epochs=1)
    block = model.backbone.blocks[0]
    block.trainable = False
    before = [ops.convert_to_numpy(v).copy() for v in block.weights]
    final = ops.convert_to_numpy(model.backbone.final_layer.weights[0]).copy()
    train(model, images, labels, epochs=1)
    for a, b in zip(before, block.weights, strict=True):
        np.testing.assert_array_equal(a, ops.convert_to_numpy(b))
    changed = ops.convert_to_numpy(model.backbone.final_layer.weights[0])
    assert np.any(final != changed)


class InPlace(keras.optimizers.SGD):
    def apply(self, grads, trainable_variables=None):
        import torch

        torch._foreach_mul_(list(grads), 2.0)
        super().apply(grads, trainable_variables)


def test_an_optimizer_may_change_gradients_in_place(make_model, images, labels):
    models = make_model(), make_model()
    models[0].compile(InPlace(0.05))
    models[1].compile(keras.optimizers.SGD(0.1))
    assert_train_alike(*models, images, labels)


def test_what_flow_map_returns_can_be_differentiated_through(make_model, images):
    import torch

    model = make_model({})
    x_s = model.flow_map(images, 0.9, 0.1)
    scale = torch.ones((), requires_grad=True, device=x_s.device)
    (scale * x_s).square().sum().backward()
    assert scale.grad > 0


@pytest.mark.slow("compiles C++")
def test_jit_compile_trains_alike(make_model, images, labels):
    models = make_model({}), make_model({})
    for model in models:
        model.compile(keras.optimizers.SGD(0.1), jit_compile=model is models[0])
    assert_train_alike(*models, images, labels)
    compiled, plain = (
        model.generate(labels, noise=images, guidance_scale=1.5) for model in models
    )
    np.testing.assert_allclose(compiled, plain, atol=1e-3)
    assert np.abs(plain).max() > 0.1
    assert is_traced(models[0], images, labels)


# -- Draws


def batch_of(images, labels):
    return tuple(map(ops.convert_to_tensor, (images[:8], labels[:8])))


def new_model(make_model, seed=3, **options):
    model = make_model(seed=seed, **options)
    model.compile(keras.optimizers.Adam(1e-3, use_ema=True))
    return model


def test_a_step_draws_what_the_batch_loss_draws(make_model, images, labels):
    """The same bits, and the streams move on alike."""
    from keras_imm.backend.torch.train_step import _TracedDraw

    data = batch_of(images, labels)
    model, other = (new_model(make_model) for _ in range(2))
    step = ops.convert_to_tensor(4, "int32")
    draw = _TracedDraw(model.batch_loss(), model, set())
    for _ in range(3):
        drawn = draw(data, step).particles
        expected = other.batch_loss().draw(data, step).particles
        for name, field in expected._asdict().items():
            if field is None:
                assert getattr(drawn, name) is None
                continue
            np.testing.assert_array_equal(
                ops.convert_to_numpy(getattr(drawn, name)),
                ops.convert_to_numpy(field),
                err_msg=name,
            )
    states = [m.seed_generator.state for m in (model, other)]
    np.testing.assert_array_equal(*map(ops.convert_to_numpy, states))


def test_a_step_asks_for_no_value_of_the_device(
    make_model, images, labels, monkeypatch
):
    """With the draws that a GPU takes, whose streams' states are on the device."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    from keras_imm.backend.torch import random_draws

    monkeypatch.setattr(random_draws, "_has_generator", lambda seed: False)
    model, data = new_model(make_model, dropout=0.1), batch_of(images, labels)

    def step():
        model.step.train(data, model.trainable_variables, model)

    for _ in range(2):  # traces, and counts the optimizer's steps
        step()
    before = weights_of(model)
    seen, waits = set(), torch.ops.aten._local_scalar_dense.default

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.add(func)
            return func(*args, **(kwargs or {}))

    with Watch():
        step()
    assert len(seen) > 20 and waits not in seen
    after = weights_of(model)
    assert any(np.any(a != b) for a, b in zip(before, after, strict=True))


def test_data_that_are_not_what_the_model_takes_are_named(make_model, images, labels):
    model = new_model(make_model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ValueError, match="The batch size must be a multiple"):
            model.train_on_batch(images[:7], labels[:7])
    assert np.isfinite(model.train_on_batch(images[:8], labels[:8]))


def test_an_augmentation_that_cannot_be_traced_runs_as_it_is(images):
    """With a warning; the model itself is traced."""
    from small_dit import small_dit

    class Host(keras.layers.Layer):
        def call(self, x, training=False):
            scale = 1.0 + float(ops.convert_to_numpy(ops.mean(x)))
            return x * scale, ops.zeros((x.shape[0], 1), x.dtype)

    backbone = small_dit(num_classes=0)
    backbone.augmentation_dim = 0
    network = _WithAugmentationLabels(backbone)
    model = keras_imm.FlowMapModel(network, augmentation=Host())
    model.compile(keras.optimizers.SGD(1e-2))
    with pytest.warns(UserWarning, match="Batches are drawn one operation at a time"):
        assert np.isfinite(model.train_on_batch(images[:8]))


class _WithAugmentationLabels(keras.layers.Layer):
    """A network that is given augmentation labels, and leaves them."""

    augmentation_dim = 1

    def __init__(self, network):
        super().__init__(autocast=False)
        self.network = network
        self.image_shape = network.image_shape

    def call(self, inputs, training=False):
        return self.network(inputs[:3], training=training)
