"""Averages that an objective names: their recurrence, their files, their scope."""

import keras
import numpy as np
import pytest
from contracts.objective import new_model, tensors
from keras import ops
from newcomer_objectives import MOMENTUM, AveragedTarget, Regression

import keras_imm
from keras_imm.backend.random_streams import random_states
from keras_imm.callbacks import TrainingCheckpoint
from keras_imm.flow_map import Network
from keras_imm.objectives import AveragedWeights


@pytest.fixture
def data(images, labels):
    return images, labels


def make(optimizer=None, dropout=0.0, **options):
    model = new_model(AveragedTarget(), network={"dropout": dropout}, **options)
    model.compile(optimizer or keras.optimizers.Adam(1e-2, epsilon=1e-8))
    return model


def weights_of(model):
    return [ops.convert_to_numpy(v) for v in model.backbone.trainable_variables]


def averages_of(model):
    return [ops.convert_to_numpy(v) for v in model.averaged_weights]


def fit(model, data, **options):
    options = {"batch_size": 8, "epochs": 1, "shuffle": False, "verbose": 0} | options
    return model.fit(*data, **options).history


class Weights(keras.callbacks.Callback):
    """The weights after every step."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def on_train_batch_end(self, batch, logs=None):
        if hasattr(self.model, "jax_state_sync"):
            self.model.jax_state_sync()
            self.model._jax_state_synced = True
        self.seen.append(weights_of(self.model))


def expected_averages(seen):
    """float64: the weights after the first step, and from then on the recurrence."""
    averages = [np.asarray(v, "float64") for v in seen[0]]
    for weights in seen[1:]:
        averages = [
            MOMENTUM * average + (1 - MOMENTUM) * weight
            for average, weight in zip(averages, weights, strict=True)
        ]
    return averages


def assert_all_close(found, expected, **tolerances):
    assert len(found) == len(expected) > 0
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, **tolerances)


def assert_all_equal(found, expected):
    assert len(found) == len(expected) > 0
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("accumulation_steps", [1, 2])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_the_recurrence_over_the_optimizer_steps(data, accumulation_steps, dropout):
    model, watch = (
        make(accumulation_steps=accumulation_steps, dropout=dropout),
        Weights(),
    )
    fit(model, data, callbacks=[watch])
    assert len(watch.seen) == 4
    assert {v.dtype for v in model.averaged_weights} == {"float32"}
    assert not any(v.trainable for v in model.averaged_weights)
    expected = expected_averages(watch.seen)
    assert_all_close(averages_of(model), expected, rtol=1e-5, atol=1e-6)
    moved = [np.abs(a - w).max() for a, w in zip(expected, watch.seen[-1], strict=True)]
    assert max(moved) > 1e-3


def test_they_are_the_weights_after_the_first_step(data):
    model = make()
    model.train_on_batch(*data)
    assert_all_equal(averages_of(model), weights_of(model))


def test_they_are_float32_under_mixed_precision(data):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model, watch = make(), Weights()
        fit(model, data, callbacks=[watch])
    finally:
        keras.config.set_dtype_policy(before)
    assert {v.dtype for v in model.averaged_weights} == {"float32"}
    expected = expected_averages(watch.seen)
    assert_all_close(averages_of(model), expected, rtol=1e-5, atol=1e-6)


def test_a_step_that_is_skipped_moves_nothing(data):
    """A loss scaled out of range gives gradients that are not finite."""
    optimizer = keras.optimizers.LossScaleOptimizer(
        keras.optimizers.SGD(0.1), initial_scale=2.0**126, dynamic_growth_steps=10**6
    )
    model = make(optimizer)
    images, labels = data
    model.train_on_batch(100 * images, labels)
    assert int(ops.convert_to_numpy(optimizer.inner_optimizer.iterations)) == 0
    assert_all_equal(averages_of(model), [np.zeros(v.shape) for v in weights_of(model)])
    model = make(keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1)))
    model.train_on_batch(images, labels)
    model.train_on_batch(images, labels)
    before = averages_of(model)
    broken = images.copy()
    broken[0] = np.nan
    model.train_on_batch(broken, labels)
    assert int(ops.convert_to_numpy(model.optimizer.inner_optimizer.iterations)) == 2
    assert_all_equal(averages_of(model), before)
    model.train_on_batch(images, labels)
    expected = [
        MOMENTUM * a.astype("float64") + (1 - MOMENTUM) * w
        for a, w in zip(before, weights_of(model), strict=True)
    ]
    assert_all_close(averages_of(model), expected, rtol=1e-5, atol=1e-6)


# -- What the target sees


def bound(model, step, training=True):
    """The network that an objective's target is handed."""
    seen = []

    class Spy(AveragedTarget):
        def target(self, network, particles):
            seen.append((network, particles))

    batch_loss = model.batch_loss()
    batch_loss.objective = Spy()
    step = None if step is None else ops.convert_to_tensor(step, "int32")
    images = np.random.default_rng(0).standard_normal((8, 4, 4, 1)).astype("float32")
    labels = (np.arange(8) % 3).astype("int32")
    batch = batch_loss.draw(tensors((images, labels)), step, training=training)
    batch_loss.target(batch, step, training=training)
    return seen[0]


