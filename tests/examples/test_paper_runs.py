"""The examples that train the paper's recipes, on tiny data in the real formats."""

import json
import os
import pathlib
from unittest import mock

import keras
import kill_and_resume
import numpy as np
import pytest
from scripts import ROOT, run_script

import keras_imm  # noqa: F401, registers what a saved model is made of

SMALL_UNET = {"model_channels": 4, "channel_mult": [1], "num_blocks": 1}
SMALL_DIT = {"hidden_size": 16, "depth": 1, "num_heads": 2}
SHORT = (
    *("--iterations=2", "--steps_per_epoch=1", "--batch_size=8", "--pictures_every=1"),
    *("--num_samples=8", "--sampling_batch=8", "--log_every=1"),
)


def run(example, out, *flags):
    result = run_script(f"examples/{example}.py", f"--out={out}", *flags)
    assert result.returncode == 0, result.stderr
    return result.stdout


def check_results(out, steps, epochs):
    results = json.loads((out / "results.json").read_text())
    assert [row["steps"] for row in results["samples"]] == steps
    assert all(np.isfinite(row["frechet_pooled"]) for row in results["samples"])
    assert np.isfinite(results["held_out_loss"])
    assert [entry["epoch"] for entry in results["epochs"]] == list(range(1, epochs + 1))
    assert results["backend"] == keras.backend.backend()
    names = {f"frechet_pooled_{n}_step{'s' if n > 1 else ''}" for n in steps}
    assert names | {"loss", "learning_rate"} <= results["epochs"][-1].keys()
    assert len(list((out / "checkpoints").glob("step-*"))) == 2
    assert len(list((out / "logs").glob("*tfevents*"))) >= 1
    return results


def write_cifar10(folder):
    """CIFAR-10 as tfds prepares it, of ten images in each of the published files."""
    import tensorflow_datasets as tfds

    binary = folder / "cifar-10-batches-bin"
    binary.mkdir(parents=True)
    rng = np.random.default_rng(0)
    names = [f"data_batch_{i}.bin" for i in range(1, 6)] + ["test_batch.bin"]
    for name in names:
        records = rng.integers(0, 256, (10, 1 + 3 * 32 * 32), dtype=np.uint8)
        records[:, 0] = np.arange(10)
        (binary / name).write_bytes(records.tobytes())
    labels = [f"class_{i}" for i in range(10)]
    (binary / "batches.meta.txt").write_text("\n".join(labels) + "\n")
    builder = tfds.builder("cifar10", data_dir=folder, file_format="array_record")
    with mock.patch.object(
        tfds.download.DownloadManager, "download_and_extract", return_value=folder
    ):
        builder.download_and_prepare()


def test_cifar10_from_tfds(tmp_path):
    write_cifar10(tmp_path / "data")
    out = tmp_path / "out"
    network = f"--network={json.dumps(SMALL_UNET)}"
    printed = run("cifar10", out, f"--data_dir={tmp_path / 'data'}", network, *SHORT)
    assert "CIFAR-10" in printed and "pushforward" in printed
    results = check_results(out, steps=[1, 2], epochs=2)
    assert results["num_samples"] == 8
    picture = keras.utils.img_to_array(
        keras.utils.load_img(out / "samples_0000002.png")
    )
    assert picture.shape == (2 * 34, 8 * 34, 3)  # a row for each number of steps
    model = keras.saving.load_model(out / "model.keras")
    assert model.generate(num_samples=1, num_steps=1).shape == (1, 32, 32, 3)
    other = run_script(
        "examples/cifar10.py",
        *(f"--out={out}", f"--data_dir={tmp_path / 'data'}", network, *SHORT),
        "--batch_size=16",
    )
    assert "`dataset.batch_size` was 8 and is 16" in other.stderr


def test_imagenet_smoke_with_accumulation(tmp_path):
    printed = run(
        "imagenet", tmp_path, "--smoke", "--accumulation_steps=2", "--dtype=float32"
    )
    assert "ImageNet" in printed
    check_results(tmp_path, steps=[1, 2, 4, 8], epochs=2)
    picture = keras.utils.load_img(tmp_path / "samples_0000006.png")
    assert np.asarray(picture).shape == (4 * 10, 16 * 10, 3)
    assert np.asarray(picture).std() > 20


def test_imagenet_needs_a_folder_of_latents(tmp_path):
    missing = run_script("examples/imagenet.py", f"--out={tmp_path}")
    assert missing.returncode != 0 and "--data_dir is needed" in missing.stderr


def test_a_run_killed_at_random_moments_ends_bit_equal(tmp_path):
    """benchmarks/kill_and_resume.py kills more often."""
    environment = {"KERAS_BACKEND": keras.backend.backend(), "PYTHONPATH": str(ROOT)}
    with mock.patch.dict(os.environ, environment):
        counts, arrays, losses, different = kill_and_resume.run(
            example="imagenet", kills=2, epochs=8, folder=pathlib.Path(tmp_path), seed=1
        )
    assert counts["kills"] == 2 and counts["while writing"] == 1
    assert (arrays > 100, losses) == (True, 8)
    assert different == []


@pytest.mark.parametrize("change", ["weights", "losses"])
def test_the_comparison_of_runs_sees_a_difference(tmp_path, change):
    import h5py

    for name in ("a", "b"):
        folder = tmp_path / name / "checkpoints" / "step-000000001"
        folder.mkdir(parents=True)
        with h5py.File(folder / "model.weights.h5", "w") as file:
            file["x"] = np.array([float(name == "b" and change == "weights")])
        loss = float(name == "b" and change == "losses")
        state = {"step": 1, "dataset": None, "logs": [{"epoch": 1, "loss": loss}]}
        (folder / "state.json").write_text(json.dumps(state))
    a, b = (kill_and_resume.contents(tmp_path / name) for name in ("a", "b"))
    assert (a[0] == b[0]) == (change != "weights")
    assert (a[1:] == b[1:]) == (change != "losses")
