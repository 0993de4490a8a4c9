"""Encoding loses no image and repeats none, however often it is killed."""

import hashlib
import importlib
import os
import pathlib
import random
import re
import signal
import time
import types

import numpy as np
import pytest
from fork_server import ForkServer
from image_files import write_prepared
from PIL import Image
from scripts import ROOT

from keras_imm.datasets.latent_shards import LatentShards
from keras_imm.latents import shard_files

pytestmark = pytest.mark.one_backend("NumPy code")

SIZE = 16
FLAGS = (f"--image_size={SIZE}", "--vae=tiny", "--shard_size=3", "--batch_size=2")


@pytest.fixture(scope="module")
def encode_latents():
    server = ForkServer("examples/encode_latents.py")
    yield server
    server.close()


def write_images(folder, count):
    """Of two classes in turn, already in their size. Returns them in sorted order."""
    images = np.random.default_rng(0).integers(0, 256, (count, SIZE, SIZE, 3), "uint8")
    for i, image in enumerate(images):
        path = folder / ("cat" if i < count // 2 else "dog") / f"{i:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    return images


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("source")
    write_images(folder, 40)
    return folder


@pytest.fixture(scope="module")
def uninterrupted(encode_latents, source, tmp_path_factory):
    """What one run leaves, and its seconds."""
    out = tmp_path_factory.mktemp("uninterrupted")
    start = time.perf_counter()
    status, output = encode_latents.run(f"--source={source}", f"--out={out}", *FLAGS)
    assert status == 0, output
    return contents(out), time.perf_counter() - start


def contents(folder):
    return {path.name: path.read_bytes() for path in pathlib.Path(folder).iterdir()}


def whole(folder):
    """But for what a killed process was writing."""
    found = contents(folder).items()
    return {n: c for n, c in found if not n.startswith(".unfinished-")}


def block_means(images):
    """Means of blocks of 8 by 8 pixels in [-1, 1], the first channel twice."""
    scaled = images.astype("float64") / 127.5 - 1
    rows = [scaled[:, i : i + 8].mean(1) for i in range(0, images.shape[1], 8)]
    rows = np.stack(rows, axis=1)
    means = [rows[:, :, j : j + 8].mean(2) for j in range(0, images.shape[2], 8)]
    means = np.stack(means, axis=2)
    return np.concatenate([means, means[..., :1]], axis=-1)


def moments(shards):
    return np.stack([shards[i]["moments"] for i in range(len(shards))])


def test_every_image_is_encoded_once_in_order(encode_latents, tmp_path):
    images = write_images(tmp_path / "source", 7)
    out = tmp_path / "out"
    status, output = encode_latents.run(
        f"--source={tmp_path / 'source'}", f"--out={out}", "--flip", *FLAGS
    )
    assert status == 0, output
    assert "7 images in 3 shards" in output
    assert "7/7" in output  # the progress bar's end
    shards = LatentShards(out, flip=True)
    assert (shards.image_shape, shards.num_classes) == ((2, 2, 4), 2)
    assert shards.class_names == ["cat", "dog"]
    assert [shards[i]["label"] for i in range(14)] == [0, 0, 0, 1, 1, 1, 1] * 2
    stored = moments(shards)
    assert stored.dtype == "float16"
    np.testing.assert_allclose(stored[:7, ..., :4], block_means(images), atol=1e-3)
    mirrored = block_means(images[:, :, ::-1])
    np.testing.assert_allclose(stored[7:, ..., :4], mirrored, atol=1e-3)
    np.testing.assert_allclose(stored[..., 4:], 0.1, atol=1e-3)
    assert "image 5 of the source" in shards.record_name(5)


def test_killed_at_random_moments_it_leaves_the_same_bytes(
    encode_latents, source, uninterrupted, tmp_path
):
    expected, seconds = uninterrupted
    generator = random.Random(0)
    killed = folder = 0
    while killed < 10:
        folder += 1
        flags = (f"--source={source}", f"--out={tmp_path / str(folder)}", *FLAGS)
        status = None
        while status != 0:
            run = encode_latents.start(*flags)
            if killed < 10:  # from before the first shard to a few shards on
                time.sleep(generator.uniform(0, 0.5 * seconds))
                os.kill(run.pid, signal.SIGKILL)
            status = run.wait()
            assert status in (0, -signal.SIGKILL), run.output
            killed += status != 0
        assert whole(tmp_path / str(folder)) == expected


def test_a_restart_encodes_no_whole_shard_again(
    encode_latents, source, uninterrupted, tmp_path
):
    expected, _ = uninterrupted
    for name, content in expected.items():
        if name not in ("shard-00005.json", "shard-00013.npy", "manifest.json"):
            (tmp_path / name).write_bytes(content)
    (tmp_path / "shard-00013.json").unlink()
    (tmp_path / ".unfinished-shard-00005-host@1@0a.npy").write_bytes(b"cut off")
    kept = (tmp_path / "shard-00004.npy").stat().st_mtime_ns
    status, output = encode_latents.run(
        f"--source={source}", f"--out={tmp_path}", *FLAGS
    )
    assert status == 0, output
    assert "12 of 14 shards are there" in output
    assert "4/4" in output  # three images of shard 5, one of shard 13
    assert (tmp_path / "shard-00004.npy").stat().st_mtime_ns == kept
    assert contents(tmp_path) == expected


def test_processes_share_the_work(encode_latents, source, uninterrupted, tmp_path):
    flags = (f"--source={source}", f"--out={tmp_path}", *FLAGS, "--process_count=2")
    runs = [encode_latents.start(*flags, f"--process_index={i}") for i in (0, 1)]
    assert [run.wait() for run in runs] == [0, 0], [run.output for run in runs]
    assert contents(tmp_path) == uninterrupted[0]


def test_a_manifest_waits_for_the_other_process(
    encode_latents, source, uninterrupted, tmp_path
):
    flags = (f"--source={source}", f"--out={tmp_path}", *FLAGS, "--process_count=2")
    status, output = encode_latents.run(*flags, "--process_index=1")
    assert status == 0, output
    assert "waits for the other processes" in output
    assert not (tmp_path / "manifest.json").exists()
    assert (tmp_path / "shard-00001.npy").exists()
    assert not (tmp_path / "shard-00002.npy").exists()
    status, output = encode_latents.run("--verify", f"--out={tmp_path}")
    assert status == 1
    assert "7 shards are there" in output
    assert encode_latents.run(*flags, "--process_index=0")[0] == 0
    assert contents(tmp_path) == uninterrupted[0]


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--image_size=24", "image_size=16.*image_size=24"),
        ("--flip", "flip=False.*flip=True"),
        ("--dtype=float32", "dtype='float16'.*dtype='float32'"),
        ("--shard_size=4", "shard_size=3.*shard_size=4"),
        ("--limit=9", "num_images=40.*num_images=9"),
        ("--nolabels", "labels=True.*labels=False"),
    ],
)
def test_other_settings_are_refused_with_both_values(
    encode_latents, source, uninterrupted, tmp_path, flag, message
):
    (tmp_path / "settings.json").write_bytes(uninterrupted[0]["settings.json"])
    status, output = encode_latents.run(
        f"--source={source}", f"--out={tmp_path}", *FLAGS, flag
    )
    assert status == 1
    assert re.search(message, output), output
    assert len(contents(tmp_path)) == 1


