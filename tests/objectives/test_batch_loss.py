"""Batches in training: progress, roles by place, further scalars, micro-batches."""

import keras
import numpy as np
import pytest
from contracts.objective import new_model
from keras import ops
from newcomer_objectives import (
    AveragedTarget,
    Derivatives,
    Regression,
    Roles,
)

from keras_imm.objectives import Batch, FlowMatching, MomentMatching
from keras_imm.objectives.moment_matching import Particles


@pytest.fixture
def data(images, labels):
    return images, labels


def fit(model, data, **options):
    options = {"batch_size": 8, "epochs": 1, "shuffle": False, "verbose": 0} | options
    return model.fit(*data, **options).history


# -- Progress


def expected_progress(steps, total):
    """Of the steps, whose first has seen none before it."""
    return np.clip(np.asarray(steps) / total, 0.0, 1.0)


def test_progress_is_the_share_of_the_steps_that_are_done(data):
    model = new_model(Regression())
    history = fit(model, data, epochs=3)
    assert model.objective.total_steps == 12
    expected = expected_progress(np.arange(12), 12).reshape(3, 4).mean(axis=1)
    np.testing.assert_allclose(history["progress"], expected, rtol=1e-6)
    # It stays, and what goes beyond is all done.
    history = fit(model, data, epochs=1)
    assert model.objective.total_steps == 12
    np.testing.assert_allclose(history["progress"], [1.0])


def test_progress_is_clipped_and_total_steps_may_be_given(data):
    model = new_model(Regression(total_steps=2))
    history = fit(model, data)
    np.testing.assert_allclose(history["progress"], [np.mean([0, 0.5, 1, 1])])
    assert model.objective.total_steps == 2


def test_progress_in_an_evaluation_is_one(data):
    model = new_model(Regression(total_steps=1000))
    found = model.evaluate(*data, batch_size=8, verbose=0, return_dict=True)
    assert found["progress"] == 1.0


@pytest.mark.parametrize("accumulation_steps", [1, 2])
def test_a_step_is_one_of_the_optimizer(data, accumulation_steps):
    model = new_model(Regression(), accumulation_steps=accumulation_steps)
    history = fit(model, data, batch_size=16, epochs=2)
    assert model.objective.total_steps == 4
    np.testing.assert_allclose(history["progress"], [0.125, 0.625], rtol=1e-6)


@pytest.mark.slow("trains or builds for seconds")
@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ({"batch_size": 12}, 3),
        ({"batch_size": None}, 1),
        ({"epochs": 5}, 20),
        ({"validation_split": 0.25}, 3),
        ({"steps_per_epoch": 2, "epochs": 3}, 6),
    ],
)
def test_the_steps_of_arrays(data, options, steps):
    model = new_model(Regression())
    fit(model, data, **options)
    assert model.objective.total_steps == steps


class Sequence(keras.utils.PyDataset):
    """Six batches of eight."""

    def __len__(self):
        return 6

    def __getitem__(self, i):
        rng = np.random.default_rng(i)
        x = 0.5 * rng.standard_normal((8, 4, 4, 1)).astype("float32")
        return x, np.zeros(8, "int32")


def endless():
    batches = Sequence()
    while True:
        for i in range(6):
            yield batches[i]


def test_the_steps_of_batches(backend):
    model = new_model(Regression())
    model.fit(Sequence(), epochs=2, verbose=0)
    assert model.objective.total_steps == 12
    model = new_model(Regression())
    model.fit(endless(), steps_per_epoch=5, epochs=2, verbose=0)
    assert model.objective.total_steps == 10
    if backend == "tensorflow":
        import tensorflow as tf

        x, y = zip(*(Sequence()[i] for i in range(6)), strict=True)
        arrays = np.concatenate(x), np.concatenate(y)
        batches = tf.data.Dataset.from_tensor_slices(arrays).batch(8)
        model = new_model(Regression())
        model.fit(batches, epochs=2, verbose=0)
        assert model.objective.total_steps == 12


def finite():
    for i in range(6):
        yield Sequence()[i]


