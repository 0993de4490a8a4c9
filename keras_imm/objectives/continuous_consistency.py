"""Consistency in continuous time (sCM)."""

import math
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import keras
from keras import ops

from keras_imm import parameterizations, schedules
from keras_imm.flow_map import FlowMap, Network, per_sample
from keras_imm.objectives.to_the_data import ToTheData, start
from keras_imm.objectives.velocity import (
    drawn_noise,
    log_squared_norm,
    noised,
    path_velocity,
    squared_norm,
)
from keras_imm.precision import at_least_float32, mean, minimum
from keras_imm.validation import check_fraction, check_positive_number


class Particles(NamedTuple):
    """One batch, noised.

    Attributes:
        x_t: Samples at time t, shape (batch, ...).
        t: Times of shape (batch,).
        velocity: dx/dtau with the angle tau = pi t / 2, the shape of `x_t`.
        ramp: Weight of the derivative in the tangent, the same in all rows, (batch,).
        labels: Integers of shape (batch,), or None.
    """

    x_t: Any
    t: Any
    velocity: Any
    ramp: Any
    labels: Any = None


@keras.saving.register_keras_serializable(package="keras_imm.objectives")
class ContinuousConsistency(ToTheData):
    """Consistency in continuous time, with a normalised tangent (sCM, TrigFlow).

    With the angle tau = pi t / 2 the flow map to the data is f = cos(tau) x - sin(tau)
    sigma_data F, the network F moves against the normalised tangent g = cos(tau)
    df/dtau. The learned weight of the paper is left out: at its optimum it cancels the
    paper's other weight, up to the mean of ||g||^2 at a time.

    Args:
        warmup: Share of the training in [0, 1] over which the weight of the
            derivative in the tangent goes from 0, flow matching, to 1. Published are
            10,000 steps of some 400,000 that start from a diffusion model's weights.
        constant: c of the tangent's normalisation g / (rms(g) + c), in units of
            sigma_data; positive.
        noise_mean: Mean of log(sigma), where sigma = sigma_data tan(tau).
        noise_std: Its standard deviation.
        label_dropout: As in `Objective`.
        total_steps: As in `Objective`; needed.

    Raises:
        ValueError: If an argument is out of its range.

    Reference:
        - [Lu and Song, 2024](https://arxiv.org/abs/2410.11081), Algorithm 1
    """

    needs_total_steps = True
    network_passes = 5.0  # value and derivative, the output and its backward pass
    flow_map: ClassVar[Mapping[str, Any]] = {
        "schedule": "cosine",
        "parameterization": "simple_edm",
        "time_scale": 1.0,
        "max_time": 1.0,
    }
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "cifar10": {"warmup": 0.025, "label_dropout": 0.0},
        "imagenet64": {"warmup": 0.025, "noise_std": 1.6},
    }

    def __init__(
        self,
        warmup: float = 0.3,
        constant: float = 0.1,
        noise_mean: float = -1.0,
        noise_std: float = 1.4,
        label_dropout: float = 0.1,
        total_steps: int | None = None,
    ):
        super().__init__(
            noise_mean, noise_std, label_dropout=label_dropout, total_steps=total_steps
        )
        check_fraction("warmup", warmup)
        check_positive_number("constant", constant)
        self.warmup = warmup
        self.constant = constant

    def check(self, flow_map: FlowMap) -> None:
        kinds = schedules.Cosine, parameterizations.SimpleEDM
        pieces = flow_map.schedule, flow_map.parameterization
        if not all(map(isinstance, pieces, kinds)):
            raise ValueError(
                '`ContinuousConsistency` needs `schedule="cosine"` and '
                '`parameterization="simple_edm"`. Received: '
                f"schedule={pieces[0]!r}, parameterization={pieces[1]!r}"
            )

    def draw(
        self,
        network: Network,
        x: Any,
        labels: Any,
        seed: keras.random.SeedGenerator,
        progress: Any = None,
        training: bool = True,
    ) -> Particles:
        x = at_least_float32(x)
        rows, dtype = ops.shape(x)[0], keras.backend.standardize_dtype(x.dtype)
        t = self.draw_times(network, rows, seed, dtype)
        noise = drawn_noise(network, x, seed)
        done = ops.cast(progress, dtype) + ops.zeros_like(t)
        ramp = minimum(done / self.warmup, 1.0) if self.warmup else ops.ones_like(t)
        labels = self.drop_labels(network, labels, seed, training)
        return self.noised(network, x, noise, t, ramp, labels)

    def noised(
        self,
        network: Network,
        x: Any,
        noise: Any,
        t: Any,
        ramp: Any,
        labels: Any = None,
    ) -> Particles:
        """Particles of given noise of standard deviation `sigma_data`, and times."""
        of = network.schedule, x, noise, t
        velocity = path_velocity(*of) / (math.pi / 2)
        return Particles(noised(*of), t, velocity, ramp, labels)

    def target(self, network: Network, particles: Particles) -> Any:
        """F and g, each of the shape of `x_t`."""
        return self.tangent(network, particles)

    def tangent(self, network: Network, particles: Particles) -> tuple[Any, Any]:
        """F, and cos(tau) df/dtau in units of `sigma_data`.

        Args:
            network: The network.
            particles: What `draw` returned.

        Returns:
            Two tensors of the shape of `x_t`.
        """
        p = particles
        cos, sin = network.schedule.alpha(p.t), network.schedule.sigma(p.t)
        # cos sin dF/dtau as one derivative, which is finite at t = 1.
        both = cos * sin
        along = per_sample(both, p.x_t) * p.velocity
        rate = both * (2.0 / math.pi)  # dt = 2/pi dtau
        at_start = start(network, p.t)
        output, derivative = network.total_derivative(
            p.x_t, p.t, at_start, p.labels, along, rate
        )
        cos2, ramp, both = (per_sample(v, p.x_t) for v in (cos * cos, p.ramp, both))
        sigma_data = network.sigma_data
        tangent = -cos2 * (output - p.velocity / sigma_data)
        tangent = tangent - ramp * (both * p.x_t / sigma_data + derivative)
        return output, tangent

    def loss(self, network: Network, particles: Particles, target: Any) -> tuple:
        """The mean squared distance to sg(F + g / (rms(g) + c))."""
        p = particles
        before, tangent = target
        rms = ops.sqrt(squared_norm(tangent) / math.prod(tangent.shape[1:]))
        step = tangent / per_sample(rms + self.constant, tangent)
        output = network.output(p.x_t, p.t, start(network, p.t), p.labels)
        others = {"log_residual": log_squared_norm(tangent)}
        return mean(ops.square(output - (before + step))), others

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {
            "warmup": self.warmup,
            "constant": self.constant,
        }
