"""Generated against held-out images: what is compared, kept and saved."""

import json
import os

import keras
import numpy as np
import pytest

from keras_imm import distribution
from keras_imm.callbacks import QualityMonitor, TensorBoard


def held_out(count=10, shape=(2, 3, 1)):
    rng = np.random.default_rng(0)
    return rng.normal(size=(count, *shape)).astype("float32")


def test_the_default_is_the_frechet_distance_of_pixels(stub):
    """The stub's samples are the same in all pixels, so a closed form is at hand."""
    images = held_out()
    labels = np.arange(10)
    quality = QualityMonitor(images, labels=labels, num_steps=2)
    (distance,) = stub.run(quality).history["frechet_2_steps"]

    real = images.reshape(10, 6).astype("float64")
    ones = np.ones(6)
    values = labels / 10 - 2
    # The covariance of the samples is v 11ᵀ, of rank one: the root's trace is
    # sqrt(v 1ᵀ Σ 1).
    variance = values.var(ddof=1)
    covariance = np.cov(real, rowvar=False)
    expected = (
        np.sum((real.mean(0) - values.mean()) ** 2)
        + np.trace(covariance)
        + 6 * variance
        - 2 * np.sqrt(variance * ones @ covariance @ ones)
    )
    assert distance == pytest.approx(expected, rel=1e-5)


def test_features_are_taken_of_both_and_of_the_held_out_once(stub):
    seen = []

    def features(images):
        seen.append(len(images))
        return images.mean(axis=(1, 2))

    def gap(generated, real):
        assert generated.shape == (3, 1) and real.shape == (10, 1)
        return abs(generated.mean() - real.mean())

    images = held_out()
    quality = QualityMonitor(images, gap, features, num_samples=3, num_steps=1)
    history = stub.run(quality, epochs=2).history
    assert history["gap_1_step"] == pytest.approx([1 + images.mean()] * 2, rel=1e-5)
    assert sorted(seen) == [3, 3, 10]

    again = QualityMonitor(
        metric=gap,
        features=features,
        held_out_features=features(images),
        num_samples=3,
        num_steps=1,
        name="apart",
    )
    assert stub.run(again).history["apart_1_step"] == pytest.approx(
        history["gap_1_step"][:1]
    )


def test_a_metric_without_features_gets_the_images(stub):
    def shapes(generated, real):
        return generated.shape == (2, 2, 3, 1) and real.shape == (10, 2, 3, 1)

    quality = QualityMonitor(held_out(), shapes, num_samples=2, num_steps=1)
    assert stub.run(quality).history["shapes_1_step"] == [1.0]


class Scores:
    """A metric that returns what it is told to."""

    def __init__(self, *scores):
        self.scores = iter(scores)

    def __call__(self, generated, real):
        return next(self.scores)


@pytest.mark.parametrize(("mode", "best", "step"), [("min", 1.0, 6), ("max", 4.0, 8)])
def test_the_best_is_kept_and_saved(stub, tmp_path, monkeypatch, mode, best, step):
    saved = []
    monkeypatch.setattr(
        stub, "save", lambda path: (saved.append(path), path.write_text("model"))
    )
    quality = QualityMonitor(
        held_out(),
        Scores(3, np.nan, 1, 4, 2),
        num_samples=2,
        num_steps=1,
        mode=mode,
        name="score",
        save_best=tmp_path / "new" / "best.keras",
    )
    stub.run(quality, epochs=5)
    assert quality.best == {"score_1_step": best}
    assert quality.best_step == {"score_1_step": step}
    np.testing.assert_array_equal(quality.history["score_1_step"], [3, np.nan, 1, 4, 2])
    assert len(saved) == 2
    files = {path.name for path in (tmp_path / "new").iterdir()}
    assert files == {"best.keras", "best.keras.json"}
    record = json.loads((tmp_path / "new" / "best.keras.json").read_text())
    assert record.pop("held_out")
    assert record == {"score_1_step": best, "step": step, "mode": mode}


