"""The objective of Inductive Moment Matching: Algorithm 3 and Eq. 67.

Networks and models are unknown here: the flow map is a function
`flow_map(x_t, t, s, labels) -> x_s`.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import keras
from keras import ops

from keras_imm import kernels, parameterizations, schedules, time_mappings, weightings
from keras_imm.precision import at_least_float32, maximum, mean, minimum
from keras_imm.validation import (
    check_batch_size,
    check_boolean,
    check_fraction,
    check_instance,
    check_integer,
    check_number,
    check_positive_number,
)

FlowMap = Callable[[Any, Any, Any, Any], Any]

_MIN_C_OUT = 1e-6


class Particles(NamedTuple):
    """One batch, noised: rows i M ... i M + M - 1 are group i and share s, r, t.

    Attributes:
        x_t: Samples at time t, shape (batch, ...).
        x_r: The same samples at time r, shape (batch, ...).
        s: Times the flow map goes to, shape (batch,).
        r: Times the target starts from, shape (batch,).
        t: Times the output starts from, shape (batch,).
        labels: Integer labels of the output's pass, shape (batch,), or None.
        target_labels: Integer labels of the target's pass, shape (batch,), or None.
        augmentation_labels: What was done to the samples, for the network alone,
            shape (batch, augmentation labels), or None.
    """

    x_t: Any
    x_r: Any
    s: Any
    r: Any
    t: Any
    labels: Any = None
    target_labels: Any = None
    augmentation_labels: Any = None


def sample_times(
    shape: tuple,
    min_time: float,
    max_time: float,
    seed: keras.random.SeedGenerator,
    dtype: str = "float32",
) -> tuple[Any, Any]:
    """Draws t ~ U(min_time, max_time) and s | t ~ U(min_time, t).

    Args:
        shape: Shape of the times, such as (groups,).
        min_time: Start of the time range (epsilon in the paper).
        max_time: End of the time range (T in the paper).
        seed: Seed generator; an integer would draw t and s alike.
        dtype: Dtype of the times.

    Returns:
        s and t, each of the given shape, min_time <= s <= t <= max_time.

    Raises:
        ValueError: If `seed` is not a seed generator.
    """
    check_instance("seed", seed, keras.random.SeedGenerator)
    t = keras.random.uniform(shape, min_time, max_time, dtype=dtype, seed=seed)
    fraction = keras.random.uniform(shape, dtype=dtype, seed=seed)
    return minimum(min_time + fraction * (t - min_time), t), t


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


class MomentMatching:
    """The training objective of a flow map, in the three parts of a train step.

    A train step draws particles, computes their target without keeping anything for
    the gradient, and differentiates the loss:

        particles = objective.draw(x, labels, seed)
        y_target = objective.target(flow_map, particles)
        loss = objective.loss(flow_map, particles, y_target)

    Args:
        schedule: Name or `keras_imm.schedules.Schedule`.
        parameterization: Name or `keras_imm.parameterizations.Parameterization`.
        time_mapping: Name or `keras_imm.time_mappings.TimeMapping`.
        kernel: Name or `keras_imm.kernels.Kernel`.
        weighting: Name or `keras_imm.weightings.Weighting`.
        group_size: Particles per group, M in the paper; a positive integer.
        sigma_data: Standard deviation of the data and of the noise; positive.
        min_time: Start of the time range, in [0, max_time).
        max_time: End of the time range, in (min_time, 1].
        label_dropout: Probability in [0, 1] that a label becomes the null label.
        drop_target_labels: Whether a dropped label is dropped in both passes, as in
            Algorithm 3, or (False) in the pass with gradient alone.
        null_label: The null label, needed where `label_dropout` is positive.

    Raises:
        ValueError: If an argument is out of its range.

    Reference: Zhou, Ermon, Song, Inductive Moment Matching, ICML 2025, Algorithm 3.
    """

    def __init__(
        self,
        schedule: str | schedules.Schedule,
        parameterization: str | parameterizations.Parameterization,
        time_mapping: str | time_mappings.TimeMapping,
        kernel: str | kernels.Kernel,
        weighting: str | weightings.Weighting,
        group_size: int = 4,
        sigma_data: float = 0.5,
        min_time: float = 0.0,
        max_time: float = 0.994,
        label_dropout: float = 0.0,
        drop_target_labels: bool = True,
        null_label: int | None = None,
    ):
        self.schedule = schedules.get(schedule)
        self.parameterization = parameterizations.get(parameterization)
        self.time_mapping = time_mappings.get(time_mapping)
        self.kernel = kernels.get(kernel)
        self.weighting = weightings.get(weighting)
        check_integer("group_size", group_size, at_least=1)
        check_positive_number("sigma_data", sigma_data)
        check_times(min_time, max_time)
        check_fraction("label_dropout", label_dropout)
        check_boolean("drop_target_labels", drop_target_labels)
        if label_dropout and null_label is None:
            raise ValueError(
                "`label_dropout` > 0 needs a `null_label`. "
                f"Received: label_dropout={label_dropout!r}, null_label=None"
            )
        self.parameterization.check(self.schedule)
        self.time_mapping.check(self.schedule, min_time, max_time)
        self.group_size = group_size
        self.sigma_data = sigma_data
        self.min_time = min_time
        self.max_time = max_time
        self.label_dropout = label_dropout
        self.drop_target_labels = drop_target_labels
        self.null_label = null_label

    def draw(
        self,
        x: Any,
        labels: Any,
        seed: keras.random.SeedGenerator,
        dropout: bool = True,
    ) -> Particles:
        """Algorithm 3 up to the networks: times, noise and dropped labels.

        Args:
            x: Data of standard deviation `sigma_data`, shape (batch, ...).
            labels: Integer labels of shape (batch,), or None.
            seed: Seed generator.
            dropout: Whether labels are dropped.

        Returns:
            `Particles`.

        Raises:
            ValueError: If the group size does not divide the batch, or `seed` is
                not a seed generator.
        """
        check_batch_size(x.shape[0], self.group_size)
        x = at_least_float32(x)
        batch = ops.shape(x)[0]
        dtype = keras.backend.standardize_dtype(x.dtype)

        # (s, r, t) once per group
        groups = (batch // self.group_size,)
        s, t = sample_times(groups, self.min_time, self.max_time, seed, dtype)
        r = self.time_mapping(self.schedule, s, t, self.min_time, self.max_time)
        s, r, t = (ops.repeat(time, self.group_size, axis=0) for time in (s, r, t))

        # eps ~ N(0, sigma_d^2 I)
        noise = keras.random.normal(ops.shape(x), dtype=dtype, seed=seed)

        kept = dropped = labels
        if labels is not None and dropout and self.label_dropout:
            draws = keras.random.uniform((batch,), seed=seed)
            null = ops.full_like(labels, self.null_label)
            dropped = ops.where(draws < self.label_dropout, null, labels)
        target_labels = dropped if self.drop_target_labels else kept
        return self.noised(x, noise * self.sigma_data, s, r, t, dropped, target_labels)

    def noised(
        self,
        x: Any,
        noise: Any,
        s: Any,
        r: Any,
        t: Any,
        labels: Any = None,
        target_labels: Any = None,
    ) -> Particles:
        """Particles of given noise, times and labels.

        Args:
            x: Data, shape (batch, ...).
            noise: Noise of standard deviation `sigma_data`, the shape of `x`.
            s: Times of shape (batch,), equal within each group, s <= r <= t.
            r: As `s`.
            t: As `s`.
            labels: Integer labels of the output's pass, shape (batch,), or None.
            target_labels: As `labels`, of the target's pass.

        Returns:
            `Particles`.
        """
        alpha_t = per_sample(self.schedule.alpha(t), x)
        sigma_t = per_sample(self.schedule.sigma(t), x)
        x_t = alpha_t * x + sigma_t * noise

        # x_r = DDIM(x_t, x, r, t)
        skip, out = self.schedule.ddim_coefficients(r, t)
        x_r = per_sample(skip, x) * x_t + per_sample(out, x) * x
        return Particles(x_t, x_r, s, r, t, labels, target_labels)

    def target(self, flow_map: FlowMap, particles: Particles) -> Any:
        """y^- = f_{s,r}(x_r), with the current weights; shape (batch, ...)."""
        p = particles
        return flow_map(p.x_r, p.r, p.s, p.target_labels)

    def loss(self, flow_map: FlowMap, particles: Particles, y_target: Any) -> Any:
        """Mean over the groups of w(s, t) times their squared MMD (Eq. 67).

        Args:
            flow_map: Differentiable flow map.
            particles: What `draw` returned.
            y_target: What `target` returned; no gradient should flow into it.

        Returns:
            Scalar tensor, float32 or wider.
        """
        p = particles
        y = flow_map(p.x_t, p.t, p.s, p.labels)  # f_{s,t}(x_t)

        s, t = p.s[:: self.group_size], p.t[:: self.group_size]
        c_out = self.parameterization.c_out(self.schedule, s, t, self.sigma_data)
        kernel_scale = 1.0 / maximum(ops.abs(c_out), _MIN_C_OUT)
        mmd = grouped_mmd(y, y_target, kernel_scale, self.kernel, self.group_size)
        weight = self.weighting(self.schedule, s, t)
        # At s = t both passes are the identity: exactly 0, whatever is rounded.
        weight = ops.where(s < t, weight, ops.zeros_like(weight))
        return mean(weight * mmd)


def per_sample(coefficient: Any, x: Any) -> Any:
    """Reshapes (batch,) to (batch, 1, ...), to multiply `x` of (batch, ...)."""
    return ops.reshape(coefficient, (-1,) + (1,) * (len(x.shape) - 1))


def check_times(min_time: float, max_time: float) -> None:
    """Raises ValueError unless 0 <= min_time < max_time <= 1."""
    for name, value in (("min_time", min_time), ("max_time", max_time)):
        check_number(name, value, "a number in [0, 1]", lambda _: True)
    if not 0.0 <= min_time < max_time <= 1.0:
        raise ValueError(
            "Times must satisfy 0 <= `min_time` < `max_time` <= 1. "
            f"Received: min_time={min_time!r}, max_time={max_time!r}"
        )
