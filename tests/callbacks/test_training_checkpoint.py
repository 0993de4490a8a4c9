import json
import os
import resource
import shutil
import warnings

import keras
import numpy as np
import pytest
from image_files import encoded, pixels
from keras import ops

import keras_imm
from keras_imm import backend, distribution, time_distributions
from keras_imm.backend.random_streams import (
    assign_state,
    random_states,
    streams_of_device,
)
from keras_imm.callbacks import TerminateOnNonFinite, TrainingCheckpoint
from keras_imm.callbacks.terminate_on_non_finite import redraw_particles
from keras_imm.objectives import MomentMatching
from keras_imm.samplers import SamplingPlan

pytestmark = [
    pytest.mark.any_backend("folders and files"),
    pytest.mark.slow("trains, stops and resumes whole runs"),
]


class Stream(keras.utils.PyDataset):
    """Other batches in every epoch, as a data set of keras_imm gives them."""

    ordered = True

    def __init__(self, batch_size=8, steps=3, seed=0, bad=()):
        super().__init__()
        self.batch_size, self.steps, self.seed, self.bad = batch_size, steps, seed, bad
        self.epoch, self.running = 0, False

    @property
    def fingerprint(self):
        return {"batch_size": self.batch_size, "name": "a", "seed": self.seed}

    def __len__(self):
        return self.steps

    def __getitem__(self, i):
        position = self.epoch * self.steps + i
        rng = np.random.default_rng([self.seed, position])
        x = 0.5 * rng.standard_normal((self.batch_size, 4, 4, 1)).astype("float32")
        if position in self.bad:
            x[3] = np.nan
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

    def batch_indices(self, i):
        start = (self.epoch * self.steps + i) * self.batch_size
        return np.arange(start, start + self.batch_size)

    def record_name(self, index):
        return f"record-{index}"


class Killed(Exception):
    pass


class Kill(keras.callbacks.Callback):
    def __init__(self, epoch, batch):
        super().__init__()
        self.at = (epoch, batch)

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        if (self.epoch, batch) == self.at:
            raise Killed


@pytest.fixture
def new_run(make_model, tmp_path):
    """Model, data and checkpoint of one process; the last two as keywords say."""

    def make(
        folder="run", rate=1e-2, settings=None, freq=1, keep=2, dropout=0.1, **stream
    ):
        optimizer = keras.optimizers.Adam(
            keras.optimizers.schedules.CosineDecay(rate, 100),
            use_ema=True,
            ema_momentum=0.9,
        )
        model = make_model({"optimizer": optimizer}, dropout=dropout)
        dataset = Stream(**stream)
        return (
            model,
            dataset,
            TrainingCheckpoint(
                tmp_path / folder, dataset, settings, freq=freq, keep=keep
            ),
        )

    return make


def state_of(model):
    """All that training changes: weights, averages, moments, counters, streams."""
    return [
        ops.convert_to_numpy(v) for v in (*model.variables, *model.optimizer.variables)
    ]


def assert_same(model, other):
    ours, theirs = state_of(model), state_of(other)
    assert len(ours) == len(theirs) > 10
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(a, b)


def run(model, dataset, checkpoint, epochs, kill=None):
    callbacks = [checkpoint] if kill is None else [Kill(*kill), checkpoint]
    return model.fit(dataset, epochs=epochs, verbose=0, callbacks=callbacks)


@pytest.mark.every_backend
def test_killed_runs_continue_as_if_nothing_had_happened(new_run):
    whole, data, checkpoint = new_run("whole")
    history = run(whole, data, checkpoint, 5)
    # In the first epoch, in mid-epoch, at the first batch after a checkpoint.
    for kill in ((0, 1), (2, 1), (3, 0)):
        with pytest.raises(Killed):
            run(*new_run("killed"), 5, kill)
    model, data, again = new_run("killed")
    assert not np.array_equal(state_of(model)[0], state_of(whole)[0])
    resumed = run(model, data, again, 5)
    assert_same(model, whole)
    assert data.epoch == 5
    assert resumed.history == history.history
    assert resumed.epoch == history.epoch == [0, 1, 2, 3, 4]
    assert again.logs == checkpoint.logs
    assert len({entry["loss"] for entry in again.logs}) == 5


