"""Halving and doubling the resolution of images with a separable filter."""

import math
from typing import Any

import numpy as np
from keras import ops


def check_resample_filter(name: str, value: Any) -> None:
    """Raises ValueError unless `value` is a filter that `downsample` takes."""
    is_list = isinstance(value, (tuple, list)) and len(value) > 0
    if (
        not is_list
        or len(value) % 2
        or not all(_is_positive(tap) for tap in value)
        or list(value) != list(reversed(value))
    ):
        raise ValueError(
            f"`{name}` must be a symmetric list of an even number of positive numbers, "
            f"such as [1, 1] or [1, 3, 3, 1]. Received: {name}={value!r}"
        )


def _is_positive(tap) -> bool:
    is_number = isinstance(tap, (int, float, np.integer, np.floating))
    return is_number and not isinstance(tap, bool) and 0 < tap < math.inf


def downsample(x: Any, resample_filter: tuple[float, ...] = (1, 1)) -> Any:
    """Halves height and width: filter along both, then keep every other pixel.

    Args:
        x: Tensor of shape `(batch, height, width, channels)`, with even sides.
        resample_filter: Positive numbers, symmetric and of even length n, scaled here
            to the sum 1. `[1, 1]` is the mean of 2x2 pixels. Beyond the border is zero.

    Returns:
        A tensor of shape `(batch, height / 2, width / 2, channels)`.

    Example:

    ```python
    x = downsample(np.ones((1, 8, 8, 3), "float32"), (1, 3, 3, 1))  # (1, 4, 4, 3)
    ```
    """
    pad = len(resample_filter) // 2 - 1
    return decimate(_pad(x, pad), resample_filter)


def decimate(x: Any, resample_filter: tuple[float, ...]) -> Any:
    """As `downsample`, without the border: sides shrink by n - 2 before they halve."""
    x = _decimate_axis(x, resample_filter, axis=1)
    return _decimate_axis(x, resample_filter, axis=2)


def upsample(x: Any, resample_filter: tuple[float, ...] = (1, 1)) -> Any:
    """Doubles height and width: zeros between the pixels, then filter along both.

    Args:
        x: Tensor of shape `(batch, height, width, channels)`.
        resample_filter: Positive numbers, symmetric and of even length, scaled here to
            the sum 2. `[1, 1]` repeats each pixel 2x2 times. Beyond the border is zero.

    Returns:
        A tensor of shape `(batch, 2 height, 2 width, channels)`.

    Example:

    ```python
    x = upsample(np.ones((1, 4, 4, 3), "float32"), (1, 3, 3, 1))  # (1, 8, 8, 3)
    ```
    """
    x = _upsample_axis(x, resample_filter, axis=1)
    return _upsample_axis(x, resample_filter, axis=2)


def _decimate_axis(x, resample_filter, axis):
    """Sum of the filter's taps times every other pixel along one axis.

    Written as sums of slices: a depthwise convolution is many times slower on XLA's
    and TensorFlow's CPU devices.
    """
    taps = _scaled(resample_filter, 1.0)
    shape = list(x.shape)
    size = (shape[axis] - len(taps)) // 2 + 1
    pairs = ops.reshape(
        x, [-1, *shape[1:axis], shape[axis] // 2, 2, *shape[axis + 1 :]]
    )
    phases = ops.unstack(pairs, 2, axis=axis + 1)
    return sum(
        tap * _slice(phases[k % 2], axis, k // 2, size) for k, tap in enumerate(taps)
    )


def _upsample_axis(x, resample_filter, axis):
    """Even and odd outputs are two filters of half the taps, then interleaved."""
    taps = _scaled(resample_filter, 2.0)
    pad = len(taps) // 2 - 1
    shape = list(x.shape)
    size = shape[axis]
    padded = _pad(x, pad, axes=(axis,))
    phases = []
    for phase in range(2):
        # Output 2 i + phase sees input j through tap 2 (i - j) + phase + pad.
        terms = []
        for k, tap in enumerate(taps):
            if (k - phase - pad) % 2 == 0:
                offset = (phase + pad - k) // 2
                terms.append(tap * _slice(padded, axis, pad + offset, size))
        phases.append(sum(terms))
    x = ops.stack(phases, axis=axis + 1)
    return ops.reshape(x, [-1, *shape[1:axis], 2 * size, *shape[axis + 1 :]])


def _scaled(resample_filter, total: float) -> list[float]:
    return [total * tap / sum(resample_filter) for tap in resample_filter]


def _pad(x, pad: int, axes: tuple[int, ...] = (1, 2)):
    if pad == 0:
        return x
    return ops.pad(x, [(pad, pad) if axis in axes else (0, 0) for axis in range(4)])


def _slice(x, axis: int, start: int, size: int):
    index = [slice(None)] * 4
    index[axis] = slice(start, start + size)
    return x[tuple(index)]
