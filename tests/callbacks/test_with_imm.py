"""The callbacks on the real model: what they see, and that training does not notice."""

import keras
import numpy as np
import pytest
from keras import ops
from PIL import Image

from keras_imm.callbacks import (
    LearningRate,
    QualityMonitor,
    SampleGrid,
    SampleMetrics,
    TensorBoard,
    Throughput,
)

pytestmark = pytest.mark.any_backend("sampling is tested on each")


def train(model, data, *callbacks, epochs=3):
    return model.fit(
        *data,
        batch_size=8,
        epochs=epochs,
        shuffle=False,
        verbose=0,
        callbacks=list(callbacks),
    ).history


@pytest.mark.every_backend
def test_training_goes_on_bit_for_bit_as_without_the_callbacks(
    make_model, images, labels, tmp_path
):
    def model():
        return make_model(compile_options={}, label_dropout=0.5, dropout=0.1)

    plain = model()
    losses = train(plain, (images, labels))

    # Every epoch has four steps; samplings fall on steps 3, 6, 9 and 12.
    watched = model()
    board = TensorBoard(tmp_path / "board", every_n_steps=2)
    watching = {"labels": [0, 1, 2], "every_n_steps": 3, "tensorboard": board}
    quality = QualityMonitor(images, save_best=tmp_path / "best.keras", **watching)
    grid = SampleGrid(tmp_path / "{step}.png", **watching)
    each_epoch = SampleGrid(
        tmp_path / "epoch-{epoch}.png", labels=[1], num_steps=3, sampler="restart"
    )
    history = train(
        watched,
        (images, labels),
        quality,
        grid,
        each_epoch,
        Throughput(8),
        LearningRate(),
        board,
    )
    assert history["loss"] == losses["loss"]
    for a, b in zip(
        plain.variables + plain.optimizer.variables,
        watched.variables + watched.optimizer.variables,
        strict=True,
    ):
        np.testing.assert_array_equal(
            ops.convert_to_numpy(a), ops.convert_to_numpy(b), err_msg=a.path
        )

    assert quality.history["step"] == [3, 6, 9, 12]
    assert quality.history["epoch"] == [1, 2, 3, 3]
    assert history["frechet_2_steps"] == [
        quality.history["frechet_2_steps"][i] for i in (0, 1, 3)
    ]
    pictures = {path.stem for path in tmp_path.glob("*.png")}
    assert pictures == {"3", "6", "9", "12", "epoch-1", "epoch-2", "epoch-3"}
    # The best of the model, saved while an epoch ran, is what had been measured.
    best = keras.models.load_model(tmp_path / "best.keras")
    assert (
        int(ops.convert_to_numpy(best.optimizer.iterations))
        == quality.best_step["frechet_1_step"]
    )
    quality.set_model(best)
    key = "frechet_1_step"
    measured = quality.metrics["frechet"](quality.generate()[1], None)
    assert measured == pytest.approx(quality.best[key], rel=1e-4)
    assert quality.best[key] == min(quality.history[key])


@pytest.mark.slow("trains or builds for seconds")
def test_within_an_epoch_the_weights_are_those_of_the_step(make_model, images, labels):
    """Samples after step 3 of an epoch are those of a training of three steps."""
    seen = {}

    def keep(samples, _):
        seen[len(seen)] = samples
        return 0.0

    arguments = {"labels": [2, 0], "num_steps": 2, "every_n_steps": 3}
    watching = SampleMetrics({"keep": keep}, **arguments)
    train(make_model(compile_options={}), (images, labels), watching, epochs=1)

    model = make_model(compile_options={})
    train(model, (images[:24], labels[:24]), epochs=1)
    noise = np.random.default_rng(0).standard_normal((2, 4, 4, 1), "float32")
    expected = model.generate([2, 0], noise=noise, num_steps=2)
    np.testing.assert_allclose(seen[0], expected, atol=1e-6)
    raw = model.generate([2, 0], noise=noise, num_steps=2, weights="raw")
    assert np.abs(seen[0] - raw).max() > 1e-4


