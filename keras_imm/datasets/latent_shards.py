"""Precomputed latents, read from shards."""

import bisect
import hashlib
import itertools
import operator
import os
from typing import Any

import numpy as np

from keras_imm.files.paths import user_path
from keras_imm.latents import shard_files
from keras_imm.validation import check_boolean


class LatentShards:
    """Moments of encoded images, by index, from a folder of shards.

    The shards are mapped into memory, so opening costs nothing and any record is read
    alone. Pickling keeps the folder, not the maps.

    Args:
        folder: Folder that `examples/encode_latents.py` finished: it has a
            `manifest.json`.
        flip: Whether the mirrored images are records too: record `n + i` is then the
            mirror image of record `i` of `n`. The folder must hold them.

    Attributes:
        image_shape: (H, W, C) of one latent.
        num_classes: How many classes the labels have, 0 without labels.
        class_names: Their names in the order of the labels, or None.
        num_skipped: How many images of the source could not be read.

    Raises:
        ValueError: If the folder is not a finished folder of latents, a shard is
            missing or has another size than the manifest says, or `flip` asks for what
            it does not hold.

    Example:

    ```python
    shards = keras_imm.datasets.LatentShards("latents/imagenet256")
    record = shards[0]  # {"moments": (32, 32, 8), "label": 0}
    mean, std = np.split(record["moments"].astype("float32"), 2, axis=-1)
    z = mean + std * np.random.default_rng(0).standard_normal(mean.shape)
    x = keras_imm.latents.normalize(z.astype("float32"))
    ```
    """

    def __init__(self, folder: str | os.PathLike[str], flip: bool = False):
        check_boolean("flip", flip)
        self.folder = user_path(folder)
        self.flip = flip
        manifest = shard_files.read_manifest(self.folder)
        if flip and not manifest["mirrored"]:
            raise ValueError(
                f"`flip` must be False: {self.folder} holds no mirrored images. "
                "Received: flip=True"
            )
        height, width, channels = manifest["moments_shape"]
        self.image_shape = (height, width, channels // 2)
        self.num_classes = manifest["num_classes"]
        self.class_names = manifest["class_names"]
        self.num_skipped = manifest["num_skipped"]
        self._num_images = manifest["num_records"]
        self._dtype = shard_files.record_dtype(
            (height, width, channels), manifest["dtype"], manifest["mirrored"]
        )
        self._shards = [shard for shard in manifest["shards"] if shard["records"]]
        self._ends = list(itertools.accumulate(s["records"] for s in self._shards))
        self._check_sizes()
        self._arrays = {}

    def __len__(self) -> int:
        return self._num_images * (2 if self.flip else 1)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The record `index`, as `{"moments": (H, W, 2C), "label": int}`.

        The moments are the mean, then the standard deviation, in the dtype of the
        folder. The label is -1 where there is none.
        """
        mirrored, shard, row = self._place(index)
        record = self._array(shard)[row]
        moments = record["mirrored" if mirrored else "moments"]
        return {"moments": np.array(moments), "label": int(record["label"])}

    @property
    def fingerprint(self) -> dict[str, Any]:
        """What identifies the records and their order, wherever the folder is."""
        checksums = "".join(shard["sha256"] for shard in self._shards)
        return {
            "kind": "latents",
            "num_records": len(self),
            "flip": self.flip,
            "sha256": hashlib.sha256(checksums.encode()).hexdigest(),
        }

    def record_name(self, index: int) -> str:
        """Shard and row of a record, and which image of the source it was."""
        mirrored, shard, row = self._place(index)
        source = int(self._array(shard)[row]["index"])
        name = f"{self._shards[shard]['file']}[{row}] (image {source} of the source"
        return name + (", mirrored)" if mirrored else ")")

    def verify(self) -> None:
        """Reads every shard and raises ValueError naming those that are damaged."""
        damaged = shard_files.damaged_shards(self.folder)
        if damaged:
            raise ValueError("Damaged latents: " + "; ".join(damaged))

    def _place(self, index):
        """Whether mirrored, which shard and which row a record is."""
        index = operator.index(index)
        if not -len(self) <= index < len(self):
            raise IndexError(f"Record {index} of {len(self)} in {self.folder}.")
        mirrored, index = divmod(index % len(self), self._num_images)
        shard = bisect.bisect_right(self._ends, index)
        start = self._ends[shard] - self._shards[shard]["records"]
        return bool(mirrored), shard, index - start

    def _array(self, shard):
        if shard not in self._arrays:
            path = self.folder / self._shards[shard]["file"]
            array = np.load(path, mmap_mode="r", allow_pickle=False)
            expected = (self._dtype, (self._shards[shard]["records"],))
            if (array.dtype, array.shape) != expected:
                raise ValueError(
                    f"{path} must hold dtype and shape {expected}. Received: "
                    f"{(array.dtype, array.shape)}"
                )
            self._arrays[shard] = array
        return self._arrays[shard]

    def _check_sizes(self):
        for shard in self._shards:
            path = self.folder / shard["file"]
            size = path.stat().st_size if path.exists() else None
            if size != shard["bytes"]:
                raise ValueError(
                    f"{path} must have {shard['bytes']} bytes. Received: "
                    f"{'no such file' if size is None else f'{size} bytes'}"
                )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_arrays": {}}
