"""Checks of what the metrics are given."""

from typing import Any

import numpy as np


def check_images(images: Any, name: str = "images") -> np.ndarray:
    """Raises ValueError unless the images are uint8 (num_images, H, W, 3).

    Args:
        images: What should be images.
        name: What the message calls them.

    Returns:
        The images as an array.
    """
    images = np.asarray(images)
    if images.dtype != np.uint8:
        received = f"dtype {images.dtype}"
        if images.size and images.dtype.kind in "fiu":
            received += f", values from {images.min():g} to {images.max():g}"
        raise ValueError(
            f"`{name}` must be uint8 in the range [0, 255], as pictures are stored. "
            f"Received: {received}"
        )
    if images.ndim != 4 or images.shape[3] != 3:
        raise ValueError(
            f"`{name}` must have 3 channels and shape (num_images, H, W, 3). "
            f"Received: shape {images.shape}"
        )
    if not images.size:
        raise ValueError(f"`{name}` must not be empty. Received: shape {images.shape}")
    return images


def check_features(features: Any, name: str = "features") -> np.ndarray:
    """Raises ValueError unless the features are a finite, non-empty real matrix.

    Args:
        features: What should be of shape (num_samples, num_features).
        name: What the message calls them.

    Returns:
        The features as an array of float32, or float64 where they are wider.
    """
    return check_real(features, name, 2)


def check_real(array: Any, name: str, ndim: int) -> np.ndarray:
    """As `check_features`, for an array of `ndim` dimensions."""
    array = np.asarray(array)
    if array.dtype.kind not in "biuf":
        raise ValueError(f"`{name}` must be real numbers. Received {array.dtype}.")
    if array.ndim != ndim or array.size == 0:
        raise ValueError(
            f"`{name}` must be a non-empty array of {ndim} dimension(s). "
            f"Received shape {array.shape}."
        )
    narrow = array.dtype.kind == "f" and array.dtype.itemsize <= 4
    array = array.astype(np.float32 if narrow else np.float64, copy=False)
    if not np.isfinite(array).all():
        raise ValueError(f"`{name}` must be finite. Received NaN or infinite entries.")
    return array


def check_columns(
    features: np.ndarray, size: int | None, name: str, other: str
) -> None:
    """Raises ValueError unless the features have `size` columns, as `other` has."""
    if size is not None and features.shape[1] != size:
        raise ValueError(
            f"`{name}` must have {size} columns, as {other}. "
            f"Received {features.shape[1]}."
        )


def check_pair(features: Any, reference: Any) -> tuple[np.ndarray, np.ndarray]:
    """Features of samples and of data, of the same columns and two rows at least."""
    features = check_features(features, "features")
    reference = check_features(reference, "reference")
    check_columns(features, reference.shape[1], "features", "`reference` has")
    for name, array in (("features", features), ("reference", reference)):
        check_count(len(array), name)
    return features, reference


def check_count(count: int, name: str = "features", at_least: int = 2) -> None:
    """Raises ValueError if there are fewer than `at_least` samples."""
    if count < at_least:
        words = {2: "two"}.get(at_least, at_least)
        raise ValueError(
            f"`{name}` must have at least {words} rows, one for each sample. "
            f"Received {count}."
        )
