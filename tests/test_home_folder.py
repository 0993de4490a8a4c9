"""A path that begins with ~ is in the home folder, wherever one is taken."""

import os
import pickle
import shutil

import numpy as np
import pytest
from image_files import pixels, write_classes, write_idx_split
from small_dit import small_dit

import keras_imm
from keras_imm import averages, callbacks, checkpoints, datasets, metrics, serving
from keras_imm.checkpoints import keras_file
from keras_imm.files import presets
from keras_imm.files.paths import user_path
from keras_imm.files.pickled_arrays import load_pickle
from keras_imm.latents import autoencoder_networks, diffusers_weights, shard_files
from keras_imm.metrics import inception
from keras_imm.serving import checks, child_process

pytestmark = pytest.mark.one_backend("paths are the same on every backend")

STATISTICS = metrics.ReferenceStatistics(np.zeros(2), np.eye(2))
LATENTS = np.zeros(2, shard_files.record_dtype((2, 2, 8), "float16"))
LATENTS_ARE = {
    "moments_shape": [2, 2, 8],
    "dtype": "float16",
    "mirrored": False,
    "num_classes": 0,
    "class_names": None,
}


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home folder, in another place than the folder that the test runs in."""
    for name in ("home", "elsewhere"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "elsewhere")
    yield tmp_path / "home"
    assert os.listdir(tmp_path / "elsewhere") == []


@pytest.fixture(scope="module")
def model():
    return keras_imm.IMM(small_dit())


def test_only_the_home_folder_is_put_in(home):
    assert user_path("~/a/../b.npz") == home / "a/../b.npz"
    assert user_path("~") == home
    for path in ("a/~/b", "~nobody-is-called-so/a", "/a", "~a.npz"):
        assert str(user_path(path)) == path


def write_latents(folder):
    shard_files.check_settings(folder, {"a": 1})
    shard_files.claim_folder(folder, {"a": 1})
    shard_files.write_shard(folder, 0, LATENTS)
    assert shard_files.has_shard(folder, 0)
    assert shard_files.write_manifest(folder, 1, LATENTS_ARE)


WRITTEN = {
    "preset/config.json": lambda m: m.save_to_preset("~/preset"),
    "a.keras": lambda m: keras_file.save(m, "~/a.keras"),
    "a.npz": lambda _: STATISTICS.save("~/a.npz"),
    "latents/manifest.json": lambda _: write_latents("~/latents"),
    "new/a.onnx": lambda m: serving.export_onnx(m, "~/new/a.onnx"),
    "new/a.pt2": lambda m: serving.export_torch(m, "~/new/a.pt2"),
    "new/a.jax": lambda m: serving.export_stablehlo(m, "~/new/a.jax"),
    "new/a.tflite": lambda m: serving.export_litert(m, "~/new/a.tflite"),
    "openvino/model.xml": lambda m: serving.export_openvino(m, "~/openvino"),
    "served/1": lambda m: serving.export_saved_model(m, "~/served"),
}


@pytest.mark.parametrize("file", WRITTEN)
def test_it_is_written_to(home, model, monkeypatch, file):
    def export(kind, flow, values, path, *rest, **options):
        if kind == "openvino":
            path.mkdir()
            (path / "model.xml").touch()
        elif kind != "saved_model":
            path.touch()

    monkeypatch.setattr(child_process, "run", export)
    WRITTEN[file](model)
    assert (home / file).exists()


KEPT = {
    "TrainingCheckpoint": lambda c: c.TrainingCheckpoint("~/a").directory,
    "TerminateOnNonFinite": lambda c: c.TerminateOnNonFinite("~/a").directory,
    "PowerAverages": lambda c: c.PowerAverages("~/a").folder,
    "TensorBoard": lambda c: c.TensorBoard("~/a").log_dir,
    "SampleGrid": lambda c: c.SampleGrid("~/a/{epoch}.png", num_samples=2).filepath,
    "QualityMonitor": lambda c: (
        c.QualityMonitor(
            np.zeros((4, 2, 2, 1), "float32"), num_samples=2, save_best="~/a/b.keras"
        ).save_best
    ),
}


@pytest.mark.parametrize("name", KEPT)
def test_callbacks_write_there(home, name):
    assert str(KEPT[name](callbacks)).startswith(str(home / "a"))


def put(home, model):
    """What can be read, in the home folder."""
    images = np.stack([pixels(i) for i in range(4)])
    write_classes(home / "images", (2, 2))
    shutil.make_archive(home / "images", "zip", home / "images")
    np.savez(home / "images.npz", images=images)
    write_idx_split(home / "idx", "train", images[..., 0], [0, 1, 2, 3])
    shutil.copytree(home / "idx", home / "clothes")
    clothes = np.zeros((2, 28, 28), "uint8")
    write_idx_split(home / "clothes", "train", clothes, [0, 1])
    write_latents(home / "latents")
    STATISTICS.save(home / "statistics.npz")
    model.save_to_preset(home / "preset")
    keras_file.save(model, home / "model.keras")
    (home / "a.pkl").write_bytes(pickle.dumps([1, 2]))
    (home / "a.safetensors").write_bytes(b"")
    (home / "averages").mkdir()
    snapshot = averages.pack(3, [0.1], [{"w": np.ones(2)}])
    np.savez(home / "averages" / averages.FILE.format(step=3), **snapshot)


READ = [
    ("images", lambda p: datasets.load(p, 2).num_classes == 2),
    ("images.zip", lambda p: datasets.load(p, 2).num_classes == 2),
    ("images.npz", lambda p: datasets.load(p, 2).num_records == 4),
    ("idx", lambda p: datasets.load(p, 2).num_classes == 4),
    ("clothes", lambda p: len(datasets.fashion_mnist(data_dir=p)[0]) == 2),
    ("latents", lambda p: len(datasets.LatentShards(p)) == 2),
    ("latents", lambda p: shard_files.damaged_shards(p) == []),
    ("statistics.npz", lambda p: metrics.ReferenceStatistics.load(p).mean.size == 2),
    ("preset", lambda p: keras_imm.FlowMapModel.from_preset(p).num_classes == 3),
    ("preset", lambda p: "training" in keras_imm.presets.metadata(p)),
    ("model.keras", lambda p: checks.checked_model(p).num_classes == 3),
    ("a.pkl", lambda p: load_pickle(p) == [1, 2]),
    ("averages", lambda p: averages.reconstruct(p, 0.1)["w"].shape == (2,)),
    ("a.safetensors", lambda p: diffusers_weights.find_file(p).exists()),
]


@pytest.mark.parametrize(("name", "reads"), READ, ids=[name for name, _ in READ])
def test_it_is_read_from(home, model, name, reads):
    put(home, model)
    assert reads(f"~/{name}")


def test_it_is_read_from_before_it_is_refused(home, model, monkeypatch):
    put(home, model)
    with pytest.raises(ValueError, match=r"Cannot load '.*home/a\.pkl'"):
        checkpoints.load_official("~/a.pkl")
    with pytest.warns(UserWarning, match=r"home/a\.pkl is not the published"):
        assert inception.find_file("~/a.pkl") == home / "a.pkl"
    with pytest.raises(ValueError, match=r"Received: '.*home/a\.pkl'"):
        autoencoder_networks.load_keras_cv_weights(model, "~/a.pkl")
    uploaded = []
    monkeypatch.setattr(
        presets, "upload_folder_to_hub", lambda *a, **_: uploaded.extend(a)
    )
    keras_imm.upload_preset("hf://user/name", "~/preset")
    assert uploaded[1] == home / "preset"