def test_data_of_unknown_length_are_refused_where_progress_is_needed():
    model = new_model(Regression())
    with pytest.raises(ValueError, match=r"Regression follows the progress.*generator"):
        model.fit(finite(), verbose=0)
    assert int(ops.convert_to_numpy(model.optimizer.iterations)) == 0
    # Where it is not, they are taken.
    model = new_model(FlowMatching())
    steps = []
    count = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: steps.append(batch)
    )
    model.fit(finite(), verbose=0, callbacks=[count])
    assert steps == list(range(6))
    assert model.objective.total_steps is None


def test_growing_progress_traces_nothing_anew(data, backend):
    traces = []

    class Counted(Regression):
        def loss(self, network, particles, target=None):
            traces.append(0)
            return super().loss(network, particles, target)

    model = new_model(Counted())
    first = fit(model, data, epochs=1)["progress"]
    once = len(traces)
    assert 0 < once <= 3  # some backends trace a step more than once
    model.objective.total_steps = 12
    model.compile(keras.optimizers.SGD(0.01))
    fit(model, data, epochs=1)
    traces.clear()
    second = fit(model, data, epochs=3)["progress"]
    assert not traces
    assert first != second and len(set(second)) == 3


def test_total_steps_are_saved(data, tmp_path):
    model = new_model(Regression())
    fit(model, data, epochs=1, steps_per_epoch=3)
    model.objective.total_steps = 8
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.objective.total_steps == 8
    history = fit(loaded, data, epochs=1)
    expected = expected_progress([3, 4, 5, 6], 8).mean()
    np.testing.assert_allclose(history["progress"], [expected], rtol=1e-6)


# -- Roles by place


@pytest.mark.parametrize("accumulation_steps", [1, 2, 4])
def test_roles_keep_their_places(data, accumulation_steps):
    model = new_model(Roles(), accumulation_steps=accumulation_steps)
    history = fit(model, data, batch_size=16)
    assert history["misplaced"] == [0.0]


def test_rows_of_a_period_are_not_parted(data):
    model = new_model(Roles(), accumulation_steps=2)
    with pytest.raises(ValueError, match=r"multiple of `rows_together`.*=4.*size 12"):
        fit(model, data, batch_size=12)


# -- Further scalars


@pytest.mark.parametrize("accumulation_steps", [1, 2])
@pytest.mark.parametrize("run_eagerly", [False, True])
def test_further_scalars_reach_the_history(data, accumulation_steps, run_eagerly):
    """Their means over the batches, which stand in a known relation to the loss."""
    model = new_model(
        Regression(total_steps=10**6), accumulation_steps=accumulation_steps
    )
    model.compile(keras.optimizers.SGD(0.0), run_eagerly=run_eagerly)
    history = fit(model, data, epochs=2, validation_data=data, validation_batch_size=8)
    assert set(history) == {
        *("loss", "error", "progress"),
        *("val_loss", "val_error", "val_progress"),
    }
    # loss = error (2 - progress), and progress is next to nothing.
    np.testing.assert_allclose(
        history["loss"], 2 * np.array(history["error"]), rtol=1e-4
    )
    np.testing.assert_allclose(history["val_loss"], history["val_error"], rtol=1e-5)
    np.testing.assert_allclose(history["progress"], [1.5e-6, 5.5e-6], rtol=1e-3)
    assert history["val_progress"] == [1.0, 1.0]
    found = model.evaluate(*data, batch_size=8, verbose=0, return_dict=True)
    np.testing.assert_allclose(found["error"], history["val_error"][-1], rtol=1e-6)


def test_they_are_means_of_the_batches(data):
    one, whole = (new_model(Regression(total_steps=10**6)) for _ in range(2))
    for model in (one, whole):
        model.compile(keras.optimizers.SGD(0.0))
    images, labels = data
    singles = [
        one.train_on_batch(images[i : i + 8], labels[i : i + 8], return_dict=True)
        for i in range(0, 32, 8)
    ]
    history = fit(whole, data)
    for name in ("loss", "error"):
        mean = np.mean([float(single[name]) for single in singles])
        np.testing.assert_allclose(history[name], [mean], rtol=1e-5)


def with_scalars(scalars):
    class Scalars(FlowMatching):
        def loss(self, network, particles, target=None):
            return super().loss(network, particles, target)[0], scalars()

    return new_model(Scalars())


