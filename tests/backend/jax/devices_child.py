"""Four JAX devices of one CPU, and eight, against one."""

import functools
import re
import sys

import jax
import keras
import numpy as np
import runs

import keras_imm
from keras_imm import distribution, objectives
from keras_imm.backend import keras_private
from keras_imm.objectives import MomentMatching

OBJECTIVES = (
    "mean_flow",
    "so_flow",
    "shortcut",
    "consistency_training",
    "continuous_consistency",
    "differential_moment_matching",
    "terminal_velocity_matching",
)


def two_batches():
    """Whole groups for both parts of a batch on each of four devices."""
    return runs.Batches(*runs.data(64), 32)


def same_update(strategy, optimizer, steps, **options):
    one = runs.make(optimizer=optimizer(), **options)
    losses = runs.fit(one, two_batches())
    with strategy.scope():
        four = runs.make(optimizer=optimizer(), steps=steps, **options)
        history = runs.fit(four, two_batches())
    seen = {
        "losses": [losses, history],
        "difference": runs.difference(runs.state(four), runs.state(one)),
        "devices": sorted({len(v.value.devices()) for v in four.variables}),
    }
    return one, four, seen


def afterwards(strategy, one, four, path):
    """What a trained model is for."""
    batches = runs.Batches(*runs.data(), 16)
    request = {"labels": [0, 1, 2], "num_steps": 2, "seed": 5}
    with strategy.scope():
        four.save(path)
        evaluate = float(four.evaluate(batches, verbose=0))
        samples = four.generate(**request)
        raw = four.generate(**request, weights="raw")
    loaded = keras.saving.load_model(path, runs.OBJECTS)
    seen = {
        "evaluate": [float(one.evaluate(batches, verbose=0)), evaluate],
        "saved": runs.difference(runs.state(loaded), runs.state(four)),
        "samples": runs.difference(samples, loaded.generate(**request)),
        "samples_of_one": runs.difference(samples, one.generate(**request)),
        "averaged": runs.difference(raw, samples),
    }
    with strategy.scope():
        seen["second_fit"] = runs.fit(four, two_batches())
    return seen


def own_draws(strategy):
    """Four devices, two steps of two parts: noise, masks and state of one device."""
    options = {"objective": MomentMatching, "dropout": 0.5, "steps": 2}
    one = runs.make(**options)
    losses = runs.fit(one, runs.Batches(*runs.data(), 32))
    with strategy.scope():
        four = runs.make(**options)
        history = runs.fit(four, runs.Batches(*runs.data(), 32))
    return {
        "losses": [losses, history],
        "difference": runs.difference(runs.state(four), runs.state(one)),
        "states": [runs.random_state(one), runs.random_state(four)],
    }


def every_objective(strategy):
    """A step of each objective on four devices, with the draws of one."""
    seen = {}
    for name in OBJECTIVES:
        objective = functools.partial(objectives.get, name)
        options = {"objective": objective, "steps": 2}
        one = runs.make(**options)
        losses = runs.fit(one, runs.Batches(*runs.data(64), 64))
        with strategy.scope():
            four = runs.make(**options)
            history = runs.fit(four, runs.Batches(*runs.data(64), 64))
        difference = runs.difference(runs.state(four), runs.state(one))
        seen[name] = [losses, history, difference]
    return seen


def step_text(model, batch, kind):
    """The compiled text of a train or test step."""
    groups = [model.trainable_variables, model.non_trainable_variables]
    groups += [model.optimizer.variables] if kind == "train" else []
    groups += [model.metrics_variables]
    state = tuple([v.value for v in group] for group in groups)
    distribution = keras.distribution.distribution()
    data = tuple(
        jax.device_put(x, distribution.get_data_layout(x.shape).backend_layout)
        for x in batch
    )
    step = jax.jit(getattr(model, f"{kind}_step"))
    return step.lower(state, data).compile().as_text()


def exchanged(text):
    """Elements that devices exchange in each collective operation: [(kind, count)]."""
    kinds = "all-gather|all-to-all|collective-permute|all-reduce|reduce-scatter"
    found = []
    for shape, kind in re.findall(rf"= (.*?) ({kinds})(?:-start)?\(", text):
        sizes = re.findall(r"[a-z]+\d+\[([\d,]*)\]", shape)
        elements = [int(np.prod([int(n) for n in s.split(",") if n])) for s in sizes]
        found.append((kind, sum(elements)))
    return found


def exchanged_in_loops(text):
    """As `exchanged`, of the bodies of the program's loops alone."""
    bodies = set(re.findall(r"body=%?([\w.-]+)", text))
    found, inside = [], False
    for line in text.splitlines():
        if begin := re.match(r"(?:ENTRY )?%?([\w.-]+) .*{$", line):
            inside = begin.group(1) in bodies
        found += exchanged(line) if inside else []
    return found


