"""Maximum mean discrepancy of groups of particles (IMM Eq. 67)."""

import math
from typing import Any

from keras import ops

from keras_imm import kernels
from keras_imm.precision import at_least_float32, mean
from keras_imm.validation import check_batch_size, check_integer


def grouped_mmd(
    y: Any,
    y_target: Any,
    kernel_scale: Any,
    kernel: str | kernels.Kernel = "laplace",
    group_size: int = 4,
) -> Any:
    """Squared maximum mean discrepancy of each group of particles (Eq. 67).

    Args:
        y: Particles, shape (batch, ...); consecutive rows make a group.
        y_target: Target particles, the shape of `y`.
        kernel_scale: Scale of the kernel, shape (batch // group_size,).
        kernel: Name of a kernel or a `keras_imm.kernels.Kernel`.
        group_size: Particles per group, M in the paper; divides the batch.

    Returns:
        Tensor of shape (batch // group_size,), in float32 or the wider dtype of
        `y`: for each group the mean over all M^2 pairs (the V-statistic: j = k
        stays in) of k(y_j, y_k) + k(y'_j, y'_k) - 2 k(y_j, y'_k).

    Raises:
        ValueError: If the group size is not a positive integer that divides the
            batch, the kernel is not known, or the shapes do not fit each other.
    """
    kernel = kernels.get(kernel)
    check_integer("group_size", group_size, at_least=1)
    check_batch_size(y.shape[0], group_size)
    if tuple(y_target.shape) != tuple(y.shape):
        raise ValueError(
            "`y_target` must have the shape of `y`. Received: shape "
            f"{tuple(y_target.shape)}, y of shape {tuple(y.shape)}"
        )
    y = at_least_float32(y)
    scale = ops.convert_to_tensor(kernel_scale, y.dtype)
    if isinstance(y.shape[0], int) and tuple(scale.shape) != (
        y.shape[0] // group_size,
    ):
        raise ValueError(
            "`kernel_scale` must have one entry per group, shape "
            f"({y.shape[0] // group_size},). Received: shape {tuple(scale.shape)}"
        )
    groups = (-1, group_size, math.prod(y.shape[1:]))
    y = ops.reshape(y, groups)
    y_target = ops.reshape(ops.convert_to_tensor(y_target, y.dtype), groups)
    scale = ops.reshape(scale, (-1, 1, 1))

    def k(a, b):
        return kernel.pairs(a, b, scale)

    pairs = k(y, y) + k(y_target, y_target) - 2.0 * k(y, y_target)
    return mean(pairs, axis=(1, 2))
