"""An objective and a sampler of a user's own go through everything there is.

They are defined here, and nothing in the package knows them.
"""

import itertools
from typing import Any, NamedTuple

import keras
import numpy as np
import pytest
from keras import ops
from small_dit import small_dit

import keras_imm
from keras_imm.callbacks.sampling import Sampling
from keras_imm.flow_map import per_sample
from keras_imm.objectives import Objective
from keras_imm.samplers import Sampler

pytestmark = [
    pytest.mark.any_backend("the contracts run on each"),
    pytest.mark.slow("trains and exports for 20 s"),
]


class Noised(NamedTuple):
    x_t: Any
    t: Any
    x: Any
    labels: Any = None
    share: Any = None


@keras.saving.register_keras_serializable(package="tests_own")
class Regression(Objective):
    """Regresses f_{0,t}(x_t) to x, and to what averaged weights say of it."""

    rows_together = 2
    network_passes = 4.0
    averages = {"target": 0.9}  # noqa: RUF012
    needs_total_steps = True
    sampler = "restart"
    num_steps = 3
    flow_map = {"time_scale": 1.0}  # noqa: RUF012

    def __init__(self, share=0.5, **kwargs):
        super().__init__(**kwargs)
        self.share = share

    def draw(self, network, x, labels, seed, progress, training):
        t = keras.random.uniform(
            (ops.shape(x)[0],), network.min_time, network.max_time, seed=seed
        )
        noise = network.sigma_data * keras.random.normal(ops.shape(x), seed=seed)
        alpha, sigma = network.schedule.alpha(t), network.schedule.sigma(t)
        x_t = per_sample(alpha, x) * x + per_sample(sigma, x) * noise
        labels = self.drop_labels(network, labels, seed, training)
        return Noised(x_t, t, x, labels, ops.ones_like(t) * self.share * progress)

    def target(self, network, particles):
        p = particles
        averaged = network.with_weights("target")
        y = averaged.flow_map(p.x_t, p.t, ops.zeros_like(p.t), p.labels)
        share = per_sample(p.share, p.x)
        return {"y": share * y + (1.0 - share) * p.x}

    def loss(self, network, particles, target):
        p = particles
        y = network.flow_map(p.x_t, p.t, ops.zeros_like(p.t), p.labels)
        loss = ops.mean(ops.square(y - target["y"]))
        return loss, {"to_data": ops.mean(ops.square(y - p.x)), "t": ops.mean(p.t)}

    def get_config(self):
        return super().get_config() | {"share": self.share}


@keras.saving.register_keras_serializable(package="tests_own")
class Shrinking(Sampler):
    """Jumps to the data and back with part of the noise that it came with."""

    def __init__(self, keep=0.5):
        self.keep = keep

    def step(self, network, x, t, s, index, noise):
        data = network.flow_map(x, t, network.min_time)
        factor = self.keep ** ops.cast(index + 1, x.dtype)
        renoised = (1.0 - s) * data + s * factor * noise
        return ops.where(s <= network.min_time, data, renoised)

    def noises(self, num_steps):
        return num_steps

    def get_config(self):
        return {"keep": self.keep}


class Stream(keras.utils.PyDataset):
    """Twelve batches, in an order of its own."""

    ordered = True

    def __init__(self, batch_size=8):
        super().__init__()
        self.batch_size, self.epoch, self.running = batch_size, 0, False

    @property
    def fingerprint(self):
        return {"batch_size": self.batch_size}

    def __len__(self):
        return 3

    def __getitem__(self, i):
        rng = np.random.default_rng([self.epoch, i])
        x = 0.5 * rng.standard_normal((self.batch_size, 4, 4, 1)).astype("float32")
        return x, (np.arange(self.batch_size) % 3).astype("int32")

    def on_epoch_begin(self):
        self.running = True

    def on_epoch_end(self):
        self.epoch += self.running
        self.running = False

    def get_state(self):
        return {"epoch": self.epoch}

    def set_state(self, state):
        self.epoch = state["epoch"]


class Killed(Exception):
    pass


def make_model(share=0.5, accumulation_steps=1, seed=0, **options):
    model = keras_imm.FlowMapModel(
        small_dit(dropout=0.1),
        objective=Regression(share, **options),
        accumulation_steps=accumulation_steps,
        seed=seed,
    )
    rng = np.random.default_rng(7)
    for v in model.trainable_variables:
        v.assign(0.3 * rng.standard_normal(v.shape).astype("float32"))
    model.compile(keras.optimizers.Adam(1e-2, use_ema=True, ema_momentum=0.9))
    return model


def state_of(model):
    variables = (*model.variables, *model.optimizer.variables)
    return [ops.convert_to_numpy(v) for v in variables]


