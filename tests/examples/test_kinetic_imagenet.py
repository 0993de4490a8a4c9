"""The job that Kinetic is given, with functions of our own in Kinetic's place."""

import functools
import importlib.util
import subprocess
import sys
import types

import pytest
from absl import flags
from scripts import ROOT

pytestmark = pytest.mark.one_backend("computes nothing")


@pytest.fixture
def example(monkeypatch):
    """The example; what it asks Kinetic for is in `asked`."""
    kinetic = types.ModuleType("kinetic")
    kinetic.asked = {}
    kinetic.Data = lambda path, fuse: (path, fuse)
    kinetic.run = lambda **options: kinetic.asked.update(options) or (lambda f: f)
    monkeypatch.setitem(sys.modules, "kinetic", kinetic)
    path = ROOT / "examples" / "kinetic_imagenet.py"
    spec = importlib.util.spec_from_file_location("kinetic_imagenet", path)
    module = importlib.util.module_from_spec(spec)
    values = flags.FlagValues()
    with monkeypatch.context() as patch:
        patch.setattr(flags, "FLAGS", values)
        define = functools.partial(flags.DEFINE_string, flag_values=values)
        patch.setattr(flags, "DEFINE_string", define)
        spec.loader.exec_module(module)
    values(["program", "--latents=gs://bucket/latents/"])
    return module


@pytest.fixture
def uploaded(monkeypatch):
    """{bucket/name: content} of what is uploaded."""
    found = {}

    def blob_of(bucket, name):
        def upload_from_filename(path):
            with open(path, "rb") as file:
                found[f"{bucket}/{name}"] = file.read()

        return types.SimpleNamespace(upload_from_filename=upload_from_filename)

    def bucket(name):
        return types.SimpleNamespace(blob=lambda blob: blob_of(name, blob))

    storage = types.ModuleType("google.cloud.storage")
    storage.Client = lambda: types.SimpleNamespace(bucket=bucket)
    cloud = types.ModuleType("google.cloud")
    cloud.storage = storage
    monkeypatch.setitem(sys.modules, "google.cloud", cloud)
    monkeypatch.setitem(sys.modules, "google.cloud.storage", storage)
    return found


def test_the_job_trains_on_what_is_mounted(
    example, uploaded, tmp_path, monkeypatch, capsys
):
    (tmp_path / "examples").mkdir()
    (tmp_path / "examples" / "imagenet.py").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KINETIC_OUTPUT_DIR", "gs://results/job/7")
    commands = []

    def run(command, cwd, env, check):
        commands.append((command[1:], cwd, env["KERAS_BACKEND"], check))
        (cwd / example.OUT / "pictures").mkdir(parents=True)
        (cwd / example.OUT / "results.json").write_text("{}")
        (cwd / example.OUT / "pictures" / "a.png").write_bytes(b"png")

    monkeypatch.setattr(subprocess, "run", run)
    example.main(["program", "--recipe=imagenet256_dit_s_2"])
    asked = sys.modules["kinetic"].asked
    assert asked["volumes"] == {"/latents": ("gs://bucket/latents/", True)}
    assert asked["accelerator"] == "tpu-v5litepod-8"
    out = f"--out={example.OUT}"
    expected = ["examples/imagenet.py", "--data_dir=/latents", out]
    assert commands == [
        ([*expected, "--recipe=imagenet256_dit_s_2"], tmp_path, "jax", True)
    ]
    assert uploaded == {
        "results/job/7/results.json": b"{}",
        "results/job/7/pictures/a.png": b"png",
    }
    assert "gs://results/job/7" in capsys.readouterr().out
