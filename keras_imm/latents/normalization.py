"""The scale in which a model sees Stable Diffusion's latents."""

from typing import Any

import keras
import numpy as np
from keras import ops

from keras_imm.validation import check_positive_number

# Mean and standard deviation of ImageNet's sampled latents, per channel.
MEAN = (0.86488, -0.27787343, 0.21616915, 0.3738409)
STD = (4.85503674, 5.31922414, 3.93725398, 3.9870003)


def normalize(z: Any, sigma_data: float = 0.5) -> Any:
    """Scales latents to mean 0 and standard deviation `sigma_data` per channel.

    `(z - MEAN) / STD * sigma_data`, without Stable Diffusion's factor of 0.18215.

    Args:
        z: Latents, sampled from the autoencoder's moments, shape (..., 4): a NumPy
            array or a tensor.
        sigma_data: The standard deviation to reach, above 0.

    Returns:
        The scaled latents, of the same kind and shape, in float32 or wider.

    Raises:
        ValueError: If the last axis has not 4 entries or `sigma_data` is not positive.

    Example:

    ```python
    x = keras_imm.latents.normalize(np.zeros((1, 32, 32, 4), "float32"))
    ```

    Reference:
        - [Inductive Moment Matching](https://arxiv.org/abs/2503.07565), Appendix I.
    """
    z, mean, std = _with_constants(z, sigma_data)
    return (z - mean) / std * sigma_data


def denormalize(x: Any, sigma_data: float = 0.5) -> Any:
    """Undoes `normalize`: the autoencoder's latents from a model's.

    Args:
        x: Scaled latents, shape (..., 4): a NumPy array or a tensor.
        sigma_data: The standard deviation they were scaled to, above 0.

    Returns:
        `x / sigma_data * STD + MEAN`, of the same kind and shape, in float32 or wider.

    Raises:
        ValueError: If the last axis has not 4 entries or `sigma_data` is not positive.
    """
    x, mean, std = _with_constants(x, sigma_data)
    return x / sigma_data * std + mean


def _with_constants(z, sigma_data):
    """The latents, their mean and their standard deviation in one dtype."""
    check_positive_number("sigma_data", sigma_data)
    shape = getattr(z, "shape", None)
    if not shape or shape[-1] != len(MEAN):
        raise ValueError(
            f"Latents must be an array of shape (..., {len(MEAN)}). Received: "
            f"{repr(z) if shape is None else f'shape {tuple(shape)}'}"
        )
    if isinstance(z, np.ndarray):
        dtype = np.result_type(z.dtype, np.float32)
        return tuple(np.asarray(values, dtype) for values in (z, MEAN, STD))
    dtype = keras.backend.result_type(z.dtype, "float32")
    return tuple(
        ops.cast(ops.convert_to_tensor(values), dtype) for values in (z, MEAN, STD)
    )