@pytest.mark.parametrize(
    ("scalars", "message"),
    [
        (lambda: {"loss": ops.ones(())}, "none of which is named 'loss'"),
        (lambda: {"a": ops.ones((2,))}, r"must be scalars.*\(2,\)"),
        (lambda: {str(i): ops.ones(()) for i in range(16)}, "at most 15 scalars"),
    ],
)
def test_what_is_no_scalar_of_its_own_is_refused(data, scalars, message):
    with pytest.raises(ValueError, match=message):
        with_scalars(scalars).train_on_batch(*data)


def test_scalars_may_be_numbers_of_any_kind(data):
    scalars = {
        "half": ops.cast(0.5, "bfloat16"),
        "count": ops.cast(3, "int32"),
        "x": 2.0,
    }
    history = fit(with_scalars(lambda: scalars), data)
    assert [history[name] for name in scalars] == [[0.5], [3.0], [2.0]]


# -- A step is one of a large batch


@pytest.mark.slow("trains or builds for seconds")
@pytest.mark.parametrize("kind", [Regression, AveragedTarget, Roles, Derivatives])
def test_accumulation_is_one_large_batch(data, kind):
    weights, histories = [], []
    for accumulation_steps in (1, 4):
        model = new_model(kind(), accumulation_steps=accumulation_steps)
        model.compile(keras.optimizers.SGD(2e-3))
        histories.append(fit(model, data, batch_size=16, epochs=2))
        assert int(ops.convert_to_numpy(model.optimizer.iterations)) == 4
        weights.append([ops.convert_to_numpy(v) for v in model.weights])
    assert histories[0].keys() == histories[1].keys()
    for name in histories[0]:
        np.testing.assert_allclose(
            histories[0][name],
            histories[1][name],
            rtol=2e-4,
            atol=1e-6,
            err_msg=name,
        )
    for a, b in zip(*weights, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)
    start = [ops.convert_to_numpy(v) for v in new_model(kind()).weights]
    pairs = zip(start, weights[0], strict=True)
    assert max(np.abs(a - b).max() for a, b in pairs) > 1e-3


@pytest.mark.slow("trains or builds for seconds")
@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("kind", [AveragedTarget, Derivatives])
def test_eager_steps_are_the_compiled_ones(data, kind, dropout):
    losses = []
    for run_eagerly in (True, False):
        model = new_model(kind(), network={"dropout": dropout})
        model.compile(keras.optimizers.SGD(0.02), run_eagerly=run_eagerly)
        losses.append(fit(model, data, epochs=2)["loss"])
    np.testing.assert_allclose(*losses, rtol=1e-3)


def test_no_field_is_fine(data):
    """Of unconditional data there are no labels."""
    model = new_model(Roles(), num_classes=0, accumulation_steps=2)
    assert np.isfinite(model.fit(data[0], batch_size=16, verbose=0).history["loss"][0])


# -- How a batch is split into micro-batches


def split(batch, accumulation_steps, objective=None):
    objective = objective or MomentMatching()
    model = new_model(objective, accumulation_steps=accumulation_steps)
    step = model.batch_loss().micro_batch
    return [step(batch, index) for index in range(accumulation_steps)]


def test_parts_are_every_so_manieth_group():
    rows = np.arange(24)  # 6 groups of 4
    values = [rows.astype("float32") for _ in range(3)]
    images = np.broadcast_to(rows[:, None, None, None], (24, 4, 4, 1))
    particles = Particles(images, images, *values, rows, rows)
    seen = []
    for index, part in enumerate(split(Batch(particles), 3)):
        expected = np.concatenate([rows[4 * g :][:4] for g in (index, index + 3)])
        p = part.particles
        for field in (p.s, p.t, p.labels, p.x_r[:, 2, 1, 0]):
            np.testing.assert_array_equal(ops.convert_to_numpy(field), expected)
        assert tuple(p.x_t.shape) == (8, 4, 4, 1)
        assert part.augmentation_labels is None
        seen += expected.tolist()
    assert sorted(seen) == rows.tolist()


