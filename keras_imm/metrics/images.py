"""What the feature networks see: 8-bit images."""

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
