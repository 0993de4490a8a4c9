"""Exports as TF Serving reads them: versions, loaders, and what is refused."""

import pathlib
import subprocess
import sys

import numpy as np
import pytest
from served_models import LABELS, SEEDS, SIGNATURES, on_tensorflow, rows

from keras_imm.serving import export_saved_model


def test_the_layout_is_that_of_tf_serving(exported):
    assert exported.name == "1"
    names = {path.name for path in exported.parent.iterdir()}
    assert names == {"1", "models.config", "batching_parameters.txt"}
    assert (exported / "saved_model.pb").stat().st_size < 2_000_000
    config = (exported.parent / "models.config").read_text()
    assert 'name: "digits"' in config and 'base_path: "/models/digits"' in config


def test_a_process_without_keras_answers_by_both_loaders(answers):
    assert answers["keras"] == []
    assert answers["signatures"] == answers["warmed"] == SIGNATURES
    keys = [key for key in answers if key.startswith("load/")]
    assert len(keys) == len(SIGNATURES)
    for key in keys:
        other = answers[key.replace("load/", "session/")]
        if answers[key].dtype.kind == "f":
            np.testing.assert_allclose(answers[key], other, atol=1e-5)
        elif answers[key].dtype == np.uint8:
            difference = np.abs(answers[key].astype(int) - other.astype(int))
            assert difference.max() <= 1
        else:
            assert len(answers[key]) == len(other) == 7


@on_tensorflow
def test_openvino_reads_generate_from_noise(model, tmp_path):
    import openvino

    path = export_saved_model(
        model, tmp_path, signatures=["generate_from_noise"], warmup=False
    )
    core = openvino.Core()
    compiled = core.compile_model(
        core.read_model(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    )
    for count in (1, 7, 64):
        noise, label = rows(count)
        (found,) = compiled({"noise": noise, "label": label}).values()
        expected = model.generate(label, noise=noise, verbose=0)
        np.testing.assert_allclose(found, expected, atol=1e-3)


@on_tensorflow
def test_saved_model_cli_shows_and_runs_it(exported, tmp_path):
    program = str(pathlib.Path(sys.executable).with_name("saved_model_cli"))
    shown = subprocess.run(
        [program, "show", "--dir", exported, "--all"], capture_output=True, text=True
    )
    assert shown.returncode == 0, shown.stderr
    for signature in SIGNATURES:
        assert f"signature_def['{signature}']" in shown.stdout
    assert "shape: (-1, 4, 4, 1)" in shown.stdout
    options = ["--tag_set", "serve", "--signature_def", "serving_default"]
    np.save(tmp_path / "seed.npy", SEEDS)
    np.save(tmp_path / "label.npy", LABELS)
    inputs = f"seed={tmp_path / 'seed.npy'};label={tmp_path / 'label.npy'}"
    ran = subprocess.run(
        [program, "run", "--dir", exported, *options, "--inputs", inputs],
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    assert "Result for output key image" in ran.stdout


@on_tensorflow
def test_exports_at_the_same_time_get_versions_of_their_own(
    model, served, tmp_path, monkeypatch
):
    from keras_imm.serving import tensorflow_export

    write = tensorflow_export.write

    def slow(*arguments):
        """While this export writes, another one begins and ends."""
        write(*arguments)
        monkeypatch.setattr(tensorflow_export, "write", write)
        served()

    monkeypatch.setattr(tensorflow_export, "write", slow)
    served()
    versions = sorted(path.name for path in (tmp_path / "served").glob("[0-9]*"))
    assert versions == ["1", "2"]


@on_tensorflow
def test_versions_count_on_and_nothing_is_left_of_a_failure(
    model, served, tmp_path, monkeypatch
):
    served()
    served(version=7)
    served()
    folder = tmp_path / "served"
    versions = sorted(path.name for path in folder.iterdir() if path.is_dir())
    assert versions == ["1", "7", "8"]
    with pytest.raises(ValueError, match=r"`version` must be new.*version=7"):
        served(version=7)
    from keras_imm.serving import server_files

    def fail(*arguments):
        raise OSError("No space left on device")

    monkeypatch.setattr(server_files, "write_warmup", fail)
    with pytest.raises(OSError, match="No space"):
        served()
    versions = sorted(path.name for path in folder.iterdir() if path.is_dir())
    assert versions == ["1", "7", "8"]


@on_tensorflow
def test_a_saved_file_is_exported_like_the_model(model, served, tmp_path):
    import tensorflow as tf

    model.save(tmp_path / "model.keras")
    noise, label = rows(3)
    inputs = {"noise": tf.constant(noise), "label": tf.constant(label)}
    one, other = (
        served(given, folder=str(i))["generate_from_noise"](**inputs)["image"]
        for i, given in enumerate((model, tmp_path / "model.keras"))
    )
    np.testing.assert_allclose(one, other, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_steps": 0}, "`num_steps` must"),
        ({"num_steps": (1, 1)}, "`num_steps` must be one or more different"),
        ({"num_steps": ()}, "`num_steps` must be one or more different"),
        ({"default_num_steps": 3}, r"`default_num_steps` must be one of 1, 2, 8"),
        ({"guidance_scale": "a"}, "`guidance_scale` must be a finite number"),
        ({"guidance_scale": np.nan}, "`guidance_scale` must be a finite number"),
        ({"sampler": "ddim"}, "`sampler` must"),
        ({"time_grid": "even"}, "`time_grid` must"),
        ({"time_grid": [1.4]}, r"list of 1 makes 2 steps.*num_steps=1"),
        ({"guidance_interval": (0.1, 0.9)}, "limits a `guidance_scale`"),
        (
            {"guidance_scale": 2.0, "guidance_interval": (0.9, 0.1)},
            "`guidance_interval` must",
        ),
        ({"weights": "average"}, "`weights` must"),
        ({"value_range": (1, 0)}, "`value_range` must"),
        ({"signatures": "decode"}, "`signatures` must"),
        ({"version": 0}, "`version` must"),
        ({"native": 1}, "`native` must"),
        ({"warmup": 0}, "`warmup` must"),
        ({"time_grid": 3}, "`time_grid` must"),
        ({"latents": "vae"}, "`latents` must"),
    ],
)
def test_arguments(model, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        export_saved_model(model, tmp_path / "served", **options)
    assert not (tmp_path / "served").exists()


@on_tensorflow
def test_exporting_leaves_the_model_as_it_was(model, served):
    before = [v.numpy() for v in (*model.variables, *model.optimizer.variables)]
    served()
    after = [v.numpy() for v in (*model.variables, *model.optimizer.variables)]
    for a, b in zip(before, after, strict=True):
        np.testing.assert_array_equal(a, b)
