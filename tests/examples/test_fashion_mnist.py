"""The example on Fashion-MNIST, on tiny files in the real format."""

import json
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest
from image_files import write_idx_split
from long_tests import long
from PIL import Image
from scripts import ROOT, run_code, run_script

import keras_imm

pytestmark = [
    pytest.mark.any_backend("training is tested on each"),
    pytest.mark.slow("trains in processes of its own"),
]

sys.path.insert(0, str(ROOT / "examples"))

TINY = [
    *("--patch_size=7", "--hidden_size=16", "--depth=1", "--num_heads=2"),
    *("--batch_size=16", "--steps_per_epoch=4", "--num_samples=80"),
    *("--sampling_steps=1,2", "--evaluate_every=1", "--seed=3"),
]


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    """Bars whose place is their label: 120 images to train on, 60 to compare with."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for prefix, count in (("train", 120), ("t10k", 60)):
        labels = np.arange(count) % 10
        images = rng.integers(0, 60, (count, 28, 28))
        for image, label in zip(images, labels, strict=True):
            image[:, 2 * label : 2 * label + 6] += 180
        write_idx_split(folder, prefix, images, labels, end=".gz")
    return folder


def run(data_dir, out, *flags):
    return run_script(
        "examples/fashion_mnist.py", f"--data_dir={data_dir}", f"--out={out}", *flags
    )


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    return tmp_path_factory.mktemp("fashion")


@pytest.fixture(scope="module")
def result(data_dir, out):
    result = run(data_dir, out, "--steps=8", *TINY)
    assert result.returncode == 0, result.stderr
    return result


def test_it_leaves_its_numbers(result, out):
    metrics = json.loads((out / "metrics.json").read_text())
    assert (metrics["method"], metrics["measure"]) == ("imm", "fashion_mnist_v1")
    assert metrics["backend"] == keras.backend.backend()
    assert metrics["flags"]["seed"] == 3 and metrics["flags"]["learning_rate"] == 2e-3
    assert (metrics["steps"], metrics["measured_seconds_per_step"]) == (8, None)
    assert [row["steps"] for row in metrics["results"]] == [1, 2]
    for row in metrics["results"]:
        ratio = row["frechet"] / metrics["floor"]["frechet"]
        assert row["frechet_ratio"] == pytest.approx(ratio) and ratio > 1
        assert np.isfinite(row["kernel_distance"])
        for name in ("precision", "recall", "agreement"):
            assert 0 <= row[name] <= 1
    assert [entry["epoch"] for entry in metrics["epochs"]] == [1, 2]
    # The last measurement in training is that of the same 80 samples as the table.
    assert metrics["epochs"][-1]["frechet_2_steps"] == pytest.approx(
        metrics["results"][1]["frechet"], rel=1e-3
    )


def test_it_prints_progress_and_table_and_draws(result, out):
    assert "Epoch 2/2" in result.stdout and "frechet_2_steps" in result.stdout
    rows = [line.split() for line in result.stdout.splitlines()]
    (header,) = (i for i, row in enumerate(rows) if row[:2] == ["steps", "Fréchet"])
    measured = json.loads((out / "metrics.json").read_text())["results"]
    for row, expected in zip(rows[header + 1 :], measured, strict=False):
        assert int(row[0]) == expected["steps"]
        assert float(row[1]) == pytest.approx(expected["frechet"], abs=1e-3)
    for name in ("samples.png", "training.png"):
        picture = np.asarray(Image.open(out / name).convert("L"))
        assert min(picture.shape) > 300
        assert picture.std() > 20, f"{name} is blank"


def test_the_saved_model_generates(result, out):
    model = keras.saving.load_model(out / "model.keras")
    assert isinstance(model, keras_imm.FlowMapModel)
    images = model.generate(labels=np.arange(10), num_steps=2, seed=0)
    assert images.shape == (10, 28, 28, 1) and np.isfinite(images).all()


@pytest.mark.one_backend("flags know no backend")
def test_a_finished_run_is_measured_again_and_other_flags_are_refused(
    result, data_dir, out
):
    before = (out / "metrics.json").read_text()
    for flag, message in (
        ("--seed=4", "--seed=3. Received: --seed=4. Give the same flags"),
        ("--b=3.5", "--b=4.0. Received: --b=3.5"),
        ("--steps=12", "--steps=8. Received: --steps=12"),
    ):
        other = run(data_dir, out, "--steps=8", *TINY, flag)
        assert other.returncode != 0
        assert message in other.stderr + other.stdout
        assert "Traceback" not in other.stderr
    assert (out / "metrics.json").read_text() == before
    again = run(data_dir, out, "--steps=8", *TINY)
    assert again.returncode == 0 and "Epoch" not in again.stdout
    results = [json.loads(t) for t in (before, (out / "metrics.json").read_text())]
    for first, second in zip(*(r["results"] for r in results), strict=True):
        assert first["frechet"] == pytest.approx(second["frechet"], rel=1e-5)


@pytest.mark.one_backend("a network and an objective of each backend are tested above")
@pytest.mark.parametrize(
    "flags",
    [
        ["--method=flow_matching", "--guidance=1.5"],
        *long(
            "tests of these parts have it",
            ["--network=unet", "--model_channels=8", "--channel_mult=1,1"],
            ["--dtype=mixed_bfloat16", "--second_time=stride", "--time_scale=1"],
            ["--schedule=cosine", "--parameterization=simple_edm", "--kernel=rbf"],
        ),
        [
            *("--network=unet", "--model_channels=8", "--channel_mult=1,1", "--b=5"),
            *("--parameterization=simple_edm", "--optimizer=radam", "--k=15"),
            *("--augmentation", "--dropout=0.2", "--padding=2", "--min_time=0.006"),
        ],
    ],
)
def test_other_networks_methods_and_dtypes(data_dir, tmp_path, flags):
    result = run(data_dir, tmp_path, "--steps=4", *TINY, *flags)
    assert result.returncode == 0, result.stderr
    model = keras.saving.load_model(tmp_path / "model.keras")
    unet = isinstance(model.backbone, keras_imm.backbones.UNet)
    assert unet == (flags[0] == "--network=unet")
    flow_matching = isinstance(model.objective, keras_imm.objectives.FlowMatching)
    assert flow_matching == (flags[0] == "--method=flow_matching")
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert all(np.isfinite(row["frechet"]) for row in metrics["results"])


# Trains by --minutes at a speed that is said and not measured, and kills itself in the
# second step of the third epoch unless it is not to.
RUN_BY_THE_CLOCK = """
import os, signal, sys
import fashion_mnist as example
from absl import app