@pytest.mark.parametrize("sampler", ["restart", "heun"])
def test_each_number_of_steps_is_sampled_with_all_draws_of_its_noise(
    make_model, sampler
):
    model = make_model(compile_options={})
    watching = SampleMetrics(
        {"m": lambda *_: 0.0}, labels=[2, 0], num_steps=(1, 3), seed=5, sampler=sampler
    )
    watching.set_model(model)
    samples, again = watching.generate(), watching.generate()
    assert list(samples) == [1, 3]
    for steps in (1, 3):
        np.testing.assert_array_equal(samples[steps], again[steps])
        draws = steps if sampler == "restart" else 1
        noise = np.random.default_rng(5).standard_normal((draws, 2, 4, 4, 1), "float32")
        expected = model.generate([2, 0], noise=noise, num_steps=steps, sampler=sampler)
        np.testing.assert_allclose(samples[steps], expected, atol=1e-6)


@pytest.mark.parametrize(
    ("num_classes", "arguments", "message"),
    [
        (3, {"labels": [0, 7]}, r"`labels` must be in \[0, 3\].*7"),
        (3, {"labels": [-1]}, r"`labels` must be in \[0, 3\].*-1"),
        (0, {"labels": [0]}, "`labels` needs.*`num_classes`"),
        (0, {"num_samples": 1, "guidance_scale": 2.0}, "`guidance_scale` needs.*2.0"),
        (
            3,
            {"num_samples": 1, "time_grid": [1.0, 2.0], "num_steps": 3},
            r"`time_grid`.*falling.*\[1.0, 2.0\]",
        ),
        (
            0,
            {"num_samples": 1, "guidance_scale": 2.0, "guidance_interval": (0.1, 0.9)},
            "`guidance_scale` needs.*2.0",
        ),
    ],
)
def test_what_the_model_cannot_sample_is_refused_before_training(
    make_model, images, labels, num_classes, arguments, message
):
    model = make_model(compile_options={}, num_classes=num_classes)
    data = (images, labels) if num_classes else (images,)
    watching = SampleMetrics({"m": lambda *_: 0.0}, freq=100, **arguments)
    with pytest.raises(ValueError, match=message):
        train(model, data, watching, epochs=1)
    assert int(ops.convert_to_numpy(model.optimizer.iterations)) == 0


def test_what_the_model_can_sample_is_not_refused(make_model, images, labels):
    def mean(samples, _):
        return samples.mean()

    watching = SampleMetrics(
        {"m": mean}, labels=[0, 3], guidance_scale=2, time_grid=[1.4], num_steps=2
    )
    history = train(
        make_model(compile_options={}), (images, labels), watching, epochs=1
    )
    assert np.isfinite(history["m_2_steps"]).all()


# Two samples in two steps of the model with the weights of `make_model`.
# fmt: off
BYTES = [
    255, 0, 101, 0, 216, 255, 146, 255,
    125, 0, 138, 0, 50, 255, 153, 255,
    165, 0, 186, 0, 238, 218, 0, 202,
    193, 0, 60, 115, 167, 142, 150, 255,
]
# fmt: on


def test_grids_of_the_same_weights_agree_across_backends(make_model, tmp_path):
    grid = SampleGrid(tmp_path / "a.png", labels=[0, 2], num_steps=2, seed=3)
    grid.set_model(make_model(compile_options={}))
    grid.on_samples(grid.generate(), 1, 0, {})
    picture = np.asarray(Image.open(tmp_path / "a.png")).astype(int)
    inner = np.concatenate([picture[1:5, 1:5], picture[1:5, 7:11]])
    assert np.abs(inner.ravel() - BYTES).max() <= 1


def test_all_draws_are_the_callbacks_own(make_model):
    """Restart draws at every step: from the seed, not from the model's stream."""
    model = make_model(compile_options={})
    before = ops.convert_to_numpy(model.seed_generator.state)
    arguments = {"labels": [2, 0], "num_steps": 3, "sampler": "restart"}
    samples = []
    for seed in (0, 0, 1):
        watching = SampleMetrics({"m": lambda *_: 0.0}, seed=seed, **arguments)
        watching.set_model(model)
        samples.append(watching.generate()[3])
    np.testing.assert_array_equal(samples[0], samples[1])
    assert np.abs(samples[0] - samples[2]).max() > 1e-2
    after = ops.convert_to_numpy(model.seed_generator.state)
    np.testing.assert_array_equal(before, after)
    draws = np.random.default_rng(0).standard_normal((3, 2, 4, 4, 1), "float32")
    expected = model.generate([2, 0], 2, 3, sampler="restart", noise=draws)
    np.testing.assert_allclose(samples[0], expected, atol=1e-6)