def output(network, p):
    x = network.output(p.x_t, p.t, p.s, p.labels)
    return ops.convert_to_numpy(ops.stop_gradient(x))


@pytest.mark.parametrize(("step", "averaged"), [(0, False), (3, True), (None, False)])
def test_with_weights_has_the_averages_once_there_are_any(data, step, averaged):
    """Before the first step and in an evaluation they are the weights themselves."""
    model = make()
    fit(model, data)
    network, p = bound(model, step, training=step is not None)
    copy = new_model(AveragedTarget())
    values = averages_of(model) if averaged else weights_of(model)
    for v, value in zip(copy.backbone.trainable_variables, values, strict=True):
        v.assign(value)
    expected = output(Network(copy.flow), p)
    np.testing.assert_allclose(
        output(network.with_weights("target"), p), expected, atol=1e-5
    )
    raw = output(network, p)
    assert (np.abs(raw - expected).max() > 1e-3) == averaged
    # And the weights are as they were.
    assert output(network, p).tolist() == raw.tolist()


def test_scopes_within_scopes(data):
    """The weights of a step are a scope's; averages inside it keep all the others."""
    model = make()
    fit(model, data)
    network, p = bound(model, 3)
    embedding = model.backbone.label_embedding.embeddings
    zeros = ops.zeros_like(embedding.value)
    with keras.StatelessScope(state_mapping=[(embedding, zeros)]):
        outer = output(network, p)
        inner = output(network.with_weights("target"), p)
        assert output(network, p).tolist() == outer.tolist()
    assert np.abs(outer - output(network, p)).max() > 1e-3
    # The averages of the embedding are not the outer scope's.
    expected = output(network.with_weights("target"), p)
    np.testing.assert_allclose(inner, expected, atol=1e-6)


def test_masks_come_as_without_averages(data):
    model = make(dropout=0.3)
    fit(model, data)
    # Averages equal to the weights tell masks apart from weights.
    for average, weight in zip(
        model.averaged_weights, model.backbone.trainable_variables, strict=True
    ):
        average.assign(weight)
    network, p = bound(model, 3)
    states = random_states(model.backbone)
    assert states
    before = [ops.convert_to_numpy(state) for state in states]

    def run(*networks):
        for state, value in zip(states, before, strict=True):
            state.assign(ops.convert_to_tensor(value, state.dtype))
        outputs = [output(one, p) for one in networks]
        return outputs, [ops.convert_to_numpy(state) for state in states]

    averaged = network.with_weights("target")
    plain, after = run(network, network, network)
    mixed, after_mixed = run(averaged, network, averaged)
    assert_all_equal(after, after_mixed)
    assert_all_close(mixed, plain, atol=1e-6)
    # All calls of a target draw one mask.
    assert_all_equal(plain, [plain[0]] * 3)
    assert np.abs(plain[0] - output(Network(model.flow), p)).max() > 1e-3


