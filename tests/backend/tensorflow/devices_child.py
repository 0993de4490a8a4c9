"""Two TensorFlow devices of one CPU, against one."""

import sys

import keras
import numpy as np
import runs
import tensorflow as tf

from keras_imm import distribution
from keras_imm.backend.random_streams import random_states
from keras_imm.objectives import MomentMatching

(cpu,) = tf.config.list_physical_devices("CPU")
device = tf.config.LogicalDeviceConfiguration()
tf.config.set_logical_device_configuration(cpu, [device] * 2)


def copies_differ(model):
    """Whether the devices' copies of any variable are not bit for bit the same."""
    variables = model.weights + random_states(model)
    return any(
        not np.array_equal(*(copy.numpy() for copy in v.value.values))
        for v in variables + model.optimizer.variables
    )


def same_update(strategy, optimizer, steps, **options):
    one = runs.make(optimizer=optimizer(), **options)
    losses = runs.fit(one)
    with strategy.scope():
        two = runs.make(optimizer=optimizer(), steps=steps, **options)
    seen = {
        "losses": [losses, runs.fit(two)],
        "difference": runs.difference(runs.state(two), runs.state(one)),
        "copies_differ": copies_differ(two),
    }
    return one, two, seen


def afterwards(one, two, path):
    """What a trained model is for."""
    batches = runs.Batches(*runs.data(), 16)
    two.save(path)
    loaded = keras.saving.load_model(path, runs.OBJECTS)
    request = {"labels": [0, 1, 2], "num_steps": 2, "seed": 5}
    return {
        "evaluate": [float(m.evaluate(batches, verbose=0)) for m in (one, two)],
        "saved": runs.difference(runs.state(loaded), runs.state(two)),
        "samples": runs.difference(two.generate(**request), loaded.generate(**request)),
        "samples_of_one": runs.difference(
            two.generate(**request), one.generate(**request)
        ),
        "averaged": runs.difference(
            two.generate(**request, weights="raw"), two.generate(**request)
        ),
        "second_fit": runs.fit(two),
    }


def own_draws(strategy):
    """A step whose devices have the same data, against each alone."""
    images, labels = runs.data(8)
    with strategy.scope():
        two = runs.make(MomentMatching, dropout=0.5)
    alone, state = runs.losses_of_devices(two, [(images, labels)] * 2)
    twice = np.concatenate([images] * 2), np.concatenate([labels] * 2)
    logged = two.fit(runs.Batches(*twice, 16), verbose=0).history["loss"][0]
    return {
        "alone": alone,
        "logged": logged,
        "states": [state, runs.random_state(two)],
        "copies_differ": copies_differ(two),
    }


def refused(strategy):
    """Batches that leave a device with a part of a group."""
    with strategy.scope():
        two = runs.make(MomentMatching)
    batches = runs.Batches(*runs.data(), 12)
    before = runs.weights(two), runs.random_state(two)
    return {
        "fit": runs.error(lambda: two.fit(batches, verbose=0)),
        "evaluate": runs.error(lambda: two.evaluate(batches, verbose=0)),
        "weights": runs.difference(runs.weights(two), before[0]),
        "states": [before[1], runs.random_state(two)],
        "copies_differ": copies_differ(two),
    }


def half_precision(strategy):
    """Loss scaling: one division by the devices, and one device's overflow skips."""
    _, model, seen = same_update(
        strategy, runs.scaled, steps=1, backbone=runs.small, dtype="mixed_float16"
    )
    images, labels = runs.data(16)
    images[12] = 1e30  # on the second device alone
    before = [v.numpy() for v in model.trainable_variables]
    scale = float(model.optimizer.dynamic_scale.numpy())
    model.fit(runs.Batches(images, labels, 16), verbose=0)
    return seen | {
        "moved": any(
            np.any(v.numpy() != b)
            for v, b in zip(model.trainable_variables, before, strict=True)
        ),
        "scales": [scale, float(model.optimizer.dynamic_scale.numpy())],
    }


def main(folder):
    strategy = distribution.initialize()
    seen = {"devices": [strategy.num_devices, distribution.num_devices()]}
    seen["accumulated"] = runs.accumulated()
    _, _, seen["descent"] = same_update(
        strategy, runs.descent, steps=2, backbone=runs.WithUnusedWeight, remat=True
    )
    one, two, seen["clipped"] = same_update(strategy, runs.clipped, steps=2)
    seen["afterwards"] = afterwards(one, two, f"{folder}/model.keras")
    seen["own_draws"] = own_draws(strategy)
    seen["refused"] = refused(strategy)
    seen["half_precision"] = half_precision(strategy)
    runs.write(seen, folder)


main(sys.argv[1])
