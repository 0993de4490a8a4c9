"""MeanFlow and improved MeanFlow: regression to the average velocity's identity."""

from collections.abc import Mapping
from typing import Any, ClassVar

import keras
from keras import ops

from keras_imm import time_distributions
from keras_imm.flow_map import FlowMap, Network, per_sample
from keras_imm.objectives.objective import Objective
from keras_imm.objectives.roles import Roles
from keras_imm.objectives.velocity import (
    AVERAGE_VELOCITY,
    JumpParticles,
    adaptive,
    check_average_velocity,
    check_guidance,
    check_has_null_label,
    drawn_noise,
    guided_velocity,
    jump_particles,
    log_squared_norm,
    squared_norm,
)
from keras_imm.precision import at_least_float32, maximum, mean, minimum
from keras_imm.time_distributions import LogitNormal
from keras_imm.validation import (
    check_boolean,
    check_fraction,
    check_number,
    check_positive_number,
)


@keras.saving.register_keras_serializable(package="keras_imm.objectives")
class MeanFlow(Objective):
    """Regresses the average velocity u to v - (t - s) du/dt.

    u(x_t, t, s) = sigma_data G is the velocity that carries x_t straight to time s. Its
    total derivative du/dt along (v, 1, 0) is computed without a gradient. The defaults
    are the published ones for ImageNet 256x256 without guidance.

    Args:
        improved: Whether du/dt is along the network's own velocity u(x_t, t, t)
            instead of that of the path, v (improved MeanFlow).
        times: Name or `keras_imm.time_distributions.TimeDistribution` of t and s: the
            larger and the smaller of two draws.
        target_times: As `times`, of s alone: then t is a draw of `times`, and s the
            smaller of t and a draw of these. None for the above.
        flow_matching_share: Share of the rows with s = t, which learn the velocity: a
            fraction in [0, 1) with a denominator of at most 16.
        power: p in [0, 1] of the weight 1 / (||e||^2 + constant)^p of a squared error
            ||e||^2, which is summed over the elements, in units of sigma_data^2.
        constant: c in that weight; positive.
        omega: Guidance in training: v becomes omega v + kappa u(x_t, t, t, label) +
            (1 - omega - kappa) u(x_t, t, t, null), so that sampling needs no guidance.
            1, with a kappa of 0, is none.
        kappa: See `omega`; in [0, 1).
        guided_until: Largest time t that is guided, in [0, 1].
        label_dropout: As in `Objective`.
        total_steps: As in `Objective`; not used.

    Raises:
        ValueError: If an argument is out of its range.

    Reference:
        - [Geng et al., 2025](https://arxiv.org/abs/2505.13447), Algorithm 1, and
          Eq. 21 for guidance
        - [Geng et al., 2025](https://arxiv.org/abs/2512.02012), improved MeanFlow;
          its guidance as an input of the network and its second output are left out
    """

    flow_map: ClassVar[Mapping[str, Any]] = AVERAGE_VELOCITY
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "imagenet256": {"omega": 1.0, "kappa": 0.5},
        "cifar10": {
            "times": LogitNormal(-2.0, 2.0),
            "flow_matching_share": 0.25,
            "power": 0.75,
            "constant": 1e-3,
            "label_dropout": 0.0,
        },
        "cifar10_v1": {
            "times": LogitNormal(-0.6, 1.6),
            "target_times": LogitNormal(-4.0, 1.6),
            "flow_matching_share": 0.25,
            "power": 0.75,
            "constant": 1e-3,
            "label_dropout": 0.0,
        },
        # Without guidance as an input and without the second output.
        "improved_imagenet256": {"improved": True, "flow_matching_share": 0.5},
    }
    pieces: ClassVar[tuple[str, ...]] = ("times", "target_times")

    def __init__(
        self,
        improved: bool = False,
        times: str | time_distributions.TimeDistribution = "logit_normal",
        target_times: str | time_distributions.TimeDistribution | None = None,
        flow_matching_share: float = 0.75,
        power: float = 1.0,
        constant: float = 0.01,
        omega: float = 1.0,
        kappa: float = 0.0,
        guided_until: float = 1.0,
        label_dropout: float = 0.1,
        total_steps: int | None = None,
    ):
        super().__init__(label_dropout=label_dropout, total_steps=total_steps)
        check_boolean("improved", improved)
        check_fraction("power", power)
        check_positive_number("constant", constant)
        check_positive_number("omega", omega)
        check_number("kappa", kappa, "a number in [0, 1)", lambda v: 0 <= v < 1)
        check_fraction("guided_until", guided_until)
        self.improved = improved
        self.times = time_distributions.get(times)
        self.target_times = None
        if target_times is not None:
            self.target_times = time_distributions.get(target_times, "target_times")
        self._roles = Roles("flow_matching_share", flow_matching_share)
        self.flow_matching_share = self._roles.share
        self.power = power
        self.constant = constant
        self.omega = omega
        self.kappa = kappa
        self.guided_until = guided_until
        if self._guides:
            check_guidance(label_dropout, self._guidance)

    @property
    def rows_together(self) -> int:
        return self._roles.rows_together

    @property
    def network_passes(self) -> float:
        # The derivative with its value, the output and its backward pass, and what
        # else stands in the target.
        return 5.0 + self.improved + 2.0 * self._guides

    @property
    def _guides(self) -> bool:
        return (self.omega, self.kappa) != (1.0, 0.0)

    @property
    def _guidance(self) -> str:
        return f"omega={self.omega!r}, kappa={self.kappa!r}"

    def check(self, flow_map: FlowMap) -> None:
        check_average_velocity(flow_map, "MeanFlow")
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
    ) -> JumpParticles:
        x = at_least_float32(x)
        rows, dtype = ops.shape(x)[0], keras.backend.standardize_dtype(x.dtype)
        given = (rows,), network.min_time, network.max_time, seed, dtype
        a = self.times.sample(*given)
        b = (self.target_times or self.times).sample(*given)
        t = a if self.target_times else maximum(a, b)
        s = ops.where(self._roles.of_velocity(rows), t, minimum(a, b))
        noise = drawn_noise(network, x, seed)
        labels = self.drop_labels(network, labels, seed, training)
        return self.noised(network, x, noise, t, s, labels)

    def noised(
        self, network: Network, x: Any, noise: Any, t: Any, s: Any, labels: Any = None
    ) -> JumpParticles:
        """Particles of given noise of standard deviation `sigma_data`, and times."""
        return jump_particles(network.schedule, x, noise, t, s, labels)

    def target(self, network: Network, particles: JumpParticles) -> Any:
        """v - (t - s) du/dt, of the shape of `x_t`."""
        p = particles
        v = p.velocity
        if self._guides:
            guided = ops.cast(p.t <= self.guided_until, p.t.dtype)
            omega = 1.0 + guided * (self.omega - 1.0)
            kappa = guided * self.kappa
            v = guided_velocity(network, p.x_t, p.t, v, p.labels, omega, kappa)
        along = v
        if self.improved:
            along = network.sigma_data * network.output(p.x_t, p.t, p.t, p.labels)
        _, du_dt = network.total_derivative(p.x_t, p.t, p.s, p.labels, along)
        return v - per_sample(p.t - p.s, v) * network.sigma_data * du_dt

    def loss(self, network: Network, particles: JumpParticles, target: Any) -> tuple:
        """||e||^2 / sg(||e||^2 + c)^p with e = (u - target) / sigma_data."""
        p = particles
        error = network.output(p.x_t, p.t, p.s, p.labels) - target / network.sigma_data
        loss = mean(adaptive(squared_norm(error), self.power, self.constant))
        return loss, {"log_residual": log_squared_norm(error)}

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {
            "improved": self.improved,
            "flow_matching_share": self.flow_matching_share,
            "power": self.power,
            "constant": self.constant,
            "omega": self.omega,
            "kappa": self.kappa,
            "guided_until": self.guided_until,
        }
