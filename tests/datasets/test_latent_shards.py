"""Latents that are written are read back, and damage is seen."""

import errno
import json
import os
import pickle

import numpy as np
import pytest

from keras_imm.datasets.latent_shards import LatentShards
from keras_imm.latents import shard_files

pytestmark = pytest.mark.one_backend("NumPy code")

COUNTS = (3, 0, 2)
SHAPE = (2, 3, 8)


def records(seed=0, mirrored=True, dtype="float16"):
    """A shard each of three, none and two records."""
    rng = np.random.default_rng(seed)
    layout = shard_files.record_dtype(SHAPE, dtype, mirrored)
    shards = [np.zeros(n, layout) for n in COUNTS]
    for shard in shards:
        for name in ("moments", "mirrored") if mirrored else ("moments",):
            shard[name] = rng.standard_normal((len(shard), *SHAPE))
        shard["label"] = rng.integers(0, 7, len(shard))
        shard["index"] = rng.integers(0, 100, len(shard))
    return shards


def write(folder, shards, mirrored=True, dtype="float16", settings=None):
    shard_files.claim_folder(folder, settings or {"image_size": 16})
    for number, shard in enumerate(shards):
        skipped = {"broken.png": "truncated"} if number == 1 else {}
        shard_files.write_shard(folder, number, shard, skipped)
    description = {
        "moments_shape": list(SHAPE),
        "dtype": dtype,
        "mirrored": mirrored,
        "num_classes": 7,
        "class_names": None,
    }
    assert shard_files.write_manifest(folder, len(shards), description)


@pytest.fixture
def folder(tmp_path):
    write(tmp_path, records())
    return tmp_path


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_records_come_back_in_order(tmp_path, dtype):
    write(tmp_path, records(dtype=dtype), dtype=dtype)
    shards = LatentShards(tmp_path)
    expected = np.concatenate(records(dtype=dtype))
    assert len(shards) == 5
    assert (shards.image_shape, shards.num_classes) == ((2, 3, 4), 7)
    assert shards.num_skipped == 1
    for i in [4, *range(5)]:
        assert shards[i]["moments"].dtype == dtype
        np.testing.assert_array_equal(shards[i]["moments"], expected["moments"][i])
        assert shards[i]["label"] == expected["label"][i]
    np.testing.assert_array_equal(shards[-1]["moments"], expected["moments"][4])
    with pytest.raises(IndexError):
        shards[5]


def test_mirrored_images_are_the_second_half(folder):
    shards = LatentShards(folder, flip=True)
    expected = np.concatenate(records())
    assert len(shards) == 10
    np.testing.assert_array_equal(shards[3]["moments"], expected["moments"][3])
    np.testing.assert_array_equal(shards[8]["moments"], expected["mirrored"][3])
    assert shards[8]["label"] == expected["label"][3]
    assert "mirrored" in shards.record_name(8)


def test_a_record_is_named_by_shard_row_and_image(folder):
    index = records()[2]["index"][1]
    expected = f"shard-00002.npy[1] (image {index} of the source)"
    assert LatentShards(folder).record_name(4) == expected


def test_flip_must_have_been_stored(tmp_path):
    write(tmp_path, records(mirrored=False), mirrored=False)
    assert len(LatentShards(tmp_path)) == 5
    with pytest.raises(ValueError, match="flip=True"):
        LatentShards(tmp_path, flip=True)


def test_a_pickled_source_reads_on(folder):
    shards = LatentShards(folder)
    unopened = pickle.dumps(shards)
    first = shards[0]["moments"]
    payload = pickle.dumps(shards)
    assert len(payload) == len(unopened)  # the folder's name, not its content
    np.testing.assert_array_equal(pickle.loads(payload)[0]["moments"], first)


def test_what_is_returned_is_the_callers_own(folder):
    shards = LatentShards(folder)
    record = shards[0]["moments"]
    record[:] = 0
    assert shards[0]["moments"].any()


def test_the_fingerprint_follows_the_content_not_the_place(tmp_path):
    write(tmp_path / "a", records())
    write(tmp_path / "b", records())
    write(tmp_path / "c", records(seed=1))
    a, b, c = (LatentShards(tmp_path / name).fingerprint for name in "abc")
    assert a == b != c
    assert LatentShards(tmp_path / "a", flip=True).fingerprint != a


def test_unfinished_and_other_folders_are_refused(folder, tmp_path):
    (folder / "manifest.json").unlink()
    with pytest.raises(ValueError, match=r"manifest.json is missing.*3 shards"):
        LatentShards(folder)
    (folder / "manifest.json").write_text('{"records": 5}')
    with pytest.raises(ValueError, match="format"):
        LatentShards(folder)
    identity = {"format": shard_files.FORMAT, "version": shard_files.VERSION}
    (folder / "manifest.json").write_text(json.dumps(identity))
    with pytest.raises(ValueError, match="no entry 'moments_shape'"):
        LatentShards(folder)
    (folder / "manifest.json").write_text("{")
    with pytest.raises(ValueError, match=r"manifest.json is not a JSON file"):
        LatentShards(folder)


def test_a_truncated_or_missing_shard_is_named(folder):
    path = folder / "shard-00002.npy"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"shard-00002.npy must have \d+ bytes"):
        LatentShards(folder)
    path.unlink()
    with pytest.raises(ValueError, match=r"shard-00002.npy.*no such file"):
        LatentShards(folder)


def test_verify_finds_a_changed_byte(folder):
    shards = LatentShards(folder)
    shards.verify()
    path = folder / "shard-00000.npy"
    content = bytearray(path.read_bytes())
    content[-20] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"shard-00000.npy has not the checksum"):
        shards.verify()


def test_a_shard_of_another_layout_is_refused(folder):
    """Of the same size, so that only its header tells."""
    path = folder / "shard-00000.npy"
    content = path.read_bytes()
    path.write_bytes(content.replace(b"'label'", b"'lapel'"))
    with pytest.raises(ValueError, match=r"shard-00000.npy must hold dtype"):
        LatentShards(folder)[0]


def test_other_settings_are_refused_with_both_values(folder):
    shard_files.claim_folder(folder, {"image_size": 16})
    with pytest.raises(ValueError, match=r"image_size=16.*image_size=32"):
        shard_files.claim_folder(folder, {"image_size": 32})


def test_a_manifest_waits_for_every_shard(tmp_path):
    shard_files.claim_folder(tmp_path, {})
    shard_files.write_shard(tmp_path, 0, records()[0])
    assert not shard_files.write_manifest(tmp_path, 2, {})
    assert not (tmp_path / "manifest.json").exists()


def test_no_record_at_all_is_an_error(tmp_path):
    shard_files.claim_folder(tmp_path, {})
    shard_files.write_shard(tmp_path, 0, records()[1])
    with pytest.raises(ValueError, match="no record"):
        shard_files.write_manifest(tmp_path, 1, {})


def test_nothing_temporary_is_left(folder):
    (folder / ".unfinished-shard-00000-a@1@b.npy").write_bytes(b"of a killed process")
    (folder / ".unfinished-shard-00001-a@1@b.npy").write_bytes(b"of another process")
    shard_files.write_shard(folder, 0, records()[0])
    left = [path.name for path in folder.glob(".unfinished-*")]
    assert left == [".unfinished-shard-00001-a@1@b.npy"]


def test_a_full_disk_names_the_shard_and_leaves_what_was_there(folder, monkeypatch):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"No space left.*shard-00000.npy"):
        shard_files.write_shard(folder, 0, records(seed=1)[0])
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