def test_derivatives_with_averages(data):
    model = make(dropout=0.3)
    fit(model, data)
    network, p = bound(model, 3)
    averaged = network.with_weights("target")
    states = random_states(model.backbone)
    before = [ops.convert_to_numpy(state) for state in states]
    value = output(averaged, p)
    after = [ops.convert_to_numpy(state) for state in states]
    for state, old in zip(states, before, strict=True):
        state.assign(ops.convert_to_tensor(old, state.dtype))
    one = ops.ones_like(p.x_t)
    g, total = averaged.total_derivative(p.x_t, p.t, p.s, p.labels, one)
    np.testing.assert_allclose(
        ops.convert_to_numpy(ops.stop_gradient(g)), value, atol=1e-5
    )
    assert np.all(np.isfinite(ops.convert_to_numpy(ops.stop_gradient(total))))
    assert_all_equal([ops.convert_to_numpy(state) for state in states], after)


def test_an_unknown_name_is_refused(data):
    network, p = bound(make(), 3)
    with pytest.raises(ValueError, match=r"`averages` are 'target'.*'teacher'"):
        network.with_weights("teacher").output(p.x_t, p.t, p.s, p.labels)
    with pytest.raises(ValueError, match=r"no averages.*'target'"):
        Network(make().flow).with_weights("target")


@pytest.mark.parametrize("momentum", [1.0, -0.1, "a"])
def test_momenta_are_checked(momentum):
    model = make()
    with pytest.raises(ValueError, match=r"`averages\['target'\]` must be .*\[0, 1\)"):
        AveragedWeights(model.backbone, {"target": momentum})


# -- Frozen layers, evaluation


def test_frozen_layers_keep_their_averages(data):
    model = make()
    frozen = model.backbone.blocks[0]
    frozen.trainable = False
    model.compile(keras.optimizers.Adam(1e-2))
    before = [ops.convert_to_numpy(v) for v in frozen.weights]
    fit(model, data)
    assert_all_equal([ops.convert_to_numpy(v) for v in frozen.weights], before)
    frozen.trainable = True
    weights = model.backbone.trainable_variables
    assert len(weights) == len(model.averaged_weights)
    averages = {
        id(w): ops.convert_to_numpy(a)
        for w, a in zip(weights, model.averaged_weights, strict=True)
    }
    of_frozen = [averages[id(v)] for v in frozen.weights]
    assert_all_close(of_frozen, before, rtol=1e-6, atol=1e-7)


def test_an_evaluation_uses_the_raw_weights(data):
    model = make()
    fit(model, data)
    found = model.evaluate(*data, batch_size=8, verbose=0, return_dict=True)
    assert found["distance"] == 0.0
    assert found["loss"] > 0.0
    averages = averages_of(model)
    model.evaluate(*data, batch_size=8, verbose=0)
    assert_all_equal(averages_of(model), averages)


def test_eager_and_compiled_steps_agree(data):
    models = []
    for run_eagerly in (True, False):
        model = new_model(AveragedTarget())
        model.compile(keras.optimizers.SGD(0.01), run_eagerly=run_eagerly)
        losses = fit(model, data)["loss"]
        models.append((losses, averages_of(model)))
    (eager_loss, eager), (compiled_loss, compiled) = models
    np.testing.assert_allclose(eager_loss, compiled_loss, rtol=1e-4)
    assert_all_close(eager, compiled, atol=1e-5)


# -- Files


def everything(model):
    found = [*model.variables, *model.optimizer.variables, *model.averaged_weights]
    return [ops.convert_to_numpy(v).astype("float64") for v in found]


@pytest.mark.slow("trains or builds for seconds")
@pytest.mark.parametrize("name", ["model.keras", "model.weights.h5"])
def test_saved_and_loaded(data, tmp_path, name):
    model = make(dropout=0.1)
    fit(model, data)
    path = tmp_path / name
    if name == "model.keras":
        model.save(path)
        loaded = keras.models.load_model(path)
    else:
        model.save_weights(path)
        loaded = make(dropout=0.1, seed=3)
        loaded.load_weights(path)
    assert isinstance(loaded.objective, AveragedTarget)
    assert_all_equal(everything(loaded), everything(model))
    assert np.any(averages_of(model)[0] != weights_of(model)[0])
    for one in (model, loaded):
        fit(one, data)
    assert_all_equal(everything(loaded), everything(model))
    noise = data[0][:2]
    np.testing.assert_array_equal(
        loaded.generate([0, 1], noise=noise), model.generate([0, 1], noise=noise)
    )


