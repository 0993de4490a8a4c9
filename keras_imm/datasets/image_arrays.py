"""Images in arrays, in memory or in a file, by index."""

import functools
import hashlib
import os
import pathlib
import zipfile
from typing import Any

import numpy as np

from keras_imm.datasets.array_checks import check_layout, dtype_advice, range_problem
from keras_imm.datasets.file_trees import zip_members
from keras_imm.validation import shortened

_IMAGES = ("images", "x", "arr_0")
_LABELS = ("labels", "y", "arr_1")
_HASHED_RECORDS = 256


class ImageArrays:
    """Images of an array, and their labels.

    Args:
        images: Shape (num_records, H, W, C) or (num_records, H, W): integers in
            [0, 255] as uint8, or floats in the model's range, which are taken as they
            are.
        labels: Integers of at least 0, shape (num_records,), or None.
        name: What the array is called in messages.

    Attributes:
        image_shape: (H, W, C).
        num_classes: The largest label plus 1, or 0.
        class_names: None.

    Raises:
        ValueError: If a shape or dtype is another, the channels are not last, or a
            label is negative.
    """

    class_names = None

    def __init__(self, images: Any, labels: Any = None, name: str = "images"):
        if not isinstance(images, np.ndarray):
            images = np.asarray(images)
        is_float = images.dtype in (np.float16, np.float32, np.float64)
        if images.ndim not in (3, 4) or not (images.dtype == np.uint8 or is_float):
            raise ValueError(
                "Images must be uint8 or floats of shape (num_records, H, W, C) or "
                f"(num_records, H, W). Received: {name} of dtype {images.dtype} and "
                f"shape {images.shape}{dtype_advice(images)}"
            )
        if not images.size:
            raise ValueError(f"There is no image in {name}.")
        check_layout(images, name)
        self._images = images if images.ndim == 4 else images[..., None]
        self._labels = None if labels is None else _labels(labels, len(images), name)
        self._name = name
        self.image_shape = self._images.shape[1:]
        self.num_classes = 0 if labels is None else int(self._labels.max()) + 1

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The record `index`, as `{"image": array (H, W, C), "label": int}`."""
        label = -1 if self._labels is None else int(self._labels[index])
        return {"image": np.asarray(self._images[index]), "label": label}

    def problems(self) -> list[str]:
        """Sentences about what looks wrong in some of the images.

        Raises:
            ValueError: If they are floats above 20 in absolute value.
        """
        problem = range_problem(self._images, self._name)
        return [f"The values of {self._name} are {problem}."] if problem else []

    def record_name(self, index: int) -> str:
        """Name of the array and the row."""
        return f"{self._name}[{index}]"

    @functools.cached_property
    def fingerprint(self) -> dict[str, Any]:
        """What identifies the records and their order.

        Of the images, 256 evenly spaced ones are looked at.
        """
        digest = hashlib.sha256()
        rows = np.linspace(0, len(self) - 1, min(len(self), _HASHED_RECORDS))
        for row in np.unique(rows.astype(int)):
            digest.update(np.ascontiguousarray(self._images[row]).tobytes())
        if self._labels is not None:
            digest.update(self._labels.tobytes())
        return {
            "kind": "arrays",
            "num_records": len(self),
            "record_shape": list(self.image_shape),
            "dtype": str(self._images.dtype),
            "sha256": digest.hexdigest(),
        }


class ImageArraysFile(ImageArrays):
    """Images of an `.npz` or `.npy` file, mapped into memory where it can be.

    What `numpy.savez_compressed` wrote is read whole. Pickling keeps the path alone.

    Args:
        path: A `.npy` file of images, or an `.npz` file with the images as `images`,
            `x` or `arr_0` and the labels, if any, as `labels`, `y` or `arr_1`.
        labels: Whether to read the labels.

    Raises:
        ValueError: If the file is damaged or holds no such arrays.
    """

    def __init__(self, path: str | os.PathLike[str], labels: bool = True):
        self._path = pathlib.Path(path)
        self._with_labels = labels
        try:
            images, found = _load(self._path, labels)
        except (OSError, EOFError, KeyError, zipfile.BadZipFile, ValueError) as error:
            raise ValueError(f"Cannot read {self._path}: {shortened(error)}") from error
        super().__init__(images, found, str(self._path))

    def problems(self) -> list[str]:
        """Also labels by other names."""
        found = super().problems()
        if self._with_labels and self._labels is None:
            others = _label_like(self._path, len(self))
            if others:
                found.append(
                    f"There are no labels in {self._path}: they must be called "
                    f"{', '.join(_LABELS)}. Not read: {shortened(', '.join(others))}."
                )
        return found

    def __reduce__(self) -> tuple:
        return ImageArraysFile, (self._path, self._with_labels)


def _labels(labels, num_records, name):
    labels = np.asarray(labels)
    if labels.shape == (num_records, 1):
        labels = labels[:, 0]
    if labels.shape != (num_records,) or labels.dtype.kind not in "iu":
        raise ValueError(
            f"Labels must be integers of shape ({num_records},), one for each image. "
            f"Received: for {name}, labels of dtype {labels.dtype} and shape "
            f"{labels.shape}"
        )
    for label in (labels.min(), labels.max()):
        if not 0 <= label < 2**31:
            raise ValueError(
                f"Labels must be in [0, 2**31). Received: for {name}, a label {label}"
            )
    return labels.astype("int32")


def holds_arrays(path: pathlib.Path) -> bool:
    """Whether a zip file has images as an array."""
    with zipfile.ZipFile(path) as archive:
        return any(f"{name}.npy" in archive.namelist() for name in _IMAGES)


def _load(path, with_labels):
    if path.suffix.lower() == ".npy":
        return np.load(path, mmap_mode="r", allow_pickle=False), None
    with zipfile.ZipFile(path) as archive:
        members = zip_members(archive)
        names = {name.removesuffix(".npy"): info for name, info in members.items()}
        images = next((names[name] for name in _IMAGES if name in names), None)
        label_names = _LABELS if with_labels else ()
        labels = next((names[name] for name in label_names if name in names), None)
        if images is None:
            raise ValueError(
                f"it must hold images as {', '.join(_IMAGES)}; it holds "
                f"{shortened(', '.join(names), 100) or 'nothing'}"
            )
        return tuple(
            None if member is None else _member(path, archive, member)
            for member in (images, labels)
        )


def _label_like(path, num_records):
    """Names of the arrays in a file that have an integer for each image."""
    if not zipfile.is_zipfile(path):
        return []
    found = []
    with zipfile.ZipFile(path) as archive:
        for name, info in zip_members(archive).items():
            if name.endswith(".npy"):
                with archive.open(info) as file:
                    shape, _, dtype = _array_header(file)
                if dtype.kind in "iu" and shape in ((num_records,), (num_records, 1)):
                    found.append(name.removesuffix(".npy"))
    return found


def _member(path, archive, member):
    """An array in a zip file: mapped where it is stored as it is, or else read."""
    with archive.open(member) as file:
        shape, fortran_order, dtype = _array_header(file)
        header_size = file.tell()
        if member.compress_type != zipfile.ZIP_STORED or dtype.hasobject:
            file.seek(0)
            return np.lib.format.read_array(file, allow_pickle=False)
    with open(path, "rb") as file:
        file.seek(member.header_offset + 26)  # two lengths, then name and extra field
        lengths = np.frombuffer(file.read(4), "<u2")
    offset = member.header_offset + 30 + int(lengths.sum()) + header_size
    order = "F" if fortran_order else "C"
    return np.memmap(path, dtype, "r", offset, shape, order)


def _array_header(file):
    version = np.lib.format.read_magic(file)
    readers = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    if version not in readers:
        raise ValueError(f"its array has the format version {version}")
    return readers[version](file)
