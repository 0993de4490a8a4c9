"""Checks that the constructors of layers and backbones share."""

import numpy as np


def check_image_shape(name: str, value) -> None:
    """Raises ValueError unless `value` is three positive integers."""
    is_shape = isinstance(value, (tuple, list)) and len(value) == 3
    if not is_shape or not all(
        isinstance(side, (int, np.integer)) and not isinstance(side, bool) and side > 0
        for side in value
    ):
        raise ValueError(
            f"`{name}` must be three positive integers (height, width, channels). "
            f"Received: {name}={value!r}"
        )


def check_divides(name: str, value: int, what: str, whole: int) -> None:
    """Raises ValueError unless `value` divides `whole`, which `what` describes."""
    if whole % value != 0:
        raise ValueError(
            f"`{name}` must divide {what}, which is {whole}. Received: {name}={value!r}"
        )
