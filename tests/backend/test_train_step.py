"""One train step of an objective whose loss and gradient are closed forms."""

from typing import Any, ClassVar, NamedTuple

import keras
import numpy as np
import pytest
from keras import ops

import keras_imm
from keras_imm.objectives import Objective

LEARNING_RATE = 0.1
MOMENTUM = 0.75


class Scale(keras.layers.Layer):
    """A network of one weight: G(x) = w x."""

    image_shape = (2,)

    def build(self, _=None):
        self.w = self.add_weight(shape=(), initializer="ones", name="w")

    def call(self, inputs):
        return self.w * inputs[0]


class Rows(NamedTuple):
    x: Any
    progress: Any


class Square(Objective):
    """Mean of (G(x) - target)^2, with G(x) = w x, and the means of what it saw."""

    rows_together = 2
    averages: ClassVar = {"slow": MOMENTUM}
    flow_map: ClassVar = {"parameterization": "identity"}

    def draw(self, network, x, labels, seed, progress, training):
        return Rows(x, ops.broadcast_to(progress, (ops.shape(x)[0],)))

    def target(self, network, particles):
        t = ops.ones_like(particles.progress)
        return network.with_weights("slow").output(particles.x, t, t)

    def loss(self, network, particles, target):
        t = ops.ones_like(particles.progress)
        output = network.output(particles.x, t, t)
        loss = ops.mean(ops.square(output - 2.0 * target))
        others = {
            "progress": ops.mean(particles.progress),
            "target": ops.mean(ops.abs(target)),
        }
        return loss, others


DATA = np.random.default_rng(0).standard_normal((16, 2)).astype("float32")


def make(accumulation_steps=1, **options):
    objective = Square(**options)
    model = keras_imm.FlowMapModel(
        Scale(), objective, accumulation_steps=accumulation_steps
    )
    model.compile(keras.optimizers.SGD(LEARNING_RATE))
    return model


def fit(model, steps=4, batch_size=8):
    """The history of steps on the same rows; the batches are alike in mean squares."""
    data = np.concatenate([DATA[:8]] * steps)
    options = {"batch_size": batch_size, "shuffle": False, "verbose": 0}
    return model.fit(data, **options).history


def expected(steps=4):
    """The same steps in float64: G at t = 1 is w x / (sigma_data sigma_t) = w u."""
    u = DATA[:8].astype("float64") / 0.5  # alpha = 0, sigma = 1 at t = 1
    w, average, losses, targets = 1.0, 1.0, [], []
    for step in range(steps):
        losses.append(np.mean(np.square((w - 2 * average) * u)))
        targets.append(np.mean(np.abs(average * u)))
        w -= LEARNING_RATE * 2 * (w - 2 * average) * np.mean(np.square(u))
        average = w if step == 0 else MOMENTUM * average + (1 - MOMENTUM) * w
    return w, average, np.mean(losses), np.mean(targets)


@pytest.mark.parametrize("accumulation_steps", [1, 2, 4])
def test_steps_are_those_of_the_closed_form(accumulation_steps):
    """The weight, its average, the loss and what else is in the history."""
    model = make(accumulation_steps)
    history = fit(model)
    w, average, loss, target = expected()
    assert abs(w - 1.0) > 0.5  # it moved
    np.testing.assert_allclose(float(model.backbone.w), w, rtol=1e-5)
    (slow,) = model.averaged_weights
    np.testing.assert_allclose(float(ops.convert_to_numpy(slow)), average, rtol=1e-5)
    np.testing.assert_allclose(history["loss"], [loss], rtol=1e-5)
    np.testing.assert_allclose(history["target"], [target], rtol=1e-5)


def test_progress_goes_from_zero_to_one_and_does_not_trace_again():
    model = make(total_steps=5)
    calls, draw = [], model.objective.draw

    def counted(*args):
        calls.append(0)
        return draw(*args)

    model.objective.draw = counted
    history = fit(model, steps=4)
    np.testing.assert_allclose(history["progress"], [np.mean([0, 0.2, 0.4, 0.6])])
    assert fit(model, steps=1)["progress"] == pytest.approx([0.8])
    assert fit(model, steps=1)["progress"] == [1.0]
    assert fit(model, steps=1)["progress"] == [1.0]  # and not beyond
    if keras.backend.backend() != "torch":  # there the draw is outside of the graph
        assert len(calls) <= 2


def test_an_evaluation_has_raw_weights_for_targets_and_full_progress():
    model = make(total_steps=100)
    fit(model)
    w = float(model.backbone.w)
    logs = model.evaluate(DATA, batch_size=8, verbose=0, return_dict=True)
    u = DATA.astype("float64") / 0.5
    np.testing.assert_allclose(logs["loss"], np.mean(np.square(w * u)), rtol=1e-5)
    np.testing.assert_allclose(logs["target"], np.mean(np.abs(w * u)), rtol=1e-5)
    assert logs["progress"] == 1.0
    assert float(model.backbone.w) == w


@pytest.mark.parametrize("accumulation_steps", [1, 2])
def test_rows_that_belong_together_must_divide_the_batch(accumulation_steps):
    model = make(accumulation_steps)
    before = float(model.backbone.w)
    with pytest.raises(ValueError, match=r"multiple of `rows_together`.*batch size 5"):
        model.fit(DATA[:5], batch_size=5, verbose=0)
    assert float(model.backbone.w) == before
    fit(model)  # trains afterwards
    assert float(model.backbone.w) != before


def test_a_step_that_fails_leaves_the_weights():
    """JAX empties the variables while it trains."""

    class Stops(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if batch == 1:
                raise KeyboardInterrupt

    model = make()
    data = np.concatenate([DATA[:8]] * 4)
    with pytest.raises(KeyboardInterrupt):
        model.fit(data, batch_size=8, shuffle=False, verbose=0, callbacks=[Stops()])
    np.testing.assert_allclose(float(model.backbone.w), expected(steps=2)[0], rtol=1e-5)
