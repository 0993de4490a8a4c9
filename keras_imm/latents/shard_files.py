"""Latents on disk: shards of records, each written whole or not at all.

A folder of latents holds

- `settings.json`: what they were made from and how;
- `shard-00000.npy`, …: a one-dimensional array of records with the fields `moments`
  (H, W, 2C), mean first, then standard deviation; `mirrored`, the moments of the
  mirrored image, where they were asked for; `label`, -1 where there is none; and
  `index`, which image of the source it is;
- `shard-00000.json`, …: its counts, its checksum and which images were skipped;
- `manifest.json`: all of these together, once every shard is there.

A shard counts when its `.json` is there, which is written last. Shards do not depend on
how many processes wrote them.
"""

import json
import os
import pathlib
from typing import Any

import numpy as np

from keras_imm.files.atomic import (
    atomic_file,
    remove_unfinished,
    write_json,
    write_json_once,
)
from keras_imm.files.checksum import sha256
from keras_imm.files.paths import user_path
from keras_imm.validation import shortened

FORMAT = "keras_imm latent shards"
VERSION = 1
SETTINGS = "settings.json"
MANIFEST = "manifest.json"
_MANIFEST_ENTRIES = (
    "moments_shape",
    "dtype",
    "mirrored",
    "num_classes",
    "class_names",
    "num_records",
    "num_skipped",
    "shards",
)


def record_dtype(
    moments_shape: tuple[int, int, int], dtype: str, mirrored: bool = False
) -> np.dtype:
    """The layout of one record of a shard.

    Args:
        moments_shape: (H, W, 2C) of the moments.
        dtype: "float16" or "float32".
        mirrored: Whether it holds the mirrored image's moments too.

    Returns:
        A structured dtype with the fields `moments`, `mirrored` where asked for,
        `label` (int32) and `index` (int64).
    """
    moments = (np.dtype(dtype).newbyteorder("<"), tuple(moments_shape))
    names = ("moments", "mirrored") if mirrored else ("moments",)
    return np.dtype(
        [*((name, *moments) for name in names), ("label", "<i4"), ("index", "<i8")]
    )


def shard_name(number: int) -> str:
    """Name of a shard without its suffix."""
    return f"shard-{number:05d}"


def check_settings(folder: str | os.PathLike[str], settings: dict[str, Any]) -> None:
    """Refuses to put shards of other settings into a folder.

    Args:
        folder: The folder, which need not be there.
        settings: What the shards depend on, as JSON can hold it.

    Raises:
        ValueError: If the folder's shards are made with other settings; the message
            names the first that differs, with both values.
    """
    path = user_path(folder) / SETTINGS
    if not path.exists():
        return
    stored = read_json(path)
    if not isinstance(stored, dict):
        raise ValueError(
            f"{path} must hold settings by name. Received: {shortened(repr(stored))}"
        )
    for name in sorted({*stored, *settings}):
        if stored.get(name) != settings.get(name):
            raise ValueError(
                f"{folder} is for latents made with {name}="
                f"{shortened(repr(stored.get(name)))}. "
                f"Received: {name}={settings.get(name)!r}. Continue with the same "
                "settings, choose another folder or empty this one."
            )


def claim_folder(folder: str | os.PathLike[str], settings: dict[str, Any]) -> None:
    """Makes a folder for shards with these settings, or checks that it has the same.

    Args:
        folder: The folder; it is made if it is not there.
        settings: What the shards depend on, as JSON can hold it.

    Raises:
        ValueError: If the folder's shards are made with other settings, as
            `check_settings` does.
    """
    path = user_path(folder) / SETTINGS
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        write_json_once(path, settings)
    check_settings(folder, settings)