def test_a_finished_run_does_nothing_and_a_longer_one_goes_on(new_run):
    run(*new_run(), 2)
    model, data, checkpoint = new_run()
    history = run(model, data, checkpoint, 2)
    assert int(ops.convert_to_numpy(model.optimizer.iterations)) == 6
    assert history.epoch == [0, 1] and len(history.history["loss"]) == 2
    run(model, data, checkpoint, 4)  # the same process
    whole, data, checkpoint = new_run("whole")
    run(whole, data, checkpoint, 4)
    assert_same(model, whole)


@pytest.mark.every_backend
def test_a_second_fit_equals_one_long_fit(new_run):
    twice, data, _ = new_run()
    twice.fit(data, epochs=2, verbose=0)
    twice.fit(data, epochs=2, verbose=0)
    once, data, _ = new_run()
    once.fit(data, epochs=4, verbose=0)
    assert_same(twice, once)


def test_fit_never_shuffles_the_batches_of_an_ordered_data_set(new_run):
    seen = []

    class Recorder(Stream):
        def __getitem__(self, i):
            seen.append((self.epoch, i))
            return super().__getitem__(i)

    model, _, _ = new_run()
    data = Recorder(steps=12)
    model.fit(data, epochs=1, verbose=0, shuffle=True)
    assert [i for _, i in seen][-12:] == list(range(12))


def test_steps_per_epoch_belongs_to_an_ordered_data_set(new_run):
    model, data, _ = new_run()
    with pytest.raises(ValueError, match=r"argument of the data set.*per_epoch=2"):
        model.fit(data, steps_per_epoch=2, verbose=0)


def test_evaluating_leaves_an_ordered_data_set_where_it_is(new_run):
    model, data, _ = new_run()
    data.epoch = 2
    first = model.evaluate(data, verbose=0)
    assert data.epoch == 2
    assert model.evaluate(data, verbose=0) == first
    held_out = Stream(seed=5)
    history = model.fit(Stream(), validation_data=held_out, epochs=2, verbose=0)
    assert held_out.epoch == 0 and len(history.history["val_loss"]) == 2


def test_two_checkpoints_stay_and_hold_what_they_say(new_run, tmp_path):
    model, data, checkpoint = new_run()
    run(model, data, checkpoint, 5)
    names = sorted(path.name for path in (tmp_path / "run").iterdir())
    assert names == ["epoch-000004", "epoch-000005"]
    assert [path.name for path in checkpoint.checkpoints()] == names[::-1]
    state = json.loads((tmp_path / "run" / names[1] / "state.json").read_text())
    assert (state["step"], state["epoch"], state["dataset"]) == (15, 5, {"epoch": 5})


def test_freq_and_the_last_epoch(new_run, tmp_path):
    run(*new_run(freq=3, keep=9), 5)
    names = sorted(path.name for path in (tmp_path / "run").iterdir())
    assert names == ["epoch-000003", "epoch-000005"]


