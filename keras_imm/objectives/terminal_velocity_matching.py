"""Terminal velocity matching: the velocity where a jump arrives."""

from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import keras
from keras import ops

from keras_imm.flow_map import FlowMap, Network, per_sample
from keras_imm.objectives.objective import Objective
from keras_imm.objectives.velocity import (
    AVERAGE_VELOCITY,
    check_average_velocity,
    drawn_noise,
    log_squared_norm,
    noised,
    path_velocity,
)
from keras_imm.precision import at_least_float32, maximum, mean, minimum
from keras_imm.time_distributions import LogitNormal
from keras_imm.validation import check_instance, check_rate

_MIN_PROBABILITY = 1e-6


class Particles(NamedTuple):
    """One batch, noised twice.

    Attributes:
        x_t: Samples at time t, shape (batch, ...).
        t: Times of shape (batch,).
        s: Times of shape (batch,), s <= t.
        x_v: The same samples at the time of `t_v`, shape (batch, ...).
        t_v: Times at which the velocity is learned, shape (batch,).
        velocity: alpha'(t_v) x + sigma'(t_v) noise, the shape of `x_t`.
        labels: Integers of shape (batch,), or None.
    """

    x_t: Any
    t: Any
    s: Any
    x_v: Any
    t_v: Any
    velocity: Any
    labels: Any = None


@keras.saving.register_keras_serializable(package="keras_imm.objectives")
class TerminalVelocityMatching(Objective):
    """Matches df_{s,t}(x_t)/ds with the velocity at f_{s,t}(x_t), and learns that.

    The derivative in s is differentiated again: each step costs several of the other
    objectives'. The velocity at the arrival is that of averaged weights. Guidance as an
    input of the network is left out, and so are the paper's changes to DiT.

    Args:
        gaps: `keras_imm.time_distributions.LogitNormal` of t - s.
        times: `LogitNormal` of s, truncated to at most 1 - (t - s), and of the times
            at which the velocity is learned.
        target_momentum: Momentum of the averages of the weights.
        label_dropout: As in `Objective`.
        total_steps: As in `Objective`; not used.

    Raises:
        ValueError: If an argument is out of its range.

    Reference:
        - [Zhou et al., 2025](https://arxiv.org/abs/2511.19797)
    """

    # The target's two, the derivative with its value and the output, differentiated.
    network_passes = 11.0
    flow_map: ClassVar[Mapping[str, Any]] = AVERAGE_VELOCITY
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "imagenet256": {},  # without its guidance, an input of the network
    }
    pieces: ClassVar[tuple[str, ...]] = ("gaps", "times")

    def __init__(
        self,
        gaps: LogitNormal = LogitNormal(-0.8, 1.0),  # noqa: B008
        times: LogitNormal = LogitNormal(-0.4, 1.0),  # noqa: B008
        target_momentum: float = 0.99,
        label_dropout: float = 0.1,
        total_steps: int | None = None,
    ):
        super().__init__(label_dropout=label_dropout, total_steps=total_steps)
        check_instance("gaps", gaps, LogitNormal)
        check_instance("times", times, LogitNormal)
        check_rate("target_momentum", target_momentum)
        self.gaps = gaps
        self.times = times
        self.target_momentum = target_momentum

    @property
    def averages(self) -> Mapping[str, float]:
        return {"target": self.target_momentum}

    def check(self, flow_map: FlowMap) -> None:
        check_average_velocity(flow_map, "TerminalVelocityMatching")

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
        start, end = network.min_time, network.max_time
        gap = self.gaps.sample((rows,), 0.0, end - start, seed, dtype)
        s = self._truncated(rows, end - gap, seed, dtype)
        s = maximum(minimum(s, end - gap), start)
        t = minimum(s + gap, end)
        t_v = self.times.sample((rows,), start, end, seed, dtype)
        noise = drawn_noise(network, x, seed)
        labels = self.drop_labels(network, labels, seed, training)
        return self.noised(network, x, noise, t, s, t_v, labels)

    def _truncated(self, rows: Any, largest: Any, seed: Any, dtype: str) -> Any:
        """Draws of `times` that are at most `largest`, by its distribution function."""
        uniform = keras.random.uniform((rows,), dtype=dtype, seed=seed)
        largest = minimum(maximum(largest, 1e-6), 1.0 - 1e-6)
        logit = ops.log(largest) - ops.log1p(-largest)
        end = (logit - self.times.mean) / self.times.std
        root2 = 2.0**0.5
        share = uniform * 0.5 * (1.0 + ops.erf(end / root2))
        share = minimum(maximum(share, _MIN_PROBABILITY), 1.0 - _MIN_PROBABILITY)
        normal = root2 * ops.erfinv(2.0 * share - 1.0)
        return ops.sigmoid(self.times.mean + self.times.std * normal)

    def noised(
        self,
        network: Network,
        x: Any,
        noise: Any,
        t: Any,
        s: Any,
        t_v: Any,
        labels: Any = None,
    ) -> Particles:
        """Particles of given noise of standard deviation `sigma_data`, and times."""
        of = network.schedule, x, noise
        x_t, x_v = (noised(*of, each) for each in (t, t_v))
        return Particles(x_t, t, s, x_v, t_v, path_velocity(*of, t_v), labels)

    def target(self, network: Network, particles: Particles) -> Any:
        """u at the arrival f_{s,t}(x_t), by averaged weights; the shape of `x_t`."""
        p = particles
        arrival = network.flow_map(p.x_t, p.t, p.s, p.labels)
        averaged = network.with_weights("target")
        return network.sigma_data * averaged.output(arrival, p.s, p.s, p.labels)

    def loss(self, network: Network, particles: Particles, target: Any) -> tuple:
        """Two mean squared errors: of df/ds at the arrival, and of the velocity."""
        p = particles
        output, in_s = network.derivative_in_s(p.x_t, p.t, p.s, p.labels)
        terminal = output - per_sample(p.t - p.s, output) * in_s
        terminal = terminal - target / network.sigma_data
        terminal = ops.where(
            per_sample(p.s < p.t, terminal), terminal, ops.zeros_like(terminal)
        )
        error = network.output(p.x_v, p.t_v, p.t_v, p.labels)
        error = error - p.velocity / network.sigma_data
        others = {
            "log_residual": log_squared_norm(terminal),
            "log_velocity_residual": log_squared_norm(error),
        }
        return mean(ops.square(terminal)) + mean(ops.square(error)), others

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {"target_momentum": self.target_momentum}
