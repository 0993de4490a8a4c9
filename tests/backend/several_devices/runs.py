"""What the child processes of these tests train, alike on one device and on several."""

import json
import pathlib

import keras
import numpy as np
from keras import ops

import keras_imm
from keras_imm.backend.random_streams import (
    assign_state,
    random_states,
    streams_of_device,
)
from keras_imm.objectives import MomentMatching

keras.config.set_floatx("float64")


class ParticlesOfData(MomentMatching):
    """Times and noise are functions of the data: any split of it has the same."""

    def draw(self, network, x, labels, seed, progress, training):
        size = self.group_size
        t = 0.3 + 0.6 * ops.sigmoid(3.0 * x[::size, 0, 0, 0])
        s, r = 0.2 * t, 0.7 * t
        s, r, t = (ops.repeat(time, size, axis=0) for time in (s, r, t))
        noise = 0.5 * ops.sin(40.0 * x)
        return self.noised(network, x, noise, s, r, t, labels, labels)


class Double(keras.layers.Layer):
    """A network of operations that compute in float64 under every backend."""

    num_classes = 3
    image_shape = (4, 4, 1)

    def __init__(self, dropout=0.0, **kwargs):
        super().__init__(**{"dtype": "float64"} | kwargs)
        self.dropout = keras.layers.Dropout(dropout, seed=5, dtype="float64")

    def build(self, _):
        for name, rows in (("data", 16), ("times", 2), ("labels", 4), ("back", 8)):
            shape = (rows, 16 if name == "back" else 8)
            setattr(self, name, self.add_weight(shape=shape, name=name))

    def call(self, inputs, training=False):
        x, t, s, labels = inputs
        times = ops.stack([t, s], axis=1) / 1000.0
        hidden = ops.einsum("bi,ij->bj", ops.reshape(x, (-1, 16)), self.data)
        hidden = hidden + ops.einsum("bi,ij->bj", times, self.times)
        hidden = hidden + ops.take(self.labels, labels, axis=0)
        hidden = hidden / ops.sqrt(1.0 + ops.square(hidden))
        hidden = self.dropout(hidden, training=training)
        return ops.reshape(ops.einsum("bi,ij->bj", hidden, self.back), ops.shape(x))


class WithUnusedWeight(keras_imm.backbones.DiT):
    """A small network with a weight that nothing depends on."""

    def __init__(self, **options):
        options = {"dtype": "float64", "num_classes": 3} | options
        super().__init__((4, 4, 1), 2, 16, 1, 2, **options)

    def build(self, input_shape=None):
        super().build(input_shape)
        self.unused = self.add_weight(shape=(3,), name="unused")


def small(**options):
    """A small DiT."""
    sizes = {"patch_size": 2, "hidden_size": 16, "depth": 1, "num_heads": 2}
    return keras_imm.backbones.DiT((4, 4, 1), num_classes=3, **sizes, **options)


OBJECTS = {"ParticlesOfData": ParticlesOfData, "Double": Double}


class Batches(keras.utils.PyDataset):
    """Batches of NumPy arrays, as the data sets of keras_imm yield them."""

    def __init__(self, images, labels, batch_size):
        super().__init__()
        self.images, self.labels, self.batch_size = images, labels, batch_size

    def __len__(self):
        return len(self.images) // self.batch_size

    def __getitem__(self, index):
        rows = slice(index * self.batch_size, (index + 1) * self.batch_size)
        return self.images[rows], self.labels[rows]


def data(count=32, dtype="float64"):
    rng = np.random.default_rng(1)
    images = 0.5 * rng.standard_normal((count, 4, 4, 1))
    return images.astype(dtype), (np.arange(count) % 3).astype("int32")


def make(
    objective=ParticlesOfData, optimizer=None, steps=1, backbone=Double, **options
):
    """A small model with weights that depend on nothing but their shapes."""
    model = keras_imm.FlowMapModel(
        backbone(**options), objective(), accumulation_steps=steps, seed=3
    )
    rng = np.random.default_rng(7)
    for v in model.trainable_variables:
        v.assign(0.3 * rng.standard_normal(v.shape))
    model.compile(optimizer or descent())
    return model


def descent():
    """Moves the weights by the gradient itself."""
    return keras.optimizers.SGD(1.0)


def clipped():
    """Clips below every gradient's norm: clipping each device's would show."""
    return keras.optimizers.Adam(
        1e-2, epsilon=1e-8, global_clipnorm=1e-3, use_ema=True, ema_momentum=0.9
    )


def scaled():
    """Scales the loss in half precision by what does not overflow."""
    return keras.optimizers.LossScaleOptimizer(
        keras_imm.optimizers.RAdam(0.1), initial_scale=256.0
    )


def fit(model, batches=None):
    batches = batches or Batches(*data(), 16)
    return model.fit(batches, shuffle=False, verbose=0).history["loss"]


def accumulated():
    """One device: a batch in four parts against the whole, from the model's draws."""
    models = [make(MomentMatching, clipped(), steps=steps) for steps in (1, 4)]
    losses = [fit(model, Batches(*data(), 32)) for model in models]
    one, four = map(state, models)
    return {"losses": losses, "difference": difference(four, one)}


def weights(model):
    """All weights as one float64 vector."""
    return _flat(model.weights)


def state(model):
    """Weights and the optimizer's state as one float64 vector."""
    return _flat(model.weights + model.optimizer.variables)


def _flat(variables):
    return np.concatenate(
        [np.ravel(ops.convert_to_numpy(v)).astype("float64") for v in variables]
    )


def random_state(model):
    return [ops.convert_to_numpy(v).tolist() for v in random_states(model)]


def losses_of_devices(model, batches):
    """What each device draws and loses alone, on its own batch.

    Returns the losses, and the random state that a step should leave.
    """
    batch_loss = model.batch_loss()
    before, losses, after = random_state(model), [], []
    for device, (images, labels) in enumerate(batches):
        batch = ops.convert_to_tensor(images), ops.convert_to_tensor(labels)
        with streams_of_device(batch_loss.random_states(), device):
            drawn = batch_loss.draw(batch, model.optimizer.iterations)
            target = batch_loss.target(drawn, model.optimizer.iterations)
            loss, _ = batch_loss.loss(drawn, target, model.optimizer.iterations)
        losses.append(float(ops.convert_to_numpy(ops.stop_gradient(loss))))
        after.append(random_state(model))
        for variable, value in zip(random_states(model), before, strict=True):
            assign_state(variable, value)
    assert all(one == after[0] for one in after)
    assert after[0] != before
    return losses, after[0]


def error(function):
    """The message of the ValueError that a function raises."""
    try:
        function()
    except ValueError as error:
        return str(error)
    return None


def difference(a, b):
    """Largest difference between two runs' states, relative to the largest entry."""
    return float(np.max(np.abs(a - b)) / np.max(np.abs(b)))


def write(seen, folder):
    (pathlib.Path(folder) / "seen.json").write_text(json.dumps(seen))