def write_shard(
    folder: str | os.PathLike[str],
    number: int,
    records: np.ndarray,
    skipped: dict[str, str] | None = None,
) -> None:
    """Writes a shard: whole, or not at all if the process dies.

    Args:
        folder: The folder of shards.
        number: The shard's number, from 0.
        records: One-dimensional array of a `record_dtype`.
        skipped: What was left out: the name of the image and why.
    """
    folder = user_path(folder)
    path = folder / f"{shard_name(number)}.npy"
    remove_unfinished(folder, stem=shard_name(number))
    with atomic_file(path) as unfinished:
        _write_array(unfinished, records)
        entry = {
            "file": path.name,
            "records": len(records),
            "bytes": unfinished.stat().st_size,
            "sha256": sha256(unfinished),
            "skipped": skipped or {},
        }
    write_json(path.with_suffix(".json"), entry)


def _write_array(path: pathlib.Path, array: np.ndarray) -> None:
    """As `np.save`, which does not notice that a disk is full at the last kilobytes."""
    with open(path, "wb") as file:
        header = np.lib.format.header_data_from_array_1_0(array)
        np.lib.format.write_array_header_1_0(file, header)
        file.write(np.ascontiguousarray(array).view(np.uint8))


def has_shard(folder: str | os.PathLike[str], number: int) -> bool:
    """Whether a shard is there, whole."""
    return (user_path(folder) / f"{shard_name(number)}.json").exists()


def write_manifest(
    folder: str | os.PathLike[str], num_shards: int, description: dict[str, Any]
) -> bool:
    """Writes `manifest.json` if every shard is there.

    Args:
        folder: The folder of shards.
        num_shards: How many there must be.
        description: What a reader needs to know: `moments_shape`, `dtype`, `mirrored`,
            `num_classes`, `class_names`.

    Returns:
        Whether all shards are there.

    Raises:
        ValueError: If they hold no record at all.
    """
    folder = user_path(folder)
    if not all(has_shard(folder, number) for number in range(num_shards)):
        return False
    shards = [
        read_json(folder / f"{shard_name(number)}.json") for number in range(num_shards)
    ]
    num_records = sum(shard["records"] for shard in shards)
    if not num_records:
        raise ValueError(f"The shards in {folder} hold no record.")
    manifest = {
        "format": FORMAT,
        "version": VERSION,
        **description,
        "num_records": num_records,
        "num_skipped": sum(len(shard["skipped"]) for shard in shards),
        "settings": read_json(folder / SETTINGS),
        "shards": shards,
    }
    write_json(folder / MANIFEST, manifest)
    return True


def read_manifest(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """Reads the manifest of a folder of shards.

    Args:
        folder: The folder of shards.

    Returns:
        What `write_manifest` wrote.

    Raises:
        ValueError: If the folder has no manifest, because it is another folder or
            because shards are still missing, or if the file is not one.
    """
    path = user_path(folder) / MANIFEST
    if not path.exists():
        shards = len(list(user_path(folder).glob("shard-*.json")))
        raise ValueError(
            f"{path} is missing: {folder} is no folder of latents, or its encoding has "
            f"not finished ({shards} shards are there)."
        )
    manifest = read_json(path)
    found = isinstance(manifest, dict) and (
        manifest.get("format"),
        manifest.get("version"),
    )
    if found != (FORMAT, VERSION):
        raise ValueError(
            f"{path} must say format {FORMAT!r} and version {VERSION}. Received: "
            f"{shortened(repr(found))}"
        )
    missing = [name for name in _MANIFEST_ENTRIES if name not in manifest]
    if missing:
        raise ValueError(f"{path} has no entry {missing[0]!r}.")
    return manifest


def damaged_shards(folder: str | os.PathLike[str]) -> list[str]:
    """Reads every shard again.

    Args:
        folder: A finished folder of shards.

    Returns:
        For each shard that is not what the manifest says, its path and what is wrong.
    """
    folder = user_path(folder)
    damaged = []
    for shard in read_manifest(folder)["shards"]:
        path = folder / shard["file"]
        if not path.exists():
            damaged.append(f"{path} is missing")
        elif sha256(path) != shard["sha256"]:
            damaged.append(f"{path} has not the checksum {shard['sha256']}")
    return damaged


def read_json(path: str | os.PathLike[str]) -> Any:
    """Reads a JSON file; ValueError names it where it is none."""
    try:
        return json.loads(user_path(path).read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not a JSON file: {error}") from error
