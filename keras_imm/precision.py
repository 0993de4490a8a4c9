"""Times, coefficients and losses are computed in float32, or wider."""

from typing import Any

import keras
import numpy as np
from keras import ops


def at_least_float32(x: Any) -> Any:
    """Converts `x` to a float tensor that is no narrower than float32.

    Args:
        x: Number, array or tensor of any shape and numeric dtype.

    Returns:
        Tensor of the shape of `x`: float64 where `x` is a float64 array or
        tensor, float32 otherwise (a Python number is a float32).
    """
    wide = "float64" in str(getattr(x, "dtype", ""))
    dtype = "float64" if wide else "float32"
    if isinstance(x, (int, float, list, tuple, np.ndarray, np.generic)):
        return ops.convert_to_tensor(np.asarray(x, dtype))
    return ops.cast(ops.convert_to_tensor(x), dtype)


def maximum(x: Any, y: Any) -> Any:
    """The larger of a float tensor and a tensor of its dtype, or a number.

    `keras.ops.maximum` returns float32 for float64 under PyTorch. NaN in `x` stays.
    """
    y = _like(y, x)
    return ops.where(x < y, y, x)


def minimum(x: Any, y: Any) -> Any:
    """The smaller of a float tensor and a tensor of its dtype, or a number.

    `keras.ops.minimum` returns float32 for float64 under PyTorch. NaN in `x` stays.
    """
    y = _like(y, x)
    return ops.where(x > y, y, x)


def _like(y: Any, x: Any) -> Any:
    """A number in the dtype of `x`: PyTorch's `where` would round it to float32."""
    if isinstance(y, (int, float)):
        dtype = keras.backend.standardize_dtype(x.dtype)
        return ops.convert_to_tensor(np.asarray(y, dtype))
    return y


def mean(x: Any, axis: tuple[int, ...] | None = None) -> Any:
    """The mean of a float tensor over some of its axes, or all.

    `keras.ops.mean` rounds float64 to float32 under PyTorch.
    """
    return ops.sum(x, axis=axis) / ops.sum(ops.ones_like(x), axis=axis)