example.seconds_per_step = lambda data: {speed}
read = example.ResumableBatches.__getitem__

def read_or_die(self, step):
    if {dies} and (self.epoch, step) == (2, 1):
        os.kill(os.getpid(), signal.SIGKILL)
    return read(self, step)

example.ResumableBatches.__getitem__ = read_or_die
app.run(example.main, [sys.argv[0], *{flags!r}])
"""


def final_state(out):
    """Arrays and losses of the last checkpoint."""
    folder = sorted(pathlib.Path(out, "checkpoints").glob("epoch-*"))[-1]
    with np.load(folder / "training_state.npz") as file:
        arrays = {name: file[name] for name in file.files}
    logs = json.loads((folder / "state.json").read_text())["logs"]
    return arrays, [entry["loss"] for entry in logs]


@pytest.mark.every_backend
def test_a_killed_run_continues_to_the_same_end(data_dir, tmp_path):
    """With the number of steps that was decided before, although it is slower."""
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    flags = [f"--data_dir={data_dir}", f"--out={killed}", "--minutes=0.011", *TINY]
    first = run_code(
        RUN_BY_THE_CLOCK.format(speed=0.03, dies=True, flags=flags), "examples"
    )
    assert first.returncode < 0, first.stderr
    assert "0.0300 s a step: 20 steps in 0.011 minutes" in first.stdout
    assert not (killed / "metrics.json").exists()
    refused = run(data_dir, killed, "--minutes=0.011", *TINY, "--guidance=3")
    assert "Received: --guidance=3.0" in refused.stderr + refused.stdout
    second = run_code(
        RUN_BY_THE_CLOCK.format(speed=0.06, dies=False, flags=flags), "examples"
    )
    assert second.returncode == 0, second.stderr
    assert "Epoch 3/5" in second.stdout and "Epoch 2/5" not in second.stdout
    assert run(data_dir, whole, "--steps=20", *TINY).returncode == 0
    (arrays, losses), (expected, expected_losses) = map(final_state, (killed, whole))
    assert losses == expected_losses and len(losses) == 5
    assert arrays.keys() == expected.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, expected[name], err_msg=name)
    metrics = json.loads((killed / "metrics.json").read_text())
    assert (metrics["steps"], metrics["measured_seconds_per_step"]) == (20, 0.03)
    assert len(metrics["epochs"]) == 5


def test_the_speed_is_measured_on_a_model_that_is_thrown_away(data_dir, tmp_path):
    flags = ["--minutes=0.0001", *TINY]
    result = run(data_dir, tmp_path, *flags)
    assert result.returncode == 0, result.stderr
    kept = json.loads((tmp_path / "run.json").read_text())
    assert kept["steps"] == 4 and kept["measured_seconds_per_step"] > 0


@pytest.mark.one_backend("arithmetic")
def test_the_number_of_steps_is_what_fits_into_the_minutes():
    code = """
