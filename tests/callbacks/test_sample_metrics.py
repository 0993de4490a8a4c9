"""Metrics of samples reach the logs, at the epochs and with the arguments asked for."""

import csv

import keras
import numpy as np
import pytest

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


def test_sampling_is_seeded_and_passes_its_arguments_on(stub):
    quality = SampleMetrics(
        {"mean": mean},
        num_samples=3,
        num_steps=[2],
        guidance_scale=1.5,
        sampler="restart",
        time_grid="edm",
        weights="raw",
        batch_size=2,
        seed=7,
    )
    stub.run(quality, epochs=2)
    assert (
        stub.calls
        == [
            {
                "labels": None,
                "num_samples": 3,
                "num_steps": 2,
                "guidance_scale": 1.5,
                "sampler": "restart",
                "time_grid": "edm",
                "weights": "raw",
                "seed": 7,
                "batch_size": 2,
                "verbose": 0,
            }
        ]
        * 2
    )


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
        ({"num_samples": 2, "batch_size": 0}, "`batch_size`.*0"),
        ({"num_samples": 2, "seed": None}, "`seed`.*None"),
        ({"num_samples": 2, "metrics": {}}, r"`metrics`.*\{\}"),
        ({"num_samples": 2, "metrics": {"fid": 3}}, "`metrics`.*'fid': 3"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        SampleMetrics(**{"metrics": {"mean": mean}, **arguments})