def test_another_autoencoder_is_refused(
    encode_latents, source, uninterrupted, tmp_path
):
    """Before it is read: whatever file of weights this is, it is not the same."""
    weights = tmp_path / "weights.safetensors"
    weights.write_bytes(b"weights")
    out = tmp_path / "out"
    out.mkdir()
    (out / "settings.json").write_bytes(uninterrupted[0]["settings.json"])
    status, output = encode_latents.run(
        f"--source={source}", f"--out={out}", *FLAGS, f"--vae={weights}"
    )
    assert status == 1
    digest = hashlib.sha256(b"weights").hexdigest()
    assert f"vae='tiny'. Received: vae='sha256:{digest}'" in output


def test_another_source_is_refused(encode_latents, uninterrupted, tmp_path):
    write_images(tmp_path / "source", 40)
    (tmp_path / "source" / "dog" / "039.png").write_bytes(b"another size")
    out = tmp_path / "out"
    out.mkdir()
    (out / "settings.json").write_bytes(uninterrupted[0]["settings.json"])
    status, output = encode_latents.run(
        f"--source={tmp_path / 'source'}", f"--out={out}", *FLAGS
    )
    assert status == 1
    assert "source={" in output


def test_a_corrupt_image_stops_the_run_or_is_counted(encode_latents, tmp_path):
    images = write_images(tmp_path / "source", 7)
    broken = tmp_path / "source" / "dog" / "004.png"
    broken.write_bytes(broken.read_bytes()[:60])
    flags = (f"--source={tmp_path / 'source'}", f"--out={tmp_path / 'out'}", *FLAGS)
    status, output = encode_latents.run(*flags)
    assert status == 1
    assert f"{broken} cannot be read" in output
    assert "--on_corrupt=skip" in output
    status, output = encode_latents.run(*flags, "--on_corrupt=skip")
    assert status == 0, output
    assert f"{broken} is left out" in output
    assert "6 images in 3 shards" in output
    assert "Left out: 1." in output
    shards = LatentShards(tmp_path / "out")
    expected = np.delete(block_means(images), 4, axis=0)
    np.testing.assert_allclose(moments(shards)[..., :4], expected, atol=1e-3)
    manifest = shard_files.read_manifest(tmp_path / "out")
    (skipped,) = (shard["skipped"] for shard in manifest["shards"] if shard["skipped"])
    assert list(skipped) == [str(broken)]


