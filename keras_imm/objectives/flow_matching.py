"""Flow matching: regression to the velocity of each path."""

from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import keras
import numpy as np
from keras import ops

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

    The times are uniform on the flow map's range. The network sees t in place of s, so
    jumps from t to an earlier s are not learned: sample with "euler" or "heun", the
    objective's own, which follow the velocity.

    Args:
        label_dropout: As in `Objective`.
        total_steps: As in `Objective`; not used.

    Reference:
        - [Lipman et al., 2023](https://arxiv.org/abs/2210.02747)
    """

    network_passes = 3.0  # the output and its backward pass
    sampler = "euler"
    num_steps = 32
    flow_map: ClassVar[Mapping[str, Any]] = {"max_time": 1.0}

    def check(self, flow_map: FlowMap) -> None:
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
        t = keras.random.uniform(
            (ops.shape(x)[0],), network.min_time, network.max_time, dtype, seed=seed
        )
        noise = keras.random.normal(ops.shape(x), dtype=dtype, seed=seed)
        labels = self.drop_labels(network, labels, seed, training)
        return self.noised(network, x, noise * network.sigma_data, t, labels)

    def noised(
        self, network: Network, x: Any, noise: Any, t: Any, labels: Any = None
    ) -> Particles:
        """Particles of given noise of standard deviation `sigma_data`, and times."""
        schedule = network.schedule
        alpha, sigma, alpha_rate, sigma_rate = (
            per_sample(of(t), x)
            for of in (
                schedule.alpha,
                schedule.sigma,
                schedule.alpha_derivative,
                schedule.sigma_derivative,
            )
        )
        velocity = alpha_rate * x + sigma_rate * noise
        return Particles(alpha * x + sigma * noise, t, velocity, labels)

    def loss(self, network: Network, particles: Particles, target: Any = None) -> Any:
        p = particles
        error = network.velocity(p.x_t, p.t, p.labels) - p.velocity
        return mean(ops.square(error / network.sigma_data))