import fashion_mnist as example
print(example.steps_in(30, 0.2, 200), example.steps_in(30, 0.2001, 200),
      example.steps_in(0.001, 5, 200), example.steps_in(1, 0.25, 7))
"""
    result = run_code(code, "examples")
    assert result.stdout.split() == ["9000", "8800", "200", "238"], result.stderr


@pytest.mark.one_backend("flags know no backend")
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--steps=5", "--steps_per_epoch=4"], "--steps must be a multiple of --steps"),
        (["--steps=5", "--minutes=1"], "Give --steps or --minutes, not both"),
        (["--batch_size=36"], "--batch_size must be a multiple of 16"),
        (["--sampling_steps=1,a"], "--sampling_steps must be positive integers"),
        (["--minutes=inf"], "--minutes=inf"),
        (["--learning_rate=-1"], "--learning_rate=-1"),
        (
            ["--method=flow_matching", "--flow_matching_share=0.5"],
            "--flow_matching_share is of --method=imm",
        ),
        (["--augmentation"], "--augmentation is of --network=unet"),
        (["--channel_mult=0"], "--channel_mult must be positive integers"),
        (["--effort=tpu"], "should be one of <cpu|gpu>"),
        (["--data_dir=nowhere"], "`data_dir` must hold Fashion-MNIST's IDX files"),
    ],
)
def test_wrong_flags_are_refused_before_anything_is_trained(tmp_path, flags, message):
    result = run_script("examples/fashion_mnist.py", f"--out={tmp_path}", *flags)
    assert result.returncode != 0
    assert message in result.stderr + result.stdout
    assert not list(tmp_path.iterdir())


@pytest.mark.one_backend("flags know no backend")
def test_a_run_that_has_not_begun_leaves_the_folder_to_other_flags(data_dir, tmp_path):
    failed = run(data_dir, tmp_path, "--steps=4", *TINY, "--padding=1")
    assert "`patch_size` must divide" in failed.stderr
    code = f"""
import pathlib, fashion_mnist as example
example.FLAGS(["x", "--steps=4"])
print(example.find_run(pathlib.Path({str(tmp_path)!r}), example.choose_flags()))
"""
    result = run_code(code, "examples")
    assert result.stdout.split() == ["None"], result.stderr


@pytest.mark.one_backend("flags know no backend")
def test_effort_sets_what_is_not_given():
    code = """
import fashion_mnist as example
example.FLAGS(["x", "--effort=gpu", "--depth=3"])
chosen = example.choose_flags()
assert set(example.EFFORTS["gpu"]) == set(example.EFFORTS["cpu"]) <= set(chosen)
print(chosen["dtype"], chosen["depth"], chosen["hidden_size"], chosen["steps"])
"""
    result = run_code(code, "examples")
    assert result.stdout.split() == ["mixed_bfloat16", "3", "256", "None"], (
        result.stderr
    )


@pytest.mark.one_backend("a text")
def test_make_has_it():
    command = ["make", "--silent", "-C", str(ROOT), "help"]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "make fashion" in result.stdout