def test_the_first_number_of_steps_decides_which_model_is_saved(stub, tmp_path):
    path = tmp_path / "best.keras"
    quality = QualityMonitor(
        held_out(),
        Scores(*(1, 5), *(2, 4)),  # in two steps, then in one
        num_samples=2,
        num_steps=(2, 1),
        name="score",
        save_best=path,
    )
    stub.run(quality, epochs=2)
    assert quality.best == {"score_2_steps": 1.0, "score_1_step": 4.0}
    assert quality.best_step == {"score_2_steps": 2, "score_1_step": 4}
    record = json.loads(path.with_name("best.keras.json").read_text())
    assert record["score_2_steps"] == 1.0 and record["step"] == 2
    saved = keras.models.load_model(
        path, custom_objects={type(stub).__name__: keras.Sequential}
    )
    assert int(keras.ops.convert_to_numpy(saved.optimizer.iterations)) == 2


def test_a_run_that_continues_does_not_replace_a_better_model(stub, tmp_path):
    path = tmp_path / "best.keras"

    def fit(*scores):
        quality = QualityMonitor(
            held_out(),
            Scores(*scores),
            num_samples=2,
            num_steps=1,
            name="score",
            save_best=path,
        )
        stub.run(quality, epochs=len(scores))
        return quality

    fit(3.0, 2.0)
    before = path.read_bytes()
    quality = fit(5.0)
    assert path.read_bytes() == before
    assert (quality.best["score_1_step"], quality.best_step["score_1_step"]) == (2.0, 4)
    assert quality.history["score_1_step"] == [5.0]
    assert fit(1.0).best_step == {"score_1_step": 8}
    assert path.read_bytes() != before
    stub.optimizer.iterations.assign(0)  # a new run
    assert fit(9.0).best == {"score_1_step": 9.0}


def scored(path, *scores, images=None, **arguments):
    """A monitor of the scores that saves the best at a path."""
    settings = {"num_samples": 2, "num_steps": 1, "name": "score", **arguments}
    if "features" not in settings:
        settings["held_out"] = held_out() if images is None else images
    return QualityMonitor(metric=Scores(*scores), save_best=path, **settings)


FEATURES = np.ones((4, 2))


@pytest.mark.parametrize(
    ("before", "now"),
    [
        ({}, {"name": "other"}),
        ({}, {"mode": "max"}),
        ({}, {"num_steps": 2}),
        ({}, {"images": 1 + held_out()}),
        ({}, {"images": held_out().astype("float64")}),
        (
            {"features": len, "held_out_features": FEATURES},
            {"features": len, "held_out_features": FEATURES + 1},
        ),
    ],
)
def test_the_best_of_another_measurement_is_not_recalled(stub, tmp_path, before, now):
    path = tmp_path / "best.keras"
    first = scored(path, 2.0, **before)
    stub.run(first)
    step_before = stub.optimizer.iterations + 0
    monitor = scored(path, 5.0, **now)
    with pytest.warns(UserWarning, match=r"best\.keras\.json' is about another"):
        stub.run(monitor)
    assert list(monitor.best.values()) == [5.0]
    record = json.loads(path.with_name("best.keras.json").read_text())
    assert record["step"] == int(step_before) + 2
    # What was saved last is recalled.
    again = scored(path, 5.0, **now)
    stub.run(again)
    assert list(again.best_step.values()) == [record["step"]]


def test_given_features_that_are_the_same_are_recalled(stub, tmp_path):
    arguments = {"features": len, "held_out_features": FEATURES}
    stub.run(scored(tmp_path / "best.keras", 2.0, **arguments))
    monitor = scored(tmp_path / "best.keras", 5.0, **arguments)
    stub.run(monitor)
    assert monitor.best == {"score_1_step": 2.0}


def test_a_record_without_its_model_is_not_recalled(stub, tmp_path):
    path = tmp_path / "best.keras"
    stub.run(scored(path, 2.0))
    path.unlink()
    monitor = scored(path, 5.0)
    stub.run(monitor)
    assert monitor.best == {"score_1_step": 5.0}
    assert path.exists()


@pytest.mark.parametrize("content", ["", "[]", '{"score_1_step": 2.0,'])
def test_a_record_that_cannot_be_read_is_named(stub, tmp_path, content):
    path = tmp_path / "best.keras"
    stub.run(scored(path, 2.0))
    path.with_name("best.keras.json").write_text(content)
    with pytest.raises(ValueError, match=r"best\.keras\.json'.*cannot be read.*Remove"):
        stub.run(scored(path, 5.0))


