"""SoFlow: consistency along the flow over a finite gap, without a derivative."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import keras
from keras import ops

from keras_imm import time_distributions
from keras_imm.flow_map import FlowMap, Network, per_sample
from keras_imm.objectives.objective import Objective
from keras_imm.objectives.roles import Roles
from keras_imm.objectives.velocity import (
    AVERAGE_VELOCITY,
    adaptive,
    check_average_velocity,
    check_guidance,
    check_has_null_label,
    drawn_noise,
    guided_velocity,
    log_squared_norm,
    noised,
    path_velocity,
)
from keras_imm.precision import at_least_float32, maximum, mean, minimum
from keras_imm.time_distributions import LogitNormal
from keras_imm.validation import check_fraction, check_number, check_positive_number

_MIN_GAP = 1e-4


class Particles(NamedTuple):
    """One batch, noised. Rows that learn the velocity have s = t.

    Attributes:
        x_t: Samples at time t, shape (batch, ...).
        t: Times of shape (batch,).
        s: Times of shape (batch,), s <= t.
        middle: Times l the target starts from, shape (batch,), s <= l < t in rows
            that jump, and l = t in the others.
        velocity: alpha'(t) x + sigma'(t) noise, the shape of `x_t`.
        labels: Integers of shape (batch,), or None.
    """

    x_t: Any
    t: Any
    s: Any
    middle: Any
    velocity: Any
    labels: Any = None


class Target(NamedTuple):
    """What the loss compares with.

    Attributes:
        velocity: v / sigma_data, guided or not, of all rows.
        output: G(x_l, l, s) of the rows that learn jumps.
    """

    velocity: Any
    output: Any


@keras.saving.register_keras_serializable(package="keras_imm.objectives")
class SoFlow(Objective):
    """Moves f_{s,t}(x_t) towards f_{s,l}(x_l), with x_l = x_t - (t - l) v.

    l lies `rho` of the way from t to s, less and less as training goes on. The defaults
    are the published ones for ImageNet 256x256 without guidance.

    Args:
        flow_matching_share: Share of the rows that learn the velocity: a fraction in
            [0, 1) with a denominator of at most 16.
        times: Name or `keras_imm.time_distributions.TimeDistribution` of t.
        target_times: As `times`, of s; s is at most t - 1e-4.
        flow_matching_times: As `times`, of the rows that learn the velocity.
        rho: (t - l) / (t - s) at the start and at the end of training, both in (0, 1];
            it falls exponentially. A run cut short does worse than one scheduled for
            its length.
        power: p in [0, 1] of the weight 1 / (q^2 + constant)^p, where q^2 is the mean
            of the squared error over the elements, in units of sigma_data^2.
        constant: c in that weight; positive.
        guidance_scale: Guidance in training, from 1 at t = 1 to this at t = 0.8 and
            below; 1 for none.
        guidance_mix: Share of the network's own velocity in that guidance, in [0, 1).
        label_dropout: As in `Objective`.
        total_steps: As in `Objective`; needed.

    Raises:
        ValueError: If an argument is out of its range.

    Reference:
        - [Luo et al., 2025](https://arxiv.org/abs/2512.15657). How scale and mix enter
          the guided velocity, scale ((1 - mix) v + mix u(x, t, t, label)) + (1 - scale)
          u(x, t, t, null), is our reading.
    """

    needs_total_steps = True
    flow_map: ClassVar[Mapping[str, Any]] = AVERAGE_VELOCITY
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "imagenet256": {"guidance_scale": 3.0, "guidance_mix": 0.25},
        "cifar10": {
            "flow_matching_share": 0.0,
            "times": LogitNormal(-0.9, 1.6),
            "target_times": LogitNormal(-4.0, 1.6),
            "rho": (1.0, 0.0003125),
            "power": 0.75,
            "constant": 1e-3,
            "label_dropout": 0.0,
        },
    }
    pieces: ClassVar[tuple[str, ...]] = ("times", "target_times", "flow_matching_times")

    def __init__(
        self,
        flow_matching_share: float = 0.75,
        times: str | time_distributions.TimeDistribution = LogitNormal(0.2, 0.8),  # noqa: B008
        target_times: str | time_distributions.TimeDistribution = LogitNormal(  # noqa: B008
            -1.0, 0.8
        ),
        flow_matching_times: str | time_distributions.TimeDistribution = LogitNormal(  # noqa: B008
            -0.2, 1.0
        ),
        rho: Sequence[float] = (0.1, 0.002),
        power: float = 1.0,
        constant: float = 0.01,
        guidance_scale: float = 1.0,
        guidance_mix: float = 0.0,
        label_dropout: float = 0.1,
        total_steps: int | None = None,
    ):
        super().__init__(label_dropout=label_dropout, total_steps=total_steps)
        if not isinstance(rho, Sequence) or len(rho) != 2:
            raise ValueError(f"`rho` must be a pair of numbers. Received: rho={rho!r}")
        for value in rho:
            check_number("rho", value, "two numbers in (0, 1]", lambda v: 0 < v <= 1)
        check_fraction("power", power)
        check_positive_number("constant", constant)
        check_number(
            "guidance_scale", guidance_scale, "a number of at least 1", lambda v: v >= 1
        )
        check_number(
            "guidance_mix", guidance_mix, "a number in [0, 1)", lambda v: 0 <= v < 1
        )
        self._roles = Roles("flow_matching_share", flow_matching_share)
        self.flow_matching_share = self._roles.share
        self.times = time_distributions.get(times)
        self.target_times = time_distributions.get(target_times, "target_times")
        self.flow_matching_times = time_distributions.get(
            flow_matching_times, "flow_matching_times"
        )
        self.rho = tuple(map(float, rho))
        self.power = power
        self.constant = constant
        self.guidance_scale = guidance_scale
        self.guidance_mix = guidance_mix
        if self._guides:
            check_guidance(label_dropout, self._guidance)

    @property
    def rows_together(self) -> int:
        return self._roles.rows_together

    @property
    def network_passes(self) -> float:
        # The target's of the rows that learn jumps, the output, and its backward pass.
        return 4.0 - self.flow_matching_share + 2.0 * self._guides

    @property
    def _guides(self) -> bool:
        return (self.guidance_scale, self.guidance_mix) != (1.0, 0.0)

    @property
    def _guidance(self) -> str:
        scale, mix = self.guidance_scale, self.guidance_mix
        return f"guidance_scale={scale!r}, guidance_mix={mix!r}"

    def check(self, flow_map: FlowMap) -> None:
        check_average_velocity(flow_map, "SoFlow")
        if self._guides:
            check_has_null_label(flow_map, self._guidance)

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
        given = (rows,), network.min_time, network.max_time, seed, dtype
        t = maximum(self.times.sample(*given), network.min_time + _MIN_GAP)
        s = minimum(self.target_times.sample(*given), t - _MIN_GAP)
        start, end = self.rho
        rho = start * (end / start) ** ops.cast(progress, dtype)
        middle = t - maximum((t - s) * rho, _MIN_GAP)
        if self.flow_matching_share:
            of_velocity = self._roles.of_velocity(rows)
            t = ops.where(of_velocity, self.flow_matching_times.sample(*given), t)
            s, middle = (ops.where(of_velocity, t, time) for time in (s, middle))
        noise = drawn_noise(network, x, seed)
        labels = self.drop_labels(network, labels, seed, training)
        return self.noised(network, x, noise, t, s, middle, labels)

    def noised(
        self,
        network: Network,
        x: Any,
        noise: Any,
        t: Any,
        s: Any,
        middle: Any,
        labels: Any = None,
    ) -> Particles:
        """Particles of given noise of standard deviation `sigma_data`, and times."""
        of = network.schedule, x, noise, t
        return Particles(noised(*of), t, s, middle, path_velocity(*of), labels)

    def target(self, network: Network, particles: Particles) -> Target:
        p = particles
        v = p.velocity
        if self._guides:
            fade = _guidance_fade(p.t)
            scale = 1.0 + (self.guidance_scale - 1.0) * fade
            mix = self.guidance_mix
            v = guided_velocity(
                network, p.x_t, p.t, v, p.labels, scale * (1.0 - mix), scale * mix
            )
        x_l = p.x_t - per_sample(p.t - p.middle, v) * v
        jumps, given = self._roles.rows_of_jumps, (x_l, p.middle, p.s, p.labels)
        if network.draws_masks:  # those of the loss, which has all rows
            output = jumps(network.output(*given))
        else:
            output = network.part(jumps).output(*map(jumps, given))
        return Target(v / network.sigma_data, output)

    def loss(self, network: Network, particles: Particles, target: Target) -> tuple:
        """-<G, sg q> w of rows that learn jumps, the velocity's error of the others.

        The gradient of the former is that of half the squared difference of the flow
        maps over (t - l) (t - s); the value says nothing.
        """
        p = particles
        output = network.output(p.x_t, p.t, p.s, p.labels)

        of_jumps = self._roles.rows_of_jumps(output)
        q = ops.stop_gradient(self.quotient(of_jumps, p, target))
        weight = (_mean_of_elements(ops.square(q)) + self.constant) ** -self.power
        losses = -_mean_of_elements(of_jumps * q) * weight
        others = {"log_residual": log_squared_norm(q)}
        if self.flow_matching_share:
            error = self._roles.rows_of_velocity(output - target.velocity)
            squared = _mean_of_elements(ops.square(error))
            of_velocity = adaptive(squared, self.power, self.constant)
            losses = self._roles.merged(losses, of_velocity)
            others["log_velocity_residual"] = log_squared_norm(error)
        return mean(losses), others

    def quotient(self, output: Any, particles: Particles, target: Target) -> Any:
        """(f_{s,t}(x_t) - f_{s,l}(x_l)) / ((t - l) sigma_data) of rows that jump.

        From the outputs: the maps' own difference would lose its digits.

        Args:
            output: G(x_t, t, s) of these rows.
            particles: What `draw` returned.
            target: What `target` returned.

        Returns:
            Tensor of the shape of `output`.
        """
        rows = self._roles.rows_of_jumps
        p = particles
        t, s, middle = (rows(v) for v in (p.t, p.s, p.middle))
        ratio = per_sample((middle - s) / (t - middle), output)
        return rows(target.velocity) - output - ratio * (output - target.output)

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {
            "flow_matching_share": self.flow_matching_share,
            "rho": self.rho,
            "power": self.power,
            "constant": self.constant,
            "guidance_scale": self.guidance_scale,
            "guidance_mix": self.guidance_mix,
        }


def _guidance_fade(t: Any) -> Any:
    """1 up to t = 0.8, then 1 - exp(-0.025 z / (1 - z)) with z = (1 - t) / 0.2."""
    z = minimum(maximum((1.0 - t) / 0.2, 0.0), 1.0)
    rest = maximum(1.0 - z, 1e-6)
    return 1.0 - ops.exp(-0.025 * z / rest)


def _mean_of_elements(x: Any) -> Any:
    """The mean over the elements of each row, shape (batch,)."""
    return mean(x, axis=tuple(range(1, len(x.shape))))
