"""Images in IDX files, the format of MNIST and of what is shaped like it, by index."""

import gzip
import math
import os
import pathlib
import re
import zlib
from typing import Any

import numpy as np

from keras_imm.datasets.image_arrays import ImageArrays

_NAME = re.compile(r"[-.]idx\d-ubyte(\.gz)?$")
_PREFIXES = {"train": "train", "test": "t10k"}
_UNSIGNED_BYTE = 0x08
_TYPES = {0x09: "int8", 0x0B: "int16", 0x0C: "int32", 0x0D: "float32", 0x0E: "float64"}
_DEFLATE_RATIO = 1032  # at most so many bytes come out of one byte of a gzip file
_CHUNK = 2**20


class IdxFiles(ImageArrays):
    """Images of an IDX file and labels of the one beside it, plain or in gzip.

    A plain file is mapped into memory, one in gzip is read whole. Pickling keeps the
    path alone.

    Args:
        path: A file of images, such as `train-images-idx3-ubyte.gz`, whose labels are
            `train-labels-idx1-ubyte`, with or without `.gz`; or a folder of such files.
        split: "train" or "test", whose files begin with "t10k", of a folder.
        labels: Whether to read the labels, where there are any.

    Raises:
        ValueError: If a file is missing or damaged, is of another type than unsigned
            bytes, or there are not as many labels as images.
    """

    def __init__(
        self, path: str | os.PathLike[str], split: str = "train", labels: bool = True
    ):
        self._path = pathlib.Path(path)
        self._split, self._with_labels = split, labels
        if self._path.is_dir():
            images_path = _images_of_split(self._path, split)
        else:
            images_path = self._path
        labels_path = labels_beside(images_path) if labels else None
        images = read_idx(images_path, (3, 4))
        found = None
        if labels_path is not None:
            found = read_idx(labels_path, (1,))
            check_same_count(images_path, images, labels_path, found)
        super().__init__(images, found, str(images_path))

    def __reduce__(self) -> tuple:
        return IdxFiles, (self._path, self._split, self._with_labels)


def is_idx_file(path: pathlib.Path) -> bool:
    """Whether a file is called as IDX files are."""
    return _NAME.search(path.name) is not None


def holds_idx_files(folder: pathlib.Path) -> bool:
    """Whether a folder has images of a split."""
    return any(find_images(folder, split) is not None for split in _PREFIXES)


def find_images(folder: pathlib.Path, split: str) -> pathlib.Path | None:
    """The images of "train" or "test" in a folder, or None; plain before gzip."""
    prefix = _PREFIXES[split]
    names = (f"{prefix}-images{mark}idx3-ubyte" for mark in "-.")
    return _first_file(folder / f"{n}{end}" for n in names for end in ("", ".gz"))


def labels_beside(images: pathlib.Path) -> pathlib.Path | None:
    """The labels of a file of images, or None where there are none."""
    plain = images.name.removesuffix(".gz").replace("images", "labels")
    marks = "-." if re.search(r"-idx\d-ubyte$", plain) else ".-"
    names = [re.sub(r"[.-]idx\d-ubyte$", f"{mark}idx1-ubyte", plain) for mark in marks]
    ends = (".gz", "") if images.suffix == ".gz" else ("", ".gz")
    beside = (images.with_name(f"{name}{end}") for name in names for end in ends)
    return _first_file(path for path in beside if path.name != images.name)


def read_idx(path: pathlib.Path, dimensions: tuple[int, ...]) -> np.ndarray:
    """The array of unsigned bytes in an IDX file.

    The sizes that its header says are held against what the file has, or can have in
    gzip, before memory is taken; of gzip no more is read than the header says.

    Args:
        path: The file; in gzip if it ends with `.gz`.
        dimensions: How many dimensions the array may have.

    Returns:
        A uint8 array; mapped into memory where the file is plain.

    Raises:
        ValueError: If the file cannot be read, or is not such an array whole; the
            message names it and says what is wrong.
    """
    try:
        if path.suffix == ".gz":
            return _read_gzip(path, dimensions)
        with open(path, "rb") as file:
            shape = _read_header(file, dimensions)
            start, end = file.tell(), os.fstat(file.fileno()).st_size
        _check_length(shape, end - start)
        return np.memmap(path, np.uint8, "r", start, shape)
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise ValueError(f"Cannot read {path}: {error}") from error


def check_same_count(
    images_path: pathlib.Path, images: Any, labels_path: pathlib.Path, labels: Any
) -> None:
    """Raises ValueError unless there is a label for each image."""
    if len(images) != len(labels):
        raise ValueError(
            f"There must be a label for each image. Received: {len(images)} images in "
            f"{images_path} and {len(labels)} labels in {labels_path}"
        )


def _images_of_split(folder, split):
    if split not in _PREFIXES:
        raise ValueError(
            f'`split` must be "train" or "test" for the IDX files in {folder}. '
            f"Received: split={split!r}"
        )
    found = find_images(folder, split)
    if found is None:
        raise ValueError(
            f"`split` must be there: {folder} has no {_PREFIXES[split]}-images-idx3-"
            f"ubyte, with or without .gz. Received: split={split!r}"
        )
    return found


def _first_file(paths):
    return next((path for path in paths if path.is_file()), None)


def _read_header(file, dimensions):
    """The shape that an IDX file begins with."""
    magic = _read_whole(file, 4, "its header")
    if magic[:2] != b"\0\0" or magic[2] not in (_UNSIGNED_BYTE, *_TYPES):
        raise ValueError(f"it is no IDX file: it begins with {magic.hex(' ')}")
    if magic[2] != _UNSIGNED_BYTE:
        raise ValueError(f"it must hold unsigned bytes; it holds {_TYPES[magic[2]]}")
    if magic[3] not in dimensions:
        allowed = " or ".join(map(str, dimensions))
        raise ValueError(f"it must have {allowed} dimension(s); it has {magic[3]}")
    sizes = _read_whole(file, 4 * magic[3], "its header")
    shape = tuple(np.frombuffer(sizes, ">u4").tolist())
    if 0 in shape:
        raise ValueError(f"it must not be empty; its header says {_sizes(shape)}")
    return shape


def _check_length(shape, length):
    if math.prod(shape) != length:
        raise ValueError(
            f"its header says {_sizes(shape)} bytes, and {length} follow: it is "
            f"{'cut off' if length < math.prod(shape) else 'too long'}"
        )


def _read_gzip(path, dimensions):
    with gzip.open(path) as file:
        shape = _read_header(file, dimensions)
        size, most = math.prod(shape), _DEFLATE_RATIO * path.stat().st_size
        if size > most:
            raise ValueError(
                f"its header says {_sizes(shape)} bytes, and at most {most} can be "
                "in a gzip file of its length"
            )
        content = _read_whole(file, size, f"the {_sizes(shape)} bytes of its header")
        if file.read(1):  # at the end, where gzip compares its checksum
            raise ValueError(
                f"more than the {_sizes(shape)} bytes of its header follow"
            )
    return np.frombuffer(content, np.uint8).reshape(shape)


def _read_whole(file, size, what):
    """Exactly `size` bytes; memory grows with what comes, not with what was said."""
    content = bytearray()
    while len(content) < size:
        part = file.read(min(_CHUNK, size - len(content)))
        if not part:
            raise ValueError(f"it ends after {len(content)} bytes of {what}")
        content += part
    return content


def _sizes(shape):
    return " x ".join(map(str, shape))
