"""Flow matching: regression to the velocity of each path."""

from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import keras
import numpy as np
from keras import ops

from keras_imm import schedules, time_distributions
from keras_imm.flow_map import FlowMap, Network, per_sample
from keras_imm.objectives.objective import Objective
from keras_imm.precision import at_least_float32, mean


class Particles(NamedTuple):
    """One batch, noised.

    Attributes:
        x_t: Samples at time t, shape (batch, ...).
        t: Times of shape (batch,).
        velocity: alpha'(t) x + sigma'(t) noise, the shape of `x_t`.
        labels: Integers of shape (batch,), or None.
    """

    x_t: Any
    t: Any
    velocity: Any
    labels: Any = None


@keras.saving.register_keras_serializable(package="keras_imm.objectives")
class FlowMatching(Objective):
    """Regresses the flow's velocity to alpha' x + sigma' noise, in sigma_data.

    The network sees t in place of s, so jumps from t to an earlier s are not learned:
    sample with "euler" or "heun", the objective's own, which follow the velocity.

    Args:
        label_dropout: As in `Objective`.
        total_steps: As in `Objective`; not used.
        times: Name or `keras_imm.time_distributions.TimeDistribution` of t.

    Reference:
        - [Lipman et al., 2023](https://arxiv.org/abs/2210.02747)
    """

    network_passes = 3.0  # the output and its backward pass
    sampler = "euler"
    num_steps = 32
    flow_map: ClassVar[Mapping[str, Any]] = {"max_time": 1.0}

    def __init__(
        self,
        label_dropout: float = 0.1,
        total_steps: int | None = None,
        times: str | time_distributions.TimeDistribution = "uniform",
    ):
        super().__init__(label_dropout=label_dropout, total_steps=total_steps)
        self.times = time_distributions.get(times)

    def check(self, flow_map: FlowMap) -> None:
        check_velocity(flow_map)

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
        dtype = keras.backend.standardize_dtype(x.dtype)
        rows = (ops.shape(x)[0],)
        t = self.times.sample(rows, network.min_time, network.max_time, seed, dtype)
        noise = keras.random.normal(ops.shape(x), dtype=dtype, seed=seed)
        labels = self.drop_labels(network, labels, seed, training)
        return self.noised(network, x, noise * network.sigma_data, t, labels)

    def noised(
        self, network: Network, x: Any, noise: Any, t: Any, labels: Any = None
    ) -> Particles:
        """Particles of given noise of standard deviation `sigma_data`, and times."""
        schedule = network.schedule
        alpha, sigma = (per_sample(of(t), x) for of in (schedule.alpha, schedule.sigma))
        velocity = path_velocity(schedule, x, noise, t)
        return Particles(alpha * x + sigma * noise, t, velocity, labels)

    def loss(self, network: Network, particles: Particles, target: Any = None) -> Any:
        p = particles
        error = network.velocity(p.x_t, p.t, p.labels) - p.velocity
        return mean(ops.square(error / network.sigma_data))

    def get_config(self) -> dict:
        times = keras.saving.serialize_keras_object(self.times)
        return super().get_config() | {"times": times}

    @classmethod
    def from_config(cls, config: dict) -> "FlowMatching":
        config = dict(config)
        if "times" in config:  # not in a file of 0.1.0
            config["times"] = keras.saving.deserialize_keras_object(config["times"])
        return cls(**config)


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