def test_a_stopped_run_ends_with_a_checkpoint(new_run, tmp_path):
    model, data, checkpoint = new_run(freq=10)

    class Stop(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.model.stop_training = epoch == 1

    model.fit(data, epochs=9, verbose=0, callbacks=[Stop(), checkpoint])
    assert [p.name for p in checkpoint.checkpoints()] == ["epoch-000002"]


@pytest.mark.every_backend
@pytest.mark.parametrize(
    ("change", "name", "before", "now"),
    [
        ({"batch_size": 16}, "dataset.batch_size", "8", "16"),
        ({"seed": 1}, "dataset.seed", "0", "1"),
        ({"steps": 4}, "steps_per_epoch", "3", "4"),
        ({"settings": {"recipe": "b"}}, "settings.recipe", "'a'", "'b'"),
        ({"dropout": 0.2}, "model.backbone.dropout", "0.1", "0.2"),
        (
            {"rate": 0.5},
            "optimizer.learning_rate.initial_learning_rate",
            "0.01",
            "0.5",
        ),
    ],
)
def test_another_run_is_refused_with_both_values(new_run, change, name, before, now):
    run(*new_run(settings={"recipe": "a"}), 1)
    model, data, checkpoint = new_run(**{"settings": {"recipe": "a"}, **change})
    untouched = state_of(model)
    with pytest.raises(ValueError, match=f"`{name}` was {before} and is {now}"):
        run(model, data, checkpoint, 2)
    for a, b in zip(untouched, state_of(model), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("times", "share", "message"),
    [
        ("uniform", 0.0, None),
        ("logit_normal", 0.0, "times.class_name` was None and is 'LogitNormal'"),
        ("uniform", 0.5, "flow_matching_share` was None and is 0.5"),
    ],
)
def test_a_run_from_before_an_argument_had_its_default(new_run, times, share, message):
    first, data, checkpoint = new_run()
    run(first, data, checkpoint, 1)
    state = checkpoint.checkpoints()[-1] / "state.json"
    content = json.loads(state.read_text())
    known = {
        name: value
        for name, value in content["described"].items()
        if "times" not in name.split(".") and "flow_matching_share" not in name
    }
    assert len(known) <= len(content["described"]) - 2
    state.write_text(json.dumps(content | {"described": known}))
    model, data, checkpoint = new_run()
    config = first.objective.get_config()
    times = keras.saving.serialize_keras_object(time_distributions.get(times))
    config |= {"times": times, "flow_matching_share": share}
    model.objective = MomentMatching.from_config(config)
    if message is None:
        run(model, data, checkpoint, 2)
        return
    with pytest.raises(ValueError, match=message):
        run(model, data, checkpoint, 2)


def test_how_it_is_sampled_may_change_in_a_run(new_run):
    run(*new_run(), 1)
    model, data, checkpoint = new_run()
    model.sampling_plan = SamplingPlan(num_steps=4)
    model.pixels = keras_imm.Pixels(scale=127.5, offset=127.5)
    run(model, data, checkpoint, 2)


def test_the_names_that_keras_counts_up_do_not_matter(new_run):
    run(*new_run(settings={"recipe": "a"}), 1)
    keras.layers.Dense(1)
    run(*new_run(settings={"recipe": "a"}), 2)


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_taken(new_run, tmp_path):
    whole, data, checkpoint = new_run("whole")
    run(whole, data, checkpoint, 4)
    run(*new_run(), 3)
    newest = tmp_path / "run" / "epoch-000003" / "training_state.npz"
    newest.write_bytes(newest.read_bytes()[:2000])
    model, data, checkpoint = new_run()
    with pytest.warns(UserWarning, match=r"epoch-000003.*Continuing from .*000002"):
        run(model, data, checkpoint, 4)
    assert_same(model, whole)
    for path in checkpoint.checkpoints():
        (path / "state.json").write_text("{")
    with pytest.raises(ValueError, match=r"Cannot read the checkpoint .*epoch-"):
        run(*new_run(), 5)


def test_the_settings_of_the_run_are_known_before_it_continues(new_run, tmp_path):
    model, data, checkpoint = new_run(settings={"recipe": "a"})
    assert checkpoint.saved_settings() == {}
    model.accumulation_steps = 2
    run(model, data, checkpoint, 2)
    _, _, again = new_run(settings={"recipe": "b"})
    for state in (None, "{", '{"described": 1}'):
        if state is not None:  # the one before it is read
            (tmp_path / "run" / "epoch-000002" / "state.json").write_text(state)
        saved = again.saved_settings()
        assert saved["model.accumulation_steps"] == 2
        assert (saved["settings.recipe"], saved["dataset.batch_size"]) == ("a", 8)


def test_what_a_killed_write_leaves_is_ignored_and_removed(new_run, tmp_path):
    run(*new_run(), 2)
    left = tmp_path / "run" / ".unfinished-epoch-000003-0"
    shutil.copytree(tmp_path / "run" / "epoch-000002", left)
    model, data, checkpoint = new_run()
    run(model, data, checkpoint, 2)
    assert int(ops.convert_to_numpy(model.optimizer.iterations)) == 6
    assert not left.exists()


def test_a_full_disk_leaves_the_last_good_checkpoint(new_run, tmp_path):
    """A limit on the size of files, which ends a process that writes with HDF5."""
    model, data, checkpoint = new_run()
    run(model, data, checkpoint, 1)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        message = r"epoch-000002.*File too large.*good one is .*epoch-000001"
        with pytest.raises(OSError, match=message):
            run(model, data, checkpoint, 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["epoch-000001"]
    run(model, data, checkpoint, 2)
    whole, data, checkpoint = new_run("whole")
    run(whole, data, checkpoint, 2)
    assert_same(model, whole)


def test_a_damaged_checkpoint_gives_its_place_to_a_good_one(new_run, tmp_path):
    run(*new_run(), 3)
    newest = tmp_path / "run" / "epoch-000003" / "training_state.npz"
    newest.write_bytes(newest.read_bytes()[:2000])
    with pytest.warns(UserWarning, match="epoch-000003"):
        run(*new_run(), 3)
    names = sorted(path.name for path in (tmp_path / "run").iterdir())
    assert names[0].startswith("damaged-epoch-000003-")
    assert names[1:] == ["epoch-000002", "epoch-000003"]
    model, data, checkpoint = new_run()
    run(model, data, checkpoint, 4)
    whole, data, checkpoint = new_run("whole")
    run(whole, data, checkpoint, 4)
    assert_same(model, whole)


@pytest.mark.every_backend
def test_weights_that_are_not_finite_are_not_saved(new_run, tmp_path):
    class Spoil(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            if epoch == 1:
                weight = self.model.trainable_variables[0]
                weight.assign(ops.full(weight.shape, np.inf))

    model, data, checkpoint = new_run()
    message = "not finite after epoch 2.*good one is .*epoch-000001"
    with pytest.raises(FloatingPointError, match=message):
        model.fit(data, epochs=3, verbose=0, callbacks=[Spoil(), checkpoint])
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["epoch-000001"]
    run(*new_run(), 3)


def test_the_data_set_of_fit_is_found(new_run, tmp_path):
    whole, data, checkpoint = new_run("whole")
    run(whole, data, checkpoint, 3)
    for epochs in (1, 3):
        model, data, _ = new_run()
        run(model, data, TrainingCheckpoint(tmp_path / "run"), epochs)
    assert_same(model, whole)
    model, data, _ = new_run()
    with pytest.raises(ValueError, match="must be the data set of `fit`"):
        run(model, data, TrainingCheckpoint(tmp_path / "other", Stream()), 1)


def test_images_whose_names_are_no_text_are_data(make_model, tmp_path):
    (tmp_path / "images").mkdir()
    for name in (b"a.png", b"caf\xe9.png"):
        path = tmp_path / "images" / os.fsdecode(name)
        path.write_bytes(encoded(pixels(len(name), 4, 4, channels=1)))
    (tmp_path / "images" / "z.png").symlink_to("nowhere")
    steps = []
    for epochs in (1, 2):
        options = {"channels": 1, "on_corrupt": "skip", "steps_per_epoch": 4}
        dataset = keras_imm.datasets.load(tmp_path / "images", 2, **options)
        model = make_model({}, num_classes=0, group_size=2)
        checkpoint = TrainingCheckpoint(tmp_path / "run", dataset)
        with pytest.warns(UserWarning, match=r"Skipping .*z\.png"):
            run(model, dataset, checkpoint, epochs)
        steps.append(int(ops.convert_to_numpy(model.optimizer.iterations)))
    assert steps == [4, 8] and len(checkpoint.logs) == 2


def test_data_in_an_order_that_is_not_kept_are_warned_of(new_run, tmp_path):
    model, data, _ = new_run()
    x, labels = data[0]
    arguments = {"batch_size": 8, "verbose": 0}
    checkpoint = TrainingCheckpoint(tmp_path / "run")
    with pytest.warns(UserWarning, match="shuffles these data"):
        model.fit(x, labels, callbacks=[checkpoint], **arguments)
    model, _, _ = new_run()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*shuffles")
        checkpoint = TrainingCheckpoint(tmp_path / "other")
        model.fit(x, labels, shuffle=False, callbacks=[checkpoint], **arguments)


def test_a_functional_backbone_made_again_is_the_same_run(tmp_path):
    def model():
        inputs = [keras.Input((4, 4, 1)), keras.Input(()), keras.Input(())]
        x = keras.layers.Conv2D(1, 1)(inputs[0])
        times = [keras.layers.Reshape((1, 1, 1))(t) for t in inputs[1:]]
        model = keras_imm.IMM(keras.Model(inputs, keras.layers.add([x, *times])))
        model.compile(keras.optimizers.Adam(use_ema=True))
        return model

    data = [Stream() for _ in range(2)]
    for epochs, stream in enumerate(data, 1):
        run(model(), stream, TrainingCheckpoint(tmp_path / "run"), epochs)
    assert data[1].epoch == 2


def test_a_rate_that_a_callback_has_set_is_not_another_run(make_model, tmp_path):
    model = make_model({})
    data = Stream()
    halve = keras.callbacks.LearningRateScheduler(lambda epoch, rate: rate / 2)
    for epochs in (1, 2):
        checkpoint = TrainingCheckpoint(tmp_path / "run", data)
        model.fit(data, epochs=epochs, verbose=0, callbacks=[halve, checkpoint])
    rate = ops.convert_to_numpy(model.optimizer.learning_rate)
    np.testing.assert_allclose(rate, 1e-2 / 4, rtol=1e-6)
    other = make_model({})
    other.optimizer.learning_rate = 0.5
    with pytest.raises(
        ValueError, match=r"`optimizer.learning_rate` was 0.0\d+ and is"
    ):
        run(other, Stream(), TrainingCheckpoint(tmp_path / "run"), 3)


@pytest.mark.every_backend
def test_steps_that_loss_scaling_skips_count_as_epochs(make_model, tmp_path):
    optimizer = keras.optimizers.LossScaleOptimizer(
        keras.optimizers.Adam(), initial_scale=2.0**126
    )
    model = make_model({"optimizer": optimizer})
    run(model, Stream(steps=1), TrainingCheckpoint(tmp_path / "run", keep=9), 3)
    names = sorted(path.name for path in (tmp_path / "run").iterdir())
    assert names == [f"epoch-{i:06d}" for i in (1, 2, 3)]


def test_only_the_first_process_writes(new_run, tmp_path, monkeypatch):
    barriers = []
    monkeypatch.setattr(distribution, "is_chief", lambda: False)
    monkeypatch.setattr(distribution, "barrier", lambda: barriers.append(1))
    run(*new_run(), 2)
    assert not (tmp_path / "run").exists()
    assert len(barriers) == 3  # at the start and after each checkpoint


def test_numbers_of_numpy_and_texts_in_the_logs_are_kept(new_run, tmp_path):
    class Log(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            logs["note"], logs["count"] = "a", np.int64(3)

    class Counting(Stream):
        def get_state(self):
            return {"epoch": np.int64(self.epoch)}

    model, _, _ = new_run()
    checkpoint = TrainingCheckpoint(tmp_path / "run")
    model.fit(Counting(), verbose=0, callbacks=[Log(), checkpoint])
    state = json.loads((tmp_path / "run" / "epoch-000001" / "state.json").read_text())
    assert state["dataset"] == {"epoch": 1}
    assert (state["logs"][0]["note"], state["logs"][0]["count"]) == ("a", 3)


def test_a_folder_that_cannot_be_written_is_known_before_training(new_run, tmp_path):
    (tmp_path / "run").write_text("a file")
    model, data, checkpoint = new_run()
    before = state_of(model)
    with pytest.raises(OSError, match=r"Cannot write checkpoints into .*run"):
        run(model, data, checkpoint, 1)
    np.testing.assert_array_equal(before[0], state_of(model)[0])


def test_arguments():
    with pytest.raises(ValueError, match="`freq` must"):
        TrainingCheckpoint("a", freq=0)
    with pytest.raises(ValueError, match="`keep` must"):
        TrainingCheckpoint("a", keep=0)
    with pytest.raises(ValueError, match=r"list without get_state and set_state"):
        TrainingCheckpoint("a", dataset=[1])


# -- A loss that is not a number


def draw(model, data):
    """The particles of a train step."""
    return model.batch_loss().draw(data, ops.convert_to_tensor(0)).particles


@pytest.mark.every_backend
@pytest.mark.parametrize("position", [0, 4])
def test_the_bad_batch_is_saved_with_its_times(new_run, tmp_path, position):
    model, _, _ = new_run()
    data = Stream(bad=(position,))
    drawn = []

    class Spy(keras.callbacks.Callback):
        """The times that the step draws, found by running it on a copy by hand."""

        def on_train_batch_begin(self, batch, logs=None):
            if data.epoch * data.steps + batch == position:
                if hasattr(self.model, "jax_state_sync"):
                    self.model.jax_state_sync()
                    self.model._jax_state_synced = True
                state = self.model.seed_generator.state
                before = ops.convert_to_numpy(state)
                batch = tuple(map(ops.convert_to_tensor, data[batch]))
                drawn.append(draw(self.model, batch))
                state.assign(ops.convert_to_tensor(before, state.dtype))

    stop = TerminateOnNonFinite(tmp_path / "out", data)
    epoch, batch = divmod(position, data.steps)
    message = rf"loss of step {position + 1} \(batch {batch} of epoch {epoch + 1}\)"
    message += rf".*records {position * 8}, .*record-{position * 8}"
    with pytest.raises(FloatingPointError, match=message):
        model.fit(data, epochs=3, verbose=0, callbacks=[Spy(), stop])
    (path,) = (tmp_path / "out").iterdir()
    saved = np.load(path)
    assert saved["step"] == position + 1 and not np.isfinite(saved["loss"])
    np.testing.assert_array_equal(saved["indices"], data.batch_indices(batch))
    np.testing.assert_array_equal(saved["images"], data[batch][0])
    np.testing.assert_array_equal(saved["labels"], data[batch][1])
    # Every field of the particles, one row for each image.
    for name, field in drawn[0]._asdict().items():
        if field is None:  # there is no share of flow matching
            assert name == "velocity" and name not in saved
            continue
        key = "drawn_labels" if name == "labels" else name
        expected = ops.convert_to_numpy(field)
        np.testing.assert_allclose(saved[key], expected, rtol=1e-6, err_msg=name)
    assert saved["t"].shape == (8,)


def test_without_a_data_set_the_step_is_told(new_run, tmp_path):
    model, _, _ = new_run()
    stop = TerminateOnNonFinite(tmp_path)
    with pytest.raises(FloatingPointError, match=r"step 2 \(batch 1 of epoch 1\)"):
        model.fit(Stream(bad=(1,)), verbose=0, callbacks=[stop])
    assert np.load(tmp_path / "non-finite-step-000000002.npz")["step"] == 2


@pytest.mark.every_backend
@pytest.mark.skipif(
    keras.backend.backend() == "torch", reason="torch has no steps_per_execution"
)
def test_all_steps_of_one_execution_are_saved(make_model, tmp_path):
    model = make_model({"steps_per_execution": 2})
    data = Stream(steps=4, bad=(2,))
    stop = TerminateOnNonFinite(tmp_path, data)
    with pytest.raises(FloatingPointError, match=r"step 4 \(batch 3 of epoch 1\)"):
        model.fit(data, verbose=0, callbacks=[stop])
    saved = np.load(tmp_path / "non-finite-step-000000004.npz")
    np.testing.assert_array_equal(saved["indices"], np.arange(16, 32))
    assert saved["t"].shape == (16,) and saved["images"].shape == (16, 4, 4, 1)


def test_the_step_counts_from_the_start_of_training(new_run, tmp_path):
    model, _, _ = new_run()
    model.fit(Stream(), verbose=0)
    stop = TerminateOnNonFinite(tmp_path)
    with pytest.raises(FloatingPointError, match=r"step 5 \(batch 1 of epoch 1\)"):
        model.fit(Stream(bad=(1,)), verbose=0, callbacks=[stop])


def test_a_finite_loss_does_not_stop(new_run, tmp_path):
    model, data, _ = new_run()
    stop = TerminateOnNonFinite(tmp_path / "out", data)
    model.fit(data, verbose=0, callbacks=[stop])
    assert not (tmp_path / "out").exists()


@pytest.mark.every_backend
def test_redrawing_several_steps_leaves_the_streams_alone(new_run):
    model, data, _ = new_run()
    batches = [tuple(map(ops.convert_to_tensor, data[i])) for i in range(2)]
    drawn = [draw(model, batch) for batch in batches]
    before = ops.convert_to_numpy(model.seed_generator.state)
    again = redraw_particles(model, batches)
    for a, b in zip(drawn, again, strict=True):
        np.testing.assert_array_equal(*map(ops.convert_to_numpy, (a.x_t, b.x_t)))
    after = ops.convert_to_numpy(model.seed_generator.state)
    np.testing.assert_array_equal(before, after)


@pytest.mark.every_backend
@pytest.mark.skipif(
    keras.backend.backend() == "jax", reason="JAX draws once for all devices"
)
def test_each_device_of_a_process_is_drawn_again_with_its_own_streams(
    new_run, monkeypatch
):
    model, data, _ = new_run()
    x, labels = map(ops.convert_to_tensor, data[0])
    before = ops.convert_to_numpy(model.seed_generator.state)
    drawn = []
    for device, rows in enumerate((slice(0, 4), slice(4, 8))):
        assign_state(model.seed_generator.state, before)
        with streams_of_device(random_states(model), device):
            drawn.append(draw(model, (x[rows], labels[rows])))
    monkeypatch.setattr(backend.processes, "drawing_devices", lambda model: [0, 1])
    again = redraw_particles(model, [(x, labels)])
    for a, b in zip(drawn, again, strict=True):
        np.testing.assert_array_equal(*map(ops.convert_to_numpy, (a.x_t, b.x_t)))
    assert not np.array_equal(*(ops.convert_to_numpy(p.t) for p in again))
