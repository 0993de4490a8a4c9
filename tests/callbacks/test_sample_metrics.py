"""Metrics of samples reach the logs, at the epochs and with the arguments asked for."""

import csv

import keras
import numpy as np
import pytest

import keras_imm
from keras_imm.callbacks import SampleMetrics


def mean(samples, labels):
    return samples.mean()


def test_results_reach_the_history(stub):
    quality = SampleMetrics({"mean": mean}, labels=[0, 5], num_steps=(1, 4), freq=2)
    history = stub.run(quality, epochs=5).history
    np.testing.assert_allclose(history["mean_1_step"], [-0.75, -0.75], atol=1e-6)
    np.testing.assert_allclose(history["mean_4_steps"], [-3.75, -3.75], atol=1e-6)
    assert len(history["loss"]) == 5
    assert quality.history == {
        "epoch": [2, 4],
        "step": [4, 8],
        "mean_1_step": history["mean_1_step"],
        "mean_4_steps": history["mean_4_steps"],
    }


def test_a_metric_gets_the_samples_with_their_labels(stub):
    def label_error(samples, labels):
        return np.abs(samples[:, 0, 0, 0] + 2 - labels / 10).max()

    quality = SampleMetrics({"error": label_error}, labels=range(10), num_steps=2)
    assert stub.run(quality).history["error_2_steps"] == [pytest.approx(0, abs=1e-6)]


def test_a_second_fit_starts_its_own_history(stub):
    quality = SampleMetrics({"mean": mean}, num_samples=3, num_steps=1)
    stub.run(quality, epochs=2)
    stub.run(quality)
    assert quality.history["epoch"] == [1]


def test_callbacks_later_in_the_list_see_the_results(stub, tmp_path):
    quality = SampleMetrics({"mean": mean}, num_samples=3, num_steps=1)
    stop = keras.callbacks.EarlyStopping("mean_1_step", mode="min", patience=1)
    log = keras.callbacks.CSVLogger(tmp_path / "log.csv")
    history = stub.run(quality, stop, log, epochs=9).history
    assert len(history["loss"]) == 2
    rows = list(csv.DictReader((tmp_path / "log.csv").open()))
    assert [float(row["mean_1_step"]) for row in rows] == [-1, -1]


def test_sampling_passes_its_arguments_on(stub):
    quality = SampleMetrics(
        {"mean": mean},
        num_samples=3,
        num_steps=[2],
        guidance_scale=1.5,
        guidance_interval=[0.1, 0.8],
        sampler="restart",
        time_grid="edm",
        weights="raw",
        batch_size=2,
        seed=7,
    )
    stub.run(quality)
    (call,) = stub.calls
    draws = np.random.default_rng(7).standard_normal((2, 3, 2, 3, 1), "float32")
    np.testing.assert_array_equal(call.pop("noise"), draws)  # all that restart takes
    assert isinstance(call.pop("sampler"), keras_imm.samplers.Restart)
    assert call == {
        "labels": None,
        "num_samples": 3,
        "num_steps": 2,
        "guidance_scale": 1.5,
        "guidance_interval": (0.1, 0.8),
        "time_grid": "edm",
        "weights": "raw",
        "batch_size": 2,
        "verbose": 0,
    }


def test_the_noise_is_the_same_each_time_and_the_seed_decides_it(stub):
    for seed in (0, 1):
        callback = SampleMetrics({"m": mean}, num_samples=500, num_steps=2, seed=seed)
        stub.run(callback, epochs=2)
    first, again, other, _ = (call["noise"] for call in stub.calls)
    np.testing.assert_array_equal(first, again)
    assert abs(np.corrcoef(first.ravel(), other.ravel())[0, 1]) < 0.1
    assert first.mean() == pytest.approx(0, abs=0.1)
    assert first.std() == pytest.approx(1, abs=0.1)


class Batches(keras.callbacks.Callback):
    """The step at which each sampling falls, as seen from within `fit`."""

    def __init__(self, model):
        super().__init__()
        self.model_calls, self.seen = model.calls, []

    def on_train_batch_end(self, batch, logs=None):
        self.seen.append(len(self.model_calls))

    def on_epoch_end(self, epoch, logs=None):
        self.seen.append(len(self.model_calls))