def test_fit_and_evaluate():
    model, data = make_model(), Stream()
    history = model.fit(data, epochs=4, validation_data=Stream(), verbose=0).history
    assert set(history) == {
        *("loss", "to_data", "t", "val_loss", "val_to_data", "val_t")
    }
    assert all(np.all(np.isfinite(values)) for values in history.values())
    assert 0.2 < history["t"][0] < 0.8
    assert model.objective.total_steps == 12  # 4 epochs of 3
    found = model.evaluate(Stream(), verbose=0, return_dict=True)
    assert found["loss"] == pytest.approx(history["val_loss"][-1], rel=1e-5)
    # Progress is 1 and targets are those of the raw weights: half is to itself.
    assert found["loss"] == pytest.approx(0.25 * found["to_data"], rel=1e-5)


def test_accumulation_is_one_batch():
    """With particles that do not depend on the batch's shape: none are drawn."""
    histories, weights = [], []
    for steps in (1, 2):
        model = make_model(accumulation_steps=steps)
        history = model.fit(Stream(), epochs=1, verbose=0).history
        histories.append(history)
        weights.append([ops.convert_to_numpy(v) for v in model.averaged_weights])
    # The draws are of whole batches, so the mean time is the same.
    assert histories[0]["t"] == pytest.approx(histories[1]["t"], rel=1e-6)
    assert set(histories[0]) == set(histories[1])
    for one, other in zip(*weights, strict=True):
        assert one.shape == other.shape and np.all(np.isfinite(other))


