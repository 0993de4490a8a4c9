"""The digits example from end to end, in a process of its own, with few steps."""

import json

import keras
import numpy as np
import pytest
from PIL import Image
from scripts import run_code, run_script

import keras_imm

FLAGS = [
    "--steps=8",
    "--steps_per_epoch=4",
    "--batch_size=32",
    "--num_samples=80",
    "--sampling_steps=1,2",
    "--evaluate_every=1",
    "--seed=3",
]


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    return tmp_path_factory.mktemp("digits")


@pytest.fixture(scope="module")
def result(out):
    result = run_script("examples/digits.py", *FLAGS, f"--out={out}")
    assert result.returncode == 0, result.stderr
    return result


def test_it_leaves_its_numbers(result, out):
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["method"] == "imm"
    assert metrics["backend"] == keras.backend.backend()
    assert metrics["versions"]["keras"] == keras.__version__
    assert metrics["flags"]["seed"] == 3
    assert [row["steps"] for row in metrics["results"]] == [1, 2]
    for row in metrics["results"]:
        # 64 pixels of standard deviation 0.5: noise is about 16 away from digits.
        assert 1 < row["frechet"] < 64
        assert 0 <= row["agreement"] < 0.5
        assert row["seconds_per_1000_images"] > 0
    assert len(metrics["loss"]) == 2
    assert all(0 < loss < 1 for loss in metrics["loss"])
    assert metrics["during_training"]["epoch"] == [1, 2]
    # The last measurement in training is the one in the table.
    assert metrics["during_training"]["frechet_2_steps"][-1] == pytest.approx(
        metrics["results"][1]["frechet"], rel=1e-3
    )
    seconds = metrics["seconds"]
    assert seconds["training_without_compilation"] == 8 * seconds["per_step"]
    assert seconds["training_without_compilation"] < seconds["fit"] < seconds["total"]


def test_it_prints_the_progress_and_the_table(result, out):
    assert "Epoch 2/2" in result.stdout and "frechet_2_steps" in result.stdout
    rows = [line.split() for line in result.stdout.splitlines()]
    (header,) = (i for i, row in enumerate(rows) if row[:2] == ["steps", "Fréchet"])
    metrics = json.loads((out / "metrics.json").read_text())
    for row, measured in zip(rows[header + 1 :], metrics["results"], strict=False):
        assert int(row[0]) == measured["steps"]
        assert float(row[1]) == pytest.approx(measured["frechet"], abs=1e-4)
        assert float(row[2]) == pytest.approx(measured["agreement"], abs=1e-4)


def test_it_draws_samples_and_training(result, out):
    for name in ("samples.png", "training.png"):
        picture = np.asarray(Image.open(out / name).convert("L"))
        assert min(picture.shape) > 300
        assert picture.std() > 20, f"{name} is blank"


def test_the_saved_model_generates(result, out):
    model = keras.saving.load_model(out / "model.keras")
    assert isinstance(model, keras_imm.IMM)
    images = model.generate(labels=np.arange(10), num_steps=2, seed=0)
    assert images.shape == (10, 8, 8, 1)
    assert np.isfinite(images).all()


@pytest.mark.one_backend("flags know no backend")
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--steps=5", "--steps_per_epoch=4"], "--steps must be a multiple of --steps"),
        (["--batch_size=2000"], "must be at most 1797, the number of images"),
        (["--sampling_steps=1,a"], "must be positive integers separated by commas"),
        (["--sampling_steps=0"], "must be positive integers separated by commas"),
        (["--seed=-1"], "a non-negative integer"),
    ],
)
def test_wrong_flags_are_refused_before_anything_is_trained(flags, message):
    code = f"import digits; digits.FLAGS({['digits.py', *flags]!r})"
    result = run_code(code, "examples")
    assert result.returncode != 0
    assert message in result.stderr


@pytest.mark.one_backend("flags know no backend")
def test_a_batch_without_all_roles_is_refused_before_anything_is_trained(tmp_path):
    out = tmp_path / "out"
    result = run_script("examples/digits.py", "--batch_size=36", f"--out={out}")
    assert result.returncode != 0 and not out.exists()
    assert "--batch_size must be a multiple of 16" in result.stdout + result.stderr


def test_the_number_of_images_is_that_of_the_data():
    code = (
        "import digits_data; print(len(digits_data.load()[0]), digits_data.NUM_IMAGES)"
    )
    count, stated = run_code(code, "examples").stdout.split()
    assert count == stated


@pytest.mark.one_backend("a schedule of Keras")
def test_the_learning_rate_rises_and_falls_to_zero():
    code = """
import digits
digits.FLAGS(["digits.py", "--steps=1000", "--warmup_steps=200", "--learning_rate=4"])
rate = digits.learning_rate()
print([float(rate(step)) for step in (0, 100, 200, 600, 1000)])
digits.FLAGS(["digits.py", "--steps=1", "--learning_rate=4"])
print([float(digits.learning_rate()(0))])
"""
    result = run_code(code, "examples")
    assert result.returncode == 0, result.stderr
    long, short = map(json.loads, result.stdout.splitlines())
    assert long == pytest.approx([0, 2, 4, 2, 0], abs=1e-5)
    assert short == [4]
