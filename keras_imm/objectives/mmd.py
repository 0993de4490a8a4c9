"""Maximum mean discrepancy of groups of particles (IMM Eq. 67)."""

import math
from typing import Any

from keras import ops

from keras_imm import kernels
from keras_imm.backend import jvp
from keras_imm.precision import at_least_float32, maximum, mean
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


def interaction_share(
    y: Any,
    y_target: Any,
    kernel_scale: Any,
    kernel: kernels.Kernel,
    group_size: int,
) -> Any:
    """How much of the gradient of `grouped_mmd` particles owe to each other.

    The gradient of a particle has a part of its own target, and one of the other
    particles and their targets. Only kernels with `relative` are known so well.

    Args:
        y: As in `grouped_mmd`, and so the other arguments.
        y_target: As in `grouped_mmd`.
        kernel_scale: As in `grouped_mmd`.
        kernel: A `keras_imm.kernels.Kernel`.
        group_size: As in `grouped_mmd`.

    Returns:
        Tensor of shape (batch // group_size,): the norm of the part of the others over
        that of the whole, 0 where there is neither.
    """
    M, D = group_size, math.prod(y.shape[1:])
    y = ops.reshape(ops.stop_gradient(at_least_float32(y)), (-1, M, D))
    target = ops.reshape(ops.stop_gradient(ops.cast(y_target, y.dtype)), (-1, M, D))
    scale = ops.reshape(ops.cast(kernel_scale, y.dtype), (-1, 1, 1))
    own = ops.cast(ops.expand_dims(ops.eye(M), -1), y.dtype)  # a particle's own pair

    def forces(other):
        """dk / d ||y_j - other_k||^2 times y_j - other_k, of every pair."""
        difference = ops.expand_dims(y, -2) - ops.expand_dims(other, -3)
        squared = ops.sum(ops.square(difference), axis=-1)
        _, slopes = jvp(
            lambda squared: kernel.relative(squared, scale, D),
            (squared,),
            (ops.ones_like(squared),),
        )
        return ops.expand_dims(slopes, -1) * difference

    # No product of matrices: these are small, and as exact as the kernel's.
    of_targets = forces(target)
    others = ops.sum((forces(y) - of_targets) * (1.0 - own), axis=-2)
    of_own = -ops.sum(of_targets * own, axis=-2)
    part, whole = (
        ops.sqrt(ops.sum(ops.square(each), axis=(1, 2)))
        for each in (others, others + of_own)
    )
    return part / maximum(whole, 1e-30)


def knows_interaction(kernel: kernels.Kernel) -> bool:
    """Whether `interaction_share` can tell: the kernel has `relative` alone."""
    kind = type(kernel)
    own_pairs = kind.pairs is not kernels.Kernel.pairs
    return not own_pairs and kind.relative is not kernels.Kernel.relative