def test_weights_without_averages_are_refused(data, tmp_path):
    new_model(Regression()).save_weights(tmp_path / "model.weights.h5")
    model = make()
    before = everything(model)
    with pytest.raises(ValueError, match=r"model.weights.h5(.|\n)*averages"):
        model.load_weights(tmp_path / "model.weights.h5")
    assert_all_equal(everything(model), before)


class Kill(keras.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        if int(ops.convert_to_numpy(self.model.optimizer.iterations)) == 4 + 2:
            raise KeyboardInterrupt


class Stream(keras.utils.PyDataset):
    """Batches whose position a checkpoint can hold."""

    ordered = True
    fingerprint = {"name": "averages"}  # noqa: RUF012, never changed

    def __init__(self):
        super().__init__()
        self.epoch = 0

    def __len__(self):
        return 4

    def __getitem__(self, i):
        rng = np.random.default_rng([self.epoch, i])
        x = 0.5 * rng.standard_normal((8, 4, 4, 1)).astype("float32")
        return x, (np.arange(8) % 3).astype("int32")

    def on_epoch_end(self):
        self.epoch += 1

    def get_state(self):
        return {"epoch": self.epoch}

    def set_state(self, state):
        self.epoch = state["epoch"]


def test_a_killed_run_resumes_bit_for_bit(tmp_path):
    def run(folder, *callbacks):
        model, data = make(dropout=0.1), Stream()
        checkpoint = TrainingCheckpoint(tmp_path / folder, data)
        model.fit(data, epochs=3, verbose=0, callbacks=[checkpoint, *callbacks])
        return model

    whole = run("whole")
    with pytest.raises(KeyboardInterrupt):
        run("cut", Kill())
    resumed = run("cut")
    assert int(ops.convert_to_numpy(resumed.optimizer.iterations)) == 12
    assert_all_equal(everything(resumed), everything(whole))


@pytest.mark.slow("trains or builds for seconds")
def test_a_model_starts_from_another_one(data):
    """`clone_backbone` has the optimizer's averages; the objective's start anew."""
    source = keras_imm.IMM(make().backbone)
    source.compile(keras.optimizers.Adam(1e-2, use_ema=True, ema_momentum=0.5))
    fit(source, data)
    for weights in ("ema", "raw"):
        backbone = source.clone_backbone(weights=weights)
        model = keras_imm.FlowMapModel(backbone, objective=AveragedTarget())
        noise = data[0][:3]
        np.testing.assert_allclose(
            model.generate([0, 1, 2], noise=noise),
            source.generate([0, 1, 2], noise=noise, weights=weights),
            atol=1e-6,
        )
        model.compile(keras.optimizers.SGD(1e-3))
        model.train_on_batch(*data)
        assert_all_equal(averages_of(model), weights_of(model))


class FirstBuiltByData(keras.layers.Layer):
    """A backbone that does not know the shape of the data."""

    def __init__(self):
        super().__init__(autocast=False)
        self.dense = keras.layers.Dense(2)

    def call(self, inputs, training=False):
        return self.dense(inputs[0])


def test_averages_of_a_network_that_the_first_batch_builds():
    model = keras_imm.FlowMapModel(FirstBuiltByData(), objective=AveragedTarget())
    model.compile(keras.optimizers.SGD(0.1))
    x = np.random.default_rng(0).standard_normal((8, 2)).astype("float32")
    model.fit(x, batch_size=4, epochs=2, shuffle=False, verbose=0)
    averages = dict(model._named_averages())
    weights = [ops.convert_to_numpy(v) for v in model.trainable_variables]
    assert len(averages) == len(weights) == 2
    for average, weight in zip(averages.values(), weights, strict=True):
        average = ops.convert_to_numpy(average)
        assert np.abs(average).max() > 0.0 and np.any(average != weight)


@pytest.mark.parametrize("averages", [{"a/b": 0.5}, {"": 0.5}, {1: 0.5}, {"a": 1.0}])
def test_names_and_momenta_are_checked_when_the_model_is_made(averages):
    class Wrong(AveragedTarget):
        pass

    Wrong.averages = averages
    with pytest.raises(ValueError, match="averages"):
        new_model(Wrong())
