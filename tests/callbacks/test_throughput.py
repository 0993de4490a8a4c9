"""The speed of training, told by a clock that the test sets."""

import types

import keras
import numpy as np
import pytest
from small_dit import small_dit

import keras_imm
from keras_imm import devices, distribution, flops
from keras_imm.callbacks import SampleMetrics, Throughput, pauses, throughput


class Clock(keras.callbacks.Callback):
    """Ten seconds for the first step, half a second for others; then an hour."""

    now = 0.0
    steps = 0

    def on_train_batch_end(self, batch, logs=None):
        self.now += 0.5 if self.steps else 10.0
        self.steps += 1

    def on_epoch_end(self, epoch, logs=None):
        self.now += 3600.0

    def on_test_end(self, logs=None):
        self.now += 60.0


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    fake = types.SimpleNamespace(perf_counter=lambda: clock.now)
    monkeypatch.setattr(throughput, "time", fake)
    monkeypatch.setattr(pauses, "time", fake)
    return clock


def run(stub, *callbacks, batches=5, epochs=2, **options):
    x = np.ones((2 * batches, 1), "float32")
    return stub.fit(
        x,
        x,
        batch_size=2,
        epochs=epochs,
        verbose=0,
        callbacks=list(callbacks),
        **options,
    ).history


def test_neither_compilation_nor_the_ends_of_epochs_count(stub, clock):
    x = np.ones((2, 1), "float32")
    history = run(stub, clock, Throughput(8), validation_data=(x, x))
    assert history["steps_per_second"] == pytest.approx([2.0, 2.0])
    assert history["images_per_second"] == pytest.approx([16.0, 16.0])
    assert "model_flops_utilization" not in history  # a CPU's peak is not known


def test_sampling_within_an_epoch_does_not_count(stub, clock):
    def slow(samples, labels):
        clock.now += 100.0
        return 0.0

    quality = SampleMetrics({"slow": slow}, num_samples=1, every_n_steps=2)
    history = run(stub, clock, quality, Throughput(8))
    assert clock.now > 2 * 5 * 100
    assert history["steps_per_second"] == pytest.approx([2.0, 2.0])


def test_an_epoch_of_one_step_has_no_entry_before_it_is_compiled(stub, clock):
    history = run(stub, clock, Throughput(8), batches=1, epochs=3)
    assert history["images_per_second"] == pytest.approx([16.0, 16.0])
    assert len(history["loss"]) == 3


def test_a_second_fit_leaves_its_first_step_out(stub, clock):
    speed = Throughput(8)
    run(stub, clock, speed)
    clock.steps = 0
    assert run(stub, clock, speed)["steps_per_second"] == pytest.approx([2.0, 2.0])


@pytest.mark.skipif(
    keras.backend.backend() == "tensorflow",
    reason="Keras waits for each step under TensorFlow, whatever the callbacks",
)
def test_it_does_not_make_keras_wait_for_each_step():
    callbacks = keras.callbacks.CallbackList([Throughput(8)], model=keras.Model())
    assert callbacks._async_train


class Model:
    compute_dtype = "float32"
    backbone = None
    data_shape = (1,)


def test_threads_leave_training_alone(make_model, images, labels):
    """With no other callback Keras calls it from threads, while the next step runs."""
    model = make_model(compile_options={})
    options = {"batch_size": 4, "epochs": 3, "verbose": 0}
    history = model.fit(images, labels, callbacks=[Throughput(4)], **options).history
    # A thread that is late with the first step leaves the first epoch without entry.
    assert 1 <= len(history["images_per_second"]) <= len(history["loss"]) == 3
    assert min(history["images_per_second"]) > 0


def drive(speed, clock, model=None, order=(0, 1, 2, 3)):
    """Logs of an epoch of four steps, the last three of which take 1, 3 and 5 s."""
    speed.set_model(model or Model())
    speed.on_train_begin()
    speed.on_epoch_begin(0)
    for batch in order:
        clock.now = 10.0 + batch**2
        speed.on_train_batch_end(batch)
    logs = {}
    speed.on_epoch_end(0, logs)
    return logs


def test_ends_that_threads_tell_out_of_order(clock):
    logs = drive(Throughput(8), clock, order=(1, 0, 3, 2))
    assert logs == {"steps_per_second": 3 / 9, "images_per_second": 8 * 3 / 9}


def test_utilization(clock, monkeypatch):
    model = keras_imm.IMM(small_dit(dtype="mixed_bfloat16"))
    asked = []

    def peak(dtype):
        asked.append(dtype)
        return 1e9

    monkeypatch.setattr(devices, "peak_flops", peak)
    monkeypatch.setattr(distribution, "num_devices", lambda: 4)
    logs = drive(Throughput(8), clock, model)
    needed = 2 * 4 * 8 * flops.multiply_adds(model.backbone)
    assert logs["model_flops_utilization"] == pytest.approx(3 / 9 * needed / 4e9)
    assert asked == ["bfloat16"]


def test_given_arithmetic_and_peak(clock):
    speed = Throughput(8, multiply_adds=100, peak_flops=64e3)
    logs = drive(speed, clock)
    utilization = 3 / 9 * 2 * 4 * 8 * 100 / 64e3
    assert logs["model_flops_utilization"] == pytest.approx(utilization)


def test_arithmetic_that_cannot_be_counted_is_said(clock, monkeypatch):
    def fail(*_):
        raise ValueError("Cannot count 'mystery'")

    monkeypatch.setattr(flops, "multiply_adds", fail)
    with pytest.warns(UserWarning, match="'mystery'.*`multiply_adds`"):
        logs = drive(Throughput(8, peak_flops=1e9), clock)
    assert logs == {"steps_per_second": 3 / 9, "images_per_second": 8 * 3 / 9}


def test_a_model_without_a_backbone_trains_on(stub, clock):
    with pytest.warns(UserWarning, match="'backbone'.*`multiply_adds`"):
        history = run(stub, clock, Throughput(8, peak_flops=1e12))
    assert history["steps_per_second"] == pytest.approx([2.0, 2.0])
    assert "model_flops_utilization" not in history


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "`batch_size`.*0"),
        ({"batch_size": 8, "multiply_adds": 1.5}, r"`multiply_adds`.*1\.5"),
        ({"batch_size": 8, "peak_flops": 0}, "`peak_flops`.*0"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        Throughput(**arguments)
