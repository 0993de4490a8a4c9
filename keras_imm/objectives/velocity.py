"""What objectives that learn a flow's velocity share: paths, guidance and errors."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

from keras_imm import parameterizations, schedules
from keras_imm.flow_map import FlowMap, Network, per_sample
from keras_imm.precision import mean

# What objectives of the average velocity u = sigma_data G want of a flow map. They see
# unscaled times: their derivatives in time grow with the scale.
AVERAGE_VELOCITY: Mapping[str, Any] = {
    "schedule": "flow_matching",
    "parameterization": "euler_fm",
    "second_time": "stride",
    "time_scale": 1.0,
    "max_time": 1.0,
}
_MIN_SQUARED_ERROR = 1e-30


class JumpParticles(NamedTuple):
    """One batch, noised, with where its rows jump from and to.

    Attributes:
        x_t: Samples at time t, shape (batch, ...).
        t: Times of shape (batch,).
        s: Times of shape (batch,), s <= t; s = t where a row learns the velocity.
        velocity: alpha'(t) x + sigma'(t) noise, the shape of `x_t`.
        labels: Integers of shape (batch,), or None.
    """

    x_t: Any
    t: Any
    s: Any
    velocity: Any
    labels: Any = None


def jump_particles(
    schedule: schedules.Schedule, x: Any, noise: Any, t: Any, s: Any, labels: Any = None
) -> JumpParticles:
    """Particles of given noise of standard deviation `sigma_data`, and times."""
    of = schedule, x, noise, t
    return JumpParticles(noised(*of), t, s, path_velocity(*of), labels)


def drawn_noise(network: Network, x: Any, seed: keras.random.SeedGenerator) -> Any:
    """Noise of standard deviation `sigma_data`, of the shape and dtype of `x`."""
    dtype = keras.backend.standardize_dtype(x.dtype)
    noise = keras.random.normal(ops.shape(x), dtype=dtype, seed=seed)
    return noise * network.sigma_data


def path_velocity(schedule: schedules.Schedule, x: Any, noise: Any, t: Any) -> Any:
    """alpha'(t) x + sigma'(t) noise: the velocity of each path at t.

    Args:
        schedule: Noise schedule.
        x: Data, shape (batch, ...).
        noise: The shape of `x`.
        t: Times of shape (batch,).

    Returns:
        Tensor of the shape of `x`.
    """
    rates = schedule.alpha_derivative(t), schedule.sigma_derivative(t)
    alpha_rate, sigma_rate = (per_sample(rate, x) for rate in rates)
    return alpha_rate * x + sigma_rate * noise


def noised(schedule: schedules.Schedule, x: Any, noise: Any, t: Any) -> Any:
    """alpha(t) x + sigma(t) noise; arguments and result as of `path_velocity`."""
    alpha, sigma = (per_sample(of(t), x) for of in (schedule.alpha, schedule.sigma))
    return alpha * x + sigma * noise


def guided_velocity(
    network: Network,
    x: Any,
    t: Any,
    velocity: Any,
    labels: Any,
    omega: float,
    kappa: float,
) -> Any:
    """omega v + kappa u(x, t, t, label) + (1 - omega - kappa) u(x, t, t, null).

    Rows with the null label keep v. It is guidance by a scale of omega / (1 - kappa),
    learned in training.

    Args:
        network: The network; its average velocity at s = t is u.
        x: Samples at time t, shape (batch, ...).
        t: Times of shape (batch,).
        velocity: v, the shape of `x`.
        labels: Integers of shape (batch,), or None.
        omega: A number, or one for each row, shape (batch,).
        kappa: As `omega`.

    Returns:
        Tensor of the shape of `x`.

    Reference:
        - [Geng et al., 2025](https://arxiv.org/abs/2505.13447), Eq. 21
    """
    if labels is None:  # all have the null label
        return velocity
    null = ops.zeros_like(labels) + network.null_label
    of_label, of_null = (
        network.sigma_data * network.output(x, t, t, each) for each in (labels, null)
    )
    omega, kappa = (
        per_sample(ops.cast(each, x.dtype) + ops.zeros_like(t), x)
        for each in (omega, kappa)
    )
    guided = omega * velocity + kappa * of_label + (1.0 - omega - kappa) * of_null
    return ops.where(per_sample(labels == null, x), velocity, guided)


def squared_norm(x: Any) -> Any:
    """||x||^2 of each row, shape (batch,)."""
    return ops.sum(ops.square(x), axis=tuple(range(1, len(x.shape))))


def log_squared_norm(x: Any) -> Any:
    """The mean over the rows of log ||x||^2: what a normalised loss does not say."""
    squared = squared_norm(ops.stop_gradient(x))
    return mean(ops.log(squared + _MIN_SQUARED_ERROR))


def adaptive(squared: Any, power: float, constant: float) -> Any:
    """e^2 / sg(e^2 + constant)^power, for squared errors e^2 of shape (batch,)."""
    return squared / ops.stop_gradient((squared + constant) ** power)


def check_velocity(flow_map: FlowMap) -> None:
    """Raises ValueError if the flow has no velocity at the start of the time range."""
    start = ops.convert_to_tensor(flow_map.min_time, "float32")
    coefficients = flow_map.parameterization.velocity_coefficients(
        flow_map.schedule, start, flow_map.sigma_data
    )
    if not np.all(np.isfinite([ops.convert_to_numpy(c) for c in coefficients])):
        name = type(flow_map.parameterization).__name__
        raise ValueError(
            f"`parameterization={name}` has no velocity at `min_time`: it needs a "
            f"larger one. Received: min_time={flow_map.min_time!r}"
        )


def check_guidance(label_dropout: float, options: str) -> None:
    """Raises ValueError unless guidance in training has both labels and none."""
    if not 0.0 < label_dropout < 1.0:
        raise ValueError(
            f"Guidance in training needs `label_dropout` in (0, 1), so that the null "
            f"label is trained beside the others. Received: {options}, "
            f"label_dropout={label_dropout!r}"
        )


def check_has_null_label(flow_map: FlowMap, options: str) -> None:
    """Raises ValueError unless a flow map has labels to guide to."""
    if flow_map.null_label is None:
        raise ValueError(
            "Guidance in training needs a backbone with `num_classes` > 0. Received: "
            f"{options}, num_classes=0"
        )


def check_average_velocity(flow_map: FlowMap, objective: str) -> None:
    """Raises ValueError unless the network's output is the flow's average velocity."""
    if not isinstance(flow_map.parameterization, parameterizations.EulerFM):
        raise ValueError(
            f"`{objective}` learns the flow's average velocity: it needs "
            '`parameterization="euler_fm"`. Received: '
            f"parameterization={flow_map.parameterization!r}"
        )