def test_every_n_steps_falls_within_epochs_and_at_their_ends(stub):
    quality = SampleMetrics(
        {"m": mean}, num_samples=1, num_steps=(1, 2), every_n_steps=3
    )
    order = Batches(stub)
    history = stub.run(quality, order, epochs=3).history
    # Steps 1, 2, epoch; 3, 4, epoch; 5, 6, epoch: two calls after the 3rd and the 6th.
    assert order.seen == [0, 0, 0, 0, 2, 2, 2, 2, 4]
    assert quality.history["step"] == [3, 6]
    assert quality.history["epoch"] == [2, 3]
    assert history["m_1_step"] == [-1, -1]  # in the logs of epochs 2 and 3
    assert len(history["loss"]) == 3


def test_a_second_fit_counts_on(stub):
    quality = SampleMetrics({"m": mean}, num_samples=1, num_steps=1, every_n_steps=3)
    stub.run(quality)
    assert quality.history == {}
    stub.run(quality, epochs=2)
    assert quality.history["step"] == [3, 6]


def test_several_steps_per_execution(stub):
    if keras.backend.backend() == "torch":
        pytest.skip("Keras has no steps_per_execution under torch")
    stub.compile("sgd", "mse", steps_per_execution=2)
    quality = SampleMetrics({"m": mean}, num_samples=1, num_steps=1, every_n_steps=3)
    x = np.ones((12, 1), "float32")
    stub.fit(x, x, batch_size=2, epochs=1, verbose=0, callbacks=[quality])
    assert quality.history["step"] == [4, 6]  # 3 falls in the execution of 3 and 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "exactly one of `labels` and `num_samples`"),
        ({"labels": [1], "num_samples": 1}, "exactly one of"),
        ({"labels": []}, r"`labels`.*\(0,\)"),
        ({"labels": [[1]]}, r"`labels`.*\(1, 1\)"),
        ({"labels": [0.5]}, "`labels`.*float64"),
        ({"num_samples": 0}, "`num_samples`.*0"),
        ({"num_samples": 2, "num_steps": 0}, "`num_steps`.*0"),
        ({"num_samples": 2, "num_steps": (1, 2.5)}, r"`num_steps`.*2\.5"),
        ({"num_samples": 2, "num_steps": ()}, r"`num_steps`.*empty.*\(\)"),
        ({"num_samples": 2, "freq": -1}, "`freq`.*-1"),
        ({"num_samples": 2, "every_n_steps": 0}, "`every_n_steps`.*0"),
        (
            {"num_samples": 2, "every_n_steps": 5, "freq": 1},
            "at most one of `freq` and `every_n_steps`.*freq=1, every_n_steps=5",
        ),
        ({"num_samples": 2, "tensorboard": "runs"}, "`tensorboard`.*'runs'"),
        ({"num_samples": 2, "batch_size": 0}, "`batch_size`.*0"),
        ({"num_samples": 2, "seed": None}, "`seed`.*None"),
        ({"num_samples": 2, "time_grid": "nonsense"}, "`time_grid`.*'nonsense'"),
        ({"num_samples": 2, "time_grid": ["edm"]}, r"`time_grid`.*\['edm'\]"),
        (
            {"num_samples": 2, "time_grid": [2.0, 1.0], "num_steps": 2},
            r"`time_grid` as a list of 2 makes 3 steps.*num_steps=2",
        ),
        (
            {"num_samples": 2, "time_grid": [1.4]},
            r"`time_grid` as a list of 1 makes 2 steps.*num_steps=1",
        ),
        ({"num_samples": 2, "sampler": "ddim"}, "`sampler`.*'ddim'"),
        ({"num_samples": 2, "weights": "mean"}, "`weights`.*'mean'"),
        ({"num_samples": 2, "guidance_interval": (0, 1)}, "`guidance_interval`.*None"),
        ({"num_samples": 2, "guidance_scale": "x"}, "`guidance_scale`.*'x'"),
        ({"num_samples": 2, "guidance_scale": np.nan}, "`guidance_scale`.*nan"),
        ({"num_samples": 2, "metrics": {}}, r"`metrics`.*\{\}"),
        ({"num_samples": 2, "metrics": {"fid": 3}}, "`metrics`.*'fid': 3"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        SampleMetrics(**{"metrics": {"mean": mean}, **arguments})
