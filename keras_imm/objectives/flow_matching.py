"""Flow matching: regression to the velocity of each path."""

from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import keras
from keras import ops

from keras_imm import time_distributions
from keras_imm.flow_map import FlowMap, Network
from keras_imm.objectives.objective import Objective
from keras_imm.objectives.velocity import (
    check_velocity,
    drawn_noise,
    log_squared_norm,
    noised,
    path_velocity,
)
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
    pieces: ClassVar[tuple[str, ...]] = ("times",)

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
        noise = drawn_noise(network, x, seed)
        labels = self.drop_labels(network, labels, seed, training)
        return self.noised(network, x, noise, t, labels)

    def noised(
        self, network: Network, x: Any, noise: Any, t: Any, labels: Any = None
    ) -> Particles:
        """Particles of given noise of standard deviation `sigma_data`, and times."""
        of = network.schedule, x, noise, t
        return Particles(noised(*of), t, path_velocity(*of), labels)

    def loss(self, network: Network, particles: Particles, target: Any = None) -> Any:
        p = particles
        error = network.velocity(p.x_t, p.t, p.labels) - p.velocity
        error = error / network.sigma_data
        return mean(ops.square(error)), {"log_residual": log_squared_norm(error)}
