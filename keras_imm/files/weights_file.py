"""Files of weights, stored in fewer bits than the model computes with."""

import os
import pathlib

import numpy as np

from keras_imm.files.hdf5_file import hdf5_file


def narrow(path: str | os.PathLike[str], dtype: str) -> None:
    """Rewrites a `.weights.h5` file with its wider floats in another type.

    Keras loads the file as any other: a variable takes values in its own type. What
    is zero throughout, such as averages that have not begun, takes no space.

    Args:
        path: The file.
        dtype: "float16" or "float32".

    Raises:
        OSError: If the disk is full, among others.
    """
    import h5py

    path = pathlib.Path(path)
    narrowed = path.with_name(f"narrowed-{path.name}")
    with (
        h5py.File(path) as source,
        hdf5_file(narrowed) as file,
        h5py.File(file, "w") as target,
    ):
        _copy_group(source, target, np.dtype(dtype))
    os.replace(narrowed, path)


def is_weights_file(path: str | os.PathLike[str]) -> bool:
    """Whether a file is of the format in which Keras stores weights."""
    import h5py

    return os.path.isfile(path) and bool(h5py.is_hdf5(path))


def _copy_group(source, target, dtype: np.dtype) -> None:
    target.attrs.update(source.attrs)
    for name, item in source.items():
        if hasattr(item, "items"):
            _copy_group(item, target.create_group(name), dtype)
            continue
        values = item[()]
        is_wider = item.dtype.kind == "f" and item.dtype.itemsize > dtype.itemsize
        kept = dtype if is_wider else item.dtype
        is_zero = item.dtype.kind == "f" and not np.any(values)
        copied = target.create_dataset(
            name, item.shape, kept, data=None if is_zero else values.astype(kept)
        )
        copied.attrs.update(item.attrs)
