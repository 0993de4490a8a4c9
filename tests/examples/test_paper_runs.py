"""The examples that train the paper's recipes, on tiny data in the real formats."""

import json
import os
import pathlib
from unittest import mock

import keras
import kill_and_resume
import numpy as np
import pytest
from scripts import ROOT, run_code, run_script

from keras_imm.latents import shard_files

pytestmark = pytest.mark.any_backend("training is tested on each")

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
    assert len(list((out / "checkpoints").glob("epoch-*"))) == 2
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


@pytest.mark.long("tests/datasets reads it")
@pytest.mark.one_backend("tests/datasets reads it under each backend")
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


def test_cifar10_smoke(tmp_path):
    assert "CIFAR-10" in run("cifar10", tmp_path, "--smoke", "--data_dir=nowhere")
    check_results(tmp_path, steps=[1, 2], epochs=2)
    picture = np.asarray(keras.utils.load_img(tmp_path / "samples_0000006.png"))
    assert picture.shape == (2 * 18, 16 * 18, 3) and picture.std() > 20


def write_latents(folder, mirrored):
    """40 records in two shards, as examples/encode_latents.py leaves them."""
    rng = np.random.default_rng(0)
    shard_files.claim_folder(folder, {"source": "a test"})
    for shard in range(2):
        records = np.zeros(20, shard_files.record_dtype((8, 8, 8), "float16", mirrored))
        for name in ("moments", "mirrored")[: 1 + mirrored]:
            records[name] = np.abs(rng.standard_normal((20, 8, 8, 8)))
        records["label"] = np.arange(20) % 4
        shard_files.write_shard(folder, shard, records)
    description = {"moments_shape": (8, 8, 8), "dtype": "float16"}
    description |= {"mirrored": mirrored, "num_classes": 4, "class_names": None}
    shard_files.write_manifest(folder, 2, description)


def test_imagenet_from_latents_with_accumulation(tmp_path):
    write_latents(tmp_path / "train", mirrored=True)
    write_latents(tmp_path / "val", mirrored=False)
    printed = run(
        "imagenet",
        tmp_path / "out",
        *(f"--data_dir={tmp_path / 'train'}", f"--held_out={tmp_path / 'val'}"),
        *("--flip", "--accumulation_steps=2", "--recipe=imagenet256_dit_s_2"),
        *("--set=image_shape=(8,8,4)", "--set=num_classes=4"),
        f"--network={json.dumps(SMALL_DIT)}",
        *SHORT,
    )
    assert "ImageNet" in printed
    check_results(tmp_path / "out", steps=[8], epochs=2)
    model = keras.saving.load_model(tmp_path / "out" / "model.keras")
    assert model.num_classes == 4 and model.accumulation_steps == 2


@pytest.mark.long("tests/callbacks kills runs")
@pytest.mark.one_backend("tests/callbacks kills runs of each backend")
def test_a_run_killed_at_random_moments_ends_bit_equal(tmp_path):
    """Of imagenet --smoke. benchmarks/kill_and_resume.py kills more often."""
    environment = {"KERAS_BACKEND": keras.backend.backend(), "PYTHONPATH": str(ROOT)}
    with mock.patch.dict(os.environ, environment):
        counts, arrays, losses, different = kill_and_resume.run(
            example="imagenet", kills=1, epochs=6, folder=pathlib.Path(tmp_path), seed=1
        )
    assert counts == {
        **{"after a checkpoint": 1, "while writing": 0},
        "while starting": 0,
    }
    results = json.loads((tmp_path / "killed" / "results.json").read_text())
    assert [row["steps"] for row in results["samples"]] == [1, 2, 4, 8]
    assert len(results["epochs"]) == 6
    assert (arrays > 100, losses) == (True, 6)
    assert different == []


@pytest.mark.parametrize("change", ["weights", "losses"])
def test_the_comparison_of_runs_sees_a_difference(tmp_path, change):
    for name in ("a", "b"):
        folder = tmp_path / name / "checkpoints" / "epoch-000001"
        folder.mkdir(parents=True)
        weights = np.array([float(name == "b" and change == "weights")])
        np.savez(folder / "training_state.npz", x=weights)
        loss = float(name == "b" and change == "losses")
        state = {"step": 1, "dataset": None, "logs": [{"epoch": 1, "loss": loss}]}
        (folder / "state.json").write_text(json.dumps(state))
    a, b = (kill_and_resume.contents(tmp_path / name) for name in ("a", "b"))
    assert (a[0] == b[0]) == (change != "weights")
    assert (a[1:] == b[1:]) == (change != "losses")


@pytest.mark.one_backend("no framework is asked for the memory here")
def test_a_batch_that_does_not_fit_is_computed_in_parts(tmp_path):
    """In those of the run that continues, if there is one."""
    folder = tmp_path / "epoch-000001"
    folder.mkdir()
    state = {"described": {"model.accumulation_steps": 4}}
    (folder / "state.json").write_text(json.dumps(state))
    code = """
import paper_run, keras_imm
from keras_imm import memory
paper_run.FLAGS(["paper_run"])
backbone = keras_imm.backbones.DiT((8, 8, 1), 2, 16, 1, 2)
model = keras_imm.IMM(backbone, group_size=4)
model.compile("adam")
whole = memory.training_memory(backbone, 32)
half = whole.total - 0.5 * whole.activations
paper_run.devices.memory_bytes = lambda: int(half / 0.85) + 1
paper_run.fit_into_memory(model, 32)
print(model.accumulation_steps)
paper_run.devices.memory_bytes = lambda: None
model.accumulation_steps = 3
paper_run.fit_into_memory(model, 32)
print(model.accumulation_steps, repr(paper_run.precision_advice()))
def parts(folder):
    checkpoint = paper_run.callbacks.TrainingCheckpoint(folder)
    paper_run.choose_parts(model, 32, checkpoint)
    return model.accumulation_steps
paper_run.devices.memory_bytes = lambda: 2**40
print(parts("nowhere"), parts(%r), parts("nowhere"))
peaks = {"bfloat16": 989e12, "float32": 494e12}
paper_run.devices.peak_flops = peaks.get
paper_run.devices.device_kind = lambda: "A card"
print(paper_run.precision_advice())
"""
    result = run_code(code % str(tmp_path), "examples")
    assert result.returncode == 0, result.stderr
    lines = result.stdout.strip().splitlines()
    whole = [line for line in lines if "images on a device in 1 parts" in line]
    said, parts, none, continued, advice = (one for one in lines if one not in whole)
    assert said.startswith("32 images on a device in 2 parts of 16: 0.0 GiB expected")
    assert (parts, none, continued) == ("2", "3 ''", "1 4 1")
    assert len(whole) == 2
    assert advice.startswith("A card multiplies faster") and "mixed_bfloat16" in advice