def test_a_float_image_that_is_not_finite_is_skipped_and_named(
    encode_latents, tmp_path
):
    images = np.zeros((5, SIZE, SIZE, 3), "float32")
    images[3, 2, 1] = np.nan
    np.save(tmp_path / "a.npy", images)
    status, output = encode_latents.run(
        f"--source={tmp_path / 'a.npy'}",
        f"--out={tmp_path / 'out'}",
        *FLAGS,
        "--dtype=float32",
        "--on_corrupt=skip",
    )
    assert status == 0, output
    assert "a.npy[3] is left out: its pixels are not finite" in output
    assert "4 images in 2 shards" in output


@pytest.mark.parametrize(
    ("value", "dtype", "advice"),
    [
        (1e5, "float16", ": use --dtype=float32"),
        (np.nan, "float16", ""),
        (np.nan, "float32", ""),
    ],
)
@pytest.mark.filterwarnings("ignore:overflow")
def test_moments_that_are_not_finite_name_their_image(
    monkeypatch, value, dtype, advice
):
    monkeypatch.syspath_prepend(ROOT / "examples")
    script = importlib.import_module("encode_latents")
    flags = {"dtype": dtype, "batch_size": 4, "image_size": SIZE, "flip": False}
    monkeypatch.setattr(script, "FLAGS", types.SimpleNamespace(**flags))

    class Encoder:
        def encode(self, images):
            mean = images[:, ::8, ::8, :1] * np.float32(value)
            return np.repeat(mean, 4, -1), np.ones((4, 2, 2, 4), "float32")

    shard = script.Shard(Encoder())
    for index in (6, 7, 9):
        image = np.full((SIZE, SIZE, 3), 0 if index == 6 else 1, "float32")
        shard.add(index, image, 0)
    names = "7, 9" if np.isfinite(value) else "6, 7, 9"
    message = f"The moments of image {names} of the source are not finite in {dtype}"
    with pytest.raises(ValueError, match=re.escape(message + advice) + r"\.$"):
        shard.finish()


def test_a_split_without_labels_is_encoded_without_them(encode_latents, tmp_path):
    data_dir = write_prepared(
        tmp_path / "tfds", {"test": 3}, size=SIZE, labels=[-1] * 3
    )
    flags = (
        "--source=tiny_shapes",
        "--split=test",
        f"--data_dir={data_dir}",
        f"--out={tmp_path / 'out'}",
        *FLAGS,
    )
    status, output = encode_latents.run(*flags)
    assert status == 1
    assert "labels=False" in output
    status, output = encode_latents.run(*flags, "--nolabels")
    assert status == 0, output
    shards = LatentShards(tmp_path / "out")
    assert (shards.num_classes, shards.class_names) == (0, None)
    assert [shards[i]["label"] for i in range(3)] == [-1, -1, -1]


def test_verify_reads_the_checksums(encode_latents, uninterrupted, tmp_path):
    for name, content in uninterrupted[0].items():
        (tmp_path / name).write_bytes(content)
    status, output = encode_latents.run("--verify", f"--out={tmp_path}")
    assert status == 0
    assert "All checksums agree" in output
    path = tmp_path / "shard-00002.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    status, output = encode_latents.run("--verify", f"--out={tmp_path}")
    assert status == 1
    assert f"{path} has not the checksum" in output


def test_limit_takes_the_first_images(encode_latents, source, tmp_path):
    status, output = encode_latents.run(
        f"--source={source}", f"--out={tmp_path}", *FLAGS, "--limit=4"
    )
    assert status == 0, output
    assert len(LatentShards(tmp_path)) == 4


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--process_index=2", "--process_count=2"), "--process_index must be below"),
        (("--image_size=20",), "must be a multiple of 8"),
        (("--vae=nowhere",), "Received: 'nowhere'"),
    ],
)
def test_wrong_flags_are_named(encode_latents, source, tmp_path, flags, message):
    status, output = encode_latents.run(
        f"--source={source}", f"--out={tmp_path}", *FLAGS, *flags
    )
    assert status == 1
    assert message in output
    assert not contents(tmp_path)  # which then is free for the right ones


def test_a_source_is_needed(encode_latents, tmp_path):
    status, output = encode_latents.run(f"--out={tmp_path}")
    assert status == 1
    assert "--source must be given" in output