def test_files_are_on_the_disk_before_they_have_their_names(
    stub, tmp_path, monkeypatch
):
    events = []
    fsync, replace = os.fsync, os.replace

    def noted_fsync(descriptor):
        events.append(("fsync", os.fstat(descriptor).st_ino))
        fsync(descriptor)

    def noted_replace(source, target):
        events.append(("replace", os.stat(source).st_ino))
        replace(source, target)

    path = tmp_path / "best.keras"
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", noted_fsync)
        patch.setattr(os, "replace", noted_replace)
        stub.run(scored(path, 2.0))
    files = [p.stat().st_ino for p in (path, path.with_name("best.keras.json"))]
    assert events[-5:] == [
        *(("fsync", file) for file in files),
        *(("replace", file) for file in files),
        ("fsync", tmp_path.stat().st_ino),
    ]


def test_a_save_that_fails_leaves_the_last_best_model_alone(
    stub, tmp_path, monkeypatch
):
    path = tmp_path / "best.keras"
    stub.run(scored(path, 2.0))
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}

    def fill_the_disk(path):
        path.write_text("half")
        raise OSError("No space left on device")

    monkeypatch.setattr(stub, "save", fill_the_disk)
    with pytest.raises(OSError, match="No space"):
        stub.run(scored(path, 1.0))
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_the_saved_model_is_the_best_one(stub, tmp_path):
    quality = QualityMonitor(
        held_out(),
        Scores(1.0, 2.0),
        num_samples=2,
        num_steps=1,
        name="score",
        save_best=tmp_path / "best.keras",
    )
    weights = []
    keep = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: weights.append(stub.get_weights())
    )
    stub.run(quality, keep, epochs=2)
    saved = keras.models.load_model(
        tmp_path / "best.keras", custom_objects={type(stub).__name__: keras.Sequential}
    )
    np.testing.assert_allclose(saved.get_weights()[0], weights[0][0])
    assert np.abs(weights[0][0] - weights[1][0]).max() > 1e-4


def test_only_the_chief_saves(stub, tmp_path, monkeypatch):
    monkeypatch.setattr(distribution, "is_chief", lambda: False)
    path = tmp_path / "best.keras"
    quality = QualityMonitor(held_out(), num_samples=3, num_steps=1, save_best=path)
    stub.run(quality)
    assert quality.best and not list(tmp_path.iterdir())


def test_samples_that_are_not_finite_do_not_end_training(stub, monkeypatch):
    monkeypatch.setattr(
        stub, "generate", lambda **_: np.full((2, 2, 3, 1), np.nan, "float32")
    )
    quality = QualityMonitor(held_out(), num_samples=2, num_steps=1)
    history = stub.run(quality).history
    assert np.isnan(history["frechet_1_step"]).all()
    assert quality.best == {}


def test_held_out_images_of_another_shape_are_named(stub):
    quality = QualityMonitor(held_out(shape=(3, 2, 1)), num_samples=2)
    with pytest.raises(ValueError, match=r"`held_out`.*2, 3, 1.*\(10, 3, 2, 1\)"):
        stub.run(quality)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"held_out": None}, "exactly one of `held_out` and `held_out_features`"),
        ({"held_out_features": np.ones((4, 2))}, "exactly one of"),
        (
            {"held_out": None, "held_out_features": np.ones((4, 2))},
            "`held_out_features` needs `features`",
        ),
        ({"held_out": np.ones(4)}, r"`held_out`.*shape \(4,\)"),
        ({"held_out": np.ones((4, 2), "uint8")}, "`held_out` must be floats.*uint8"),
        ({"held_out": np.ones((4, 32, 32, 3))}, r"1024.*`features`.*32, 32, 3"),
        ({"metric": 3}, "`metric`.*3"),
        ({"metric": lambda a, b: 0.0}, "`name`.*<lambda>"),
        ({"features": "inception"}, "`features`.*'inception'"),
        ({"mode": "auto"}, "`mode`.*'auto'"),
        ({"save_best": "best.h5"}, r"`save_best`.*best\.h5"),
        ({"num_samples": None}, "exactly one of `labels` and `num_samples`"),
        ({"tensorboard": TensorBoard}, "`tensorboard`"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        QualityMonitor(**{"held_out": held_out(), "num_samples": 2, **arguments})