def test_the_averages_follow_the_weights_once_per_step():
    model = make_model()
    seen = []

    class Look(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            model = self.model  # which JAX writes its state back for
            weights = [ops.convert_to_numpy(v) for v in model.trainable_variables]
            averages = [ops.convert_to_numpy(v) for v in model.averaged_weights]
            seen.append((weights, averages))

    model.fit(Stream(), epochs=2, verbose=0, callbacks=[Look()])
    expected = None
    for weights, averages in seen:
        if expected is None:
            expected = [w.astype("float64") for w in weights]
        else:
            pairs = zip(expected, weights, strict=True)
            expected = [0.9 * e + 0.1 * w for e, w in pairs]
        for e, a in zip(expected, averages, strict=True):
            np.testing.assert_allclose(a, e, rtol=2e-6, atol=1e-7)
    assert len(seen) == 6


@pytest.mark.parametrize("name", ["model.keras", "model.weights.h5"])
def test_save_and_load(tmp_path, name):
    model = make_model(share=0.25)
    model.fit(Stream(), epochs=2, verbose=0)
    path = tmp_path / name
    if name.endswith(".keras"):
        model.save(path)
        loaded = keras.models.load_model(path)
        assert isinstance(loaded.objective, Regression)
        assert loaded.objective.share == 0.25
        assert loaded.objective.total_steps == 6
    else:
        model.save_weights(path)
        loaded = make_model(share=0.25, total_steps=6)
        loaded.fit(Stream(), epochs=1, verbose=0)
        loaded.load_weights(path)
    for a, b in zip(state_of(model), state_of(loaded), strict=True):
        np.testing.assert_array_equal(a, b)
    more = [m.fit(Stream(), epochs=1, verbose=0).history for m in (model, loaded)]
    assert more[0] == more[1]
    np.testing.assert_array_equal(
        model.generate([0, 1, 2], seed=3), loaded.generate([0, 1, 2], seed=3)
    )


@pytest.mark.every_backend
def test_a_killed_run_continues_bit_for_bit(tmp_path):
    def run(folder, kill_at=None):
        model, data = make_model(), Stream()
        checkpoint = keras_imm.callbacks.TrainingCheckpoint(tmp_path / folder, data)

        class Kill(keras.callbacks.Callback):
            def on_epoch_begin(self, epoch, logs=None):
                if epoch == kill_at:
                    raise Killed

        model.fit(data, epochs=5, verbose=0, callbacks=[Kill(), checkpoint])
        return model

    whole = run("whole")
    for epoch in (1, 3):
        with pytest.raises(Killed):
            run("killed", epoch)
    for a, b in zip(state_of(whole), state_of(run("killed")), strict=True):
        np.testing.assert_array_equal(a, b)


def test_sampling_in_a_callback(tmp_path):
    model = make_model()
    seen = {}

    class Keep(Sampling):
        def on_samples(self, samples, epoch, step, logs):
            seen[epoch] = samples

    callback = Keep(labels=[0, 1, 2], num_steps=(2, 3), sampler=Shrinking(0.25), seed=4)
    model.fit(Stream(), epochs=1, verbose=0, callbacks=[callback])
    draws = np.random.default_rng(4).standard_normal((4, 3, 4, 4, 1), "float32")
    expected = model.generate(
        [0, 1, 2], num_steps=3, sampler=Shrinking(0.25), noise=draws
    )
    np.testing.assert_array_equal(seen[1][3], expected)
    assert seen[1][2].shape == (3, 4, 4, 1)
    assert not np.array_equal(seen[1][2], seen[1][3])


def walk(model, labels, draws, times, keep):
    """The sampler, step by step, from single jumps."""
    x = model.sigma_data * draws[0]
    for i, (t, s) in enumerate(itertools.pairwise(times)):
        data = ops.convert_to_numpy(model.flow_map(x, t, 0.0, labels))
        if i == len(times) - 2:
            return data
        x = (1 - s) * data + s * keep ** (i + 1) * model.sigma_data * draws[i + 1]
    raise AssertionError


@pytest.mark.parametrize("eager", [False, True])
def test_the_sampler_is_what_it_says(eager):
    model = make_model()
    model.compile("adam", run_eagerly=eager)
    draws = np.random.default_rng(0).standard_normal((4, 3, 4, 4, 1), "float32")
    samples = model.generate([0, 1, 2], num_steps=3, sampler=Shrinking(), noise=draws)
    times = np.linspace(0.994, 0.0, 4).astype("float32")
    expected = walk(model, [0, 1, 2], draws, [float(t) for t in times], 0.5)
    np.testing.assert_allclose(samples, expected, rtol=1e-5, atol=1e-5)


def test_export(tmp_path):
    """With the sampler's noise, which depends on each row's seed alone."""
    import tensorflow as tf

    model = make_model()
    model.fit(Stream(), epochs=1, verbose=0)
    path = keras_imm.serving.export_saved_model(
        model, tmp_path / "served", num_steps=2, sampler=Shrinking(0.25)
    )
    signatures = tf.saved_model.load(str(path)).signatures
    assert "generate_from_noise" not in signatures
    served = signatures["serving_default"]
    seeds, labels = tf.constant([5, 6, 7], tf.int64), tf.constant([0, 1, 2])
    images = served(seed=seeds, label=labels)["image"].numpy()
    assert images.shape == (3, 4, 4, 1) and images.dtype == np.uint8
    alone = served(seed=seeds[1:2], label=labels[1:2])["image"].numpy()
    np.testing.assert_array_equal(images[1:2], alone)
    # In the default sampler, the objective's, the model is what `generate` samples.
    path = keras_imm.serving.export_saved_model(
        model, tmp_path / "default", num_steps=1, signatures=["flow_map"]
    )
    jump = tf.saved_model.load(str(path)).signatures["flow_map"]
    x = np.random.default_rng(0).standard_normal((3, 4, 4, 1)).astype("float32")
    t, s = (np.full(3, v, "float32") for v in (0.7, 0.2))
    x_s = jump(x_t=tf.constant(x), t=tf.constant(t), s=tf.constant(s), label=labels)[
        "x_s"
    ]
    expected = ops.convert_to_numpy(model.flow_map(x, t, s, [0, 1, 2]))
    np.testing.assert_allclose(x_s.numpy(), expected, rtol=1e-5, atol=1e-5)


def test_a_bad_loss_is_saved_with_what_was_drawn(tmp_path):
    model = make_model()

    class Bad(Stream):
        def __getitem__(self, i):
            x, labels = super().__getitem__(i)
            return x * (np.nan if i == 1 else 1), labels

        def batch_indices(self, i):
            return np.arange(self.batch_size) + i * self.batch_size

        def record_name(self, index):
            return str(index)

    data = Bad()
    callback = keras_imm.callbacks.TerminateOnNonFinite(tmp_path, data)
    with pytest.raises(FloatingPointError, match=r"t in \["):
        model.fit(data, epochs=1, verbose=0, callbacks=[callback])
    (path,) = tmp_path.glob("*.npz")
    with np.load(path) as saved:
        assert {"images", "labels", "drawn_labels", "x_t", "t", "x", "share"} <= set(
            saved.files
        )
        assert saved["t"].shape == (8,)
        np.testing.assert_array_equal(saved["labels"], np.arange(8) % 3)


def test_total_steps_must_be_known():
    model = make_model()

    def batches():
        yield from (Stream()[0] for _ in range(3))

    with pytest.raises(ValueError, match=r"Regression follows the progress.*None"):
        model.fit(batches(), epochs=1, verbose=0)
    model.fit(batches(), epochs=1, steps_per_epoch=3, verbose=0)
    assert model.objective.total_steps == 3


def test_the_objective_asks_for_a_flow_map():
    model = make_model()
    assert model.time_scale == 1.0 and model.second_time == "s"
    with pytest.warns(UserWarning, match=r"Regression is meant for time_scale=1\.0"):
        keras_imm.FlowMapModel(small_dit(), Regression(), time_scale=1000.0)


def test_training_beyond_the_steps_that_were_planned_warns():
    model = make_model(total_steps=3)
    model.fit(Stream(), epochs=1, verbose=0)
    with pytest.warns(UserWarning, match="All 3 steps of Regression are done"):
        model.fit(Stream(), epochs=1, verbose=0)