def groups_stay(strategy):
    """Steps on particles that are larger than all weights of the network."""
    shape = (16, 16, 4)
    images = np.zeros((64, *shape), "float32")
    labels = np.zeros(64, "int32")
    with strategy.scope():
        backbone = keras_imm.backbones.DiT(
            shape, 8, 8, 1, 1, num_classes=1, dtype="float32", dropout=0.1
        )
        model = keras_imm.IMM(backbone, accumulation_steps=2)
        model.compile(runs.descent())
        seen = {
            kind: exchanged(step_text(model, (images, labels), kind))
            for kind in ("train", "test")
        }
    weights = sum(int(np.prod(v.shape)) for v in model.trainable_variables)
    return seen | {"weights": weights, "device": int(np.prod(images.shape)) // 4}


def split_weights():
    """DiT-XL/2's widths, split over eight devices, against one."""

    def trained():
        backbone = keras_imm.backbones.DiT.from_preset(
            "dit_xl_2", (4, 4, 4), num_classes=1000, depth=1, dtype="float32"
        )
        model = keras_imm.IMM(backbone)
        optimizer = keras.optimizers.SGD(0.1, use_ema=True, ema_momentum=0.9)
        rng = np.random.default_rng(7)
        for v in model.trainable_variables:
            v.assign(0.05 * rng.standard_normal(v.shape, "float32"))
        model.compile(optimizer)
        before = runs.weights(model)
        images = rng.standard_normal((16, 4, 4, 4)).astype("float32")
        losses = runs.fit(model, runs.Batches(images, np.arange(16), 16))
        return model, losses, runs.weights(model) - before

    one, loss, update = trained()
    mesh = keras.distribution.DeviceMesh((2, 4), ("batch", "model"))
    strategy = keras.distribution.ModelParallel(
        layout_map=keras_imm.backbones.DiT.layout_map(mesh), batch_dim_name="batch"
    )
    with strategy.scope():
        eight, split_loss, split_update = trained()
        samples = eight.generate([1, 2], seed=3, num_steps=1)
    averages = keras_private.moving_averages(eight.optimizer)
    assert len(averages) == len(eight.trainable_variables)
    return {
        "losses": [loss, split_loss],
        "update": runs.difference(split_update, update),
        "samples": runs.difference(samples, one.generate([1, 2], seed=3, num_steps=1)),
        "layouts": {
            v.path.split("/", 2)[2]: [
                list(v.shape),
                list(v.value.addressable_shards[0].data.shape),
            ]
            for v in eight.weights
        },
        "averages_follow": all(
            average.value.sharding.is_equivalent_to(v.value.sharding, v.ndim)
            for v, average in averages
        ),
    }


def sharded_update():
    """Every variable of a step with Adam split over eight devices, against one."""

    def trained():
        backbone = keras_imm.backbones.DiT(
            (8, 8, 8), 2, 64, 2, 4, num_classes=15, dtype="float64"
        )
        model = keras_imm.IMM(backbone, accumulation_steps=2, dtype="float64")
        rng = np.random.default_rng(7)
        for v in model.trainable_variables:
            v.assign(0.05 * rng.standard_normal(v.shape, "float32"))
        optimizer = keras.optimizers.Adam(1e-3, use_ema=True)
        model.compile(optimizer)
        before = runs.weights(model)
        images = rng.standard_normal((64, 8, 8, 8)).astype("float32")
        losses = runs.fit(model, runs.Batches(images, np.arange(64) % 15, 64))
        return model, losses, runs.weights(model) - before

    def gathered(text_of):
        return sum(kind == "all-gather" for kind, _ in text_of)

    one, loss, update = trained()
    strategy = distribution.initialize(shard_weights=True)
    with strategy.scope():
        eight, split_loss, split_update = trained()
        samples = eight.generate([1, 2], seed=3, num_steps=2)
        batch = np.zeros((64, 8, 8, 8), "float32"), np.arange(64) % 15
        text = step_text(eight, batch, "train")
    devices = strategy.num_devices
    keras.distribution.set_distribution(None)
    state = [*eight.variables, *eight.optimizer.variables]
    parts = [v.value.addressable_shards[0].data.size for v in state]
    return {
        "losses": [loss, split_loss],
        "update": runs.difference(split_update, update),
        "samples": runs.difference(samples, one.generate([1, 2], seed=3, num_steps=2)),
        "share": sum(parts) / sum(v.value.size for v in state),
        "devices": devices,
        "weights": len(eight.trainable_variables),
        "gathered": gathered(exchanged(text)),
        "gathered_in_loops": gathered(exchanged_in_loops(text)),
    }


def refused(strategy):
    """Batches that leave a device with a part of a group, or with unequal shares."""
    seen = {}
    with strategy.scope():
        four = runs.make(MomentMatching)
        before = runs.weights(four)
        for batch_size in (24, 18):
            batches = runs.Batches(*runs.data(), batch_size)
            seen[f"fit_{batch_size}"] = runs.error(
                lambda batches=batches: four.fit(batches, verbose=0)
            )
            seen[f"evaluate_{batch_size}"] = runs.error(
                lambda batches=batches: four.evaluate(batches, verbose=0)
            )
        seen["weights"] = runs.difference(runs.weights(four), before)
        seen["afterwards"] = runs.fit(four)
    return seen


def main(folder):
    all_devices = distribution.initialize()
    seen = {
        "devices": [all_devices.num_devices, distribution.num_devices()],
        "current": keras.distribution.distribution() is all_devices.native,
        "processes": [distribution.process_index(), distribution.process_count()],
    }
    strategy = distribution.initialize(devices=[f"cpu:{i}" for i in range(4)])
    seen["four"] = strategy.num_devices
    keras.distribution.set_distribution(None)
    seen["accumulated"] = runs.accumulated()
    _, _, seen["descent"] = same_update(
        strategy, runs.descent, steps=2, backbone=runs.WithUnusedWeight, remat=True
    )
    one, four, seen["clipped"] = same_update(strategy, runs.clipped, steps=2)
    seen["afterwards"] = afterwards(strategy, one, four, f"{folder}/model.keras")
    seen["own_draws"] = own_draws(strategy)
    seen["every_objective"] = every_objective(strategy)
    seen["refused"] = refused(strategy)
    seen["groups_stay"] = groups_stay(strategy)
    seen["split_weights"] = split_weights()
    seen["sharded_update"] = sharded_update()
    runs.write(seen, folder)


main(sys.argv[1])
