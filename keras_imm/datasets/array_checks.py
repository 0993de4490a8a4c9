"""Whether arrays are images as they should be: layout, dtype and range."""

import math

import numpy as np

from keras_imm.training_data import SCALES

# Far outside of any model's range, and dark for an image in [0, 255].
_LARGEST_FLOAT = 20
_DARK_BYTE = 32  # below, uint8 values are hardly those of images
_SIGMA_DATA = 0.5  # of a model that is told nothing
_CHANNELS = (1, 3, 4)
_MOST_RECORDS, _MOST_BYTES = 64, 2**26  # that are looked at


def check_layout(images: np.ndarray, name: str) -> None:
    """Raises ValueError if images have their channels, or their number, elsewhere.

    Args:
        images: Shape (num_records, H, W, C) or (num_records, H, W). What can be that
            is taken for it; floats, which may be other things than images, are also
            where the sides are not equal.
        name: What they are called in messages.
    """
    if images.ndim == 3:
        if images.shape[2] < 4 and _is_image(images, (0, 1), 2):
            raise ValueError(
                "Images must have the shape (num_records, H, W, C) or (num_records, H, "
                f"W). Received: {name} of shape {images.shape}, as one image has it; "
                "`images[None]` is a data set of it"
            )
        return
    for sides, channels, axes in (((2, 3), 1, (0, 2, 3, 1)), ((0, 1), 2, (3, 0, 1, 2))):
        if _is_image(images, sides, channels) and images.shape[3] > max(_CHANNELS):
            raise ValueError(
                "Images must have their channels last, shape (num_records, H, W, C). "
                f"Received: {name} of shape {images.shape}; give "
                f"`images.transpose{axes}`"
            )


def _is_image(images, sides, channels):
    """Whether these axes can be sides and channels of images."""
    height, width = (images.shape[axis] for axis in sides)
    return (
        images.shape[channels] in _CHANNELS
        and min(height, width) > max(_CHANNELS)
        and (images.dtype == np.uint8 or height == width)
    )


def dtype_advice(images: np.ndarray) -> str:
    """What to do with images of another shape, or dtype than uint8 or floats."""
    kind = images.dtype.kind
    if images.ndim not in (3, 4) and kind != "O":
        return (
            "; give them as `images.reshape(-1, H, W, C)` with their sides and channels"
        )
    if kind == "O":
        return "; stack images of one size into one array of numbers"
    if kind == "b":
        return "; give `255 * images.astype('uint8')`"
    if kind not in "iu" or not images.size:
        return ""
    lowest, highest = images.min(), images.max()
    if lowest >= 0 and highest <= 255:
        return "; give `images.astype('uint8')`"
    if lowest >= 0 and highest < 2**16:
        return "; of 16 bits give `(images // 256).astype('uint8')`"
    return f", values from {lowest} to {highest}; scale them to about [-1, 1]"


def check_float(largest: float, name: str) -> None:
    """Raises ValueError if the largest absolute value of an image is out of range."""
    if largest > _LARGEST_FLOAT:
        raise ValueError(
            "Images of floats must be in the model's range, about [-1, 1]; those "
            f"in [0, 255] must be uint8. Received: {name} with {largest:g} in "
            "absolute value"
        )


def range_problem(images: np.ndarray, name: str) -> str | None:
    """Says why values are hardly those of images for a model, or returns None.

    Args:
        images: uint8 or floats of shape (num_records, ...), of which up to 64 are
            looked at.
        name: What they are called in messages.

    Raises:
        ValueError: If floats are above 20 in absolute value.
    """
    count = max(1, min(len(images), _MOST_RECORDS, _MOST_BYTES // images[0].nbytes))
    rows = np.unique(np.linspace(0, len(images) - 1, count).astype(int))
    values = np.asarray(images[rows])
    if values.dtype == np.uint8:
        return _problem_of_bytes(values)
    for row, record in zip(rows, values, strict=True):
        finite = np.where(np.isfinite(record), record, 0)
        check_float(np.abs(finite).max(), f"{name}[{row}]")
    return _problem_of_floats(values[np.isfinite(values)])


def _problem_of_bytes(values):
    lowest, highest = values.min(), values.max()
    if lowest == highest or highest >= _DARK_BYTE:
        return None
    return (
        f"from {lowest} to {highest}, and taken for [0, 255]: they become "
        f"{lowest / 127.5 - 1:.2f} to {highest / 127.5 - 1:.2f}"
    )


def _problem_of_floats(values):
    if not values.size or values.min() == values.max():
        return None
    lowest, highest = float(values.min()), float(values.max())
    if lowest >= 0:
        return (
            f"from {lowest:g} to {highest:g}, and models expect about [-1, 1]: give "
            f"`images / {math.ceil(highest) / 2:g} - 1`"
        )
    deviation = float(values.std(dtype="float64"))
    least, most = SCALES
    if least <= deviation / _SIGMA_DATA <= most:
        return None
    return (
        f"of standard deviation {deviation:.3g}, and models expect about 0.5, their "
        "`sigma_data`: scale them"
    )