def test_each_device_finds_its_share_of_a_part_in_its_share_of_the_batch():
    devices = 2
    rows = np.arange(32)
    owner = rows // (32 // devices)
    particles = Particles(owner, owner, owner, owner, owner, None, None)
    for part in split(Batch(particles), 2):
        part = ops.convert_to_numpy(part.particles.s)
        np.testing.assert_array_equal(part, np.repeat([0, 1], 8))


# -- What is refused


def test_sample_weights_and_integers_are_refused(data):
    images, labels = data
    model = new_model(Regression(total_steps=1))
    with pytest.raises(ValueError, match="No sample weights"):
        model.fit(images, labels, sample_weight=np.ones(32), verbose=0)
    with pytest.raises(ValueError, match=r"must be floating point.*uint8"):
        model.train_on_batch(np.zeros((8, 4, 4, 1), "uint8"), labels[:8])
    with pytest.raises(ValueError, match=r"num_classes=3: data must be"):
        model.train_on_batch(images)
    with pytest.raises(ValueError, match="Labels must be integers of shape"):
        model.train_on_batch(images, labels.astype("float32"))


def test_without_labels_where_all_are_dropped(data):
    model = new_model(FlowMatching(label_dropout=1.0))
    assert np.isfinite(model.train_on_batch(data[0]))


# -- Objectives of several models, and several objectives of a model


def test_models_with_one_objective_count_their_own_steps(data):
    objective = Regression()
    short, long = (new_model(objective) for _ in range(2))
    fit(short, data, epochs=1)
    history = fit(long, data, epochs=3)
    assert objective.total_steps is None
    assert (short.objective.total_steps, long.objective.total_steps) == (4, 12)
    expected = expected_progress(np.arange(12), 12).reshape(3, 4).mean(axis=1)
    np.testing.assert_allclose(history["progress"], expected, rtol=1e-6)


def test_another_objective_is_trained_from_the_next_step(data):
    model = new_model(FlowMatching())
    assert set(fit(model, data)) == {"loss", "log_residual"}
    model.objective = Regression()
    assert set(fit(model, data)) == {"loss", "error", "progress"}
    with pytest.raises(ValueError, match=r"same `averages`.*target"):
        model.objective = AveragedTarget()


# -- Objectives that are wrong


class LossOfEachRow(Regression):
    def loss(self, network, particles, target=None):
        p = particles
        x = network.flow_map(p.x_t, p.t, ops.zeros_like(p.t), p.labels)
        return ops.mean(ops.square(x - p.x), axis=(1, 2, 3))


def test_a_loss_that_is_no_scalar_is_refused(data):
    """TensorFlow would differentiate the sum of the rows."""
    with pytest.raises(
        ValueError, match=r"LossOfEachRow.loss` must return a scalar.*8"
    ):
        fit(new_model(LossOfEachRow()), data)


class WithoutGradient(Regression):
    """A loss that depends on a variable, but on no weight."""

    def __init__(self):
        super().__init__()
        self.factor = keras.Variable(1.0)

    def loss(self, network, particles, target=None):
        p = particles
        x = ops.stop_gradient(network.flow_map(p.x_t, p.t, p.s, p.labels))
        return ops.mean(ops.square(x * self.factor.value - p.x))


class WithoutAnyGradient(Regression):
    """A loss that depends on no variable."""

    def loss(self, network, particles, target=None):
        loss, others = super().loss(network, particles, target)
        return ops.stop_gradient(loss), others


@pytest.mark.parametrize("kind", [WithoutGradient, WithoutAnyGradient])
@pytest.mark.parametrize("run_eagerly", [False, True])
@pytest.mark.parametrize("accumulation_steps", [1, 2])
def test_a_loss_without_a_gradient_is_refused(
    data, kind, accumulation_steps, run_eagerly
):
    model = new_model(kind(), accumulation_steps=accumulation_steps)
    model.compile("sgd", run_eagerly=run_eagerly)
    with pytest.raises(ValueError, match=r"No weight has a gradient of .Without"):
        fit(model, data, batch_size=16)


def test_a_step_outside_of_fit_needs_total_steps(data):
    """Progress would stay at 0."""
    with pytest.raises(ValueError, match=r"Regression follows.*total_steps=None"):
        new_model(Regression()).train_on_batch(*data)
    found = new_model(Regression(total_steps=4))
    assert found.train_on_batch(*data, return_dict=True)["progress"] == 0.0
