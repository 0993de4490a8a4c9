"""The objective of Inductive Moment Matching: Algorithm 3 and Eq. 67."""

import math
from typing import Any, ClassVar, NamedTuple

import keras
from keras import ops

from keras_imm import kernels, time_distributions, time_mappings, weightings
from keras_imm.flow_map import Coefficients, FlowMap, Network, per_sample
from keras_imm.objectives.mmd import (
    grouped_mmd,
    interaction_share,
    knows_interaction,
)
from keras_imm.objectives.objective import Objective
from keras_imm.objectives.roles import Roles
from keras_imm.objectives.velocity import (
    check_velocity,
    log_squared_norm,
    noised,
    path_velocity,
)
from keras_imm.precision import at_least_float32, maximum, mean
from keras_imm.validation import (
    check_batch_size,
    check_boolean,
    check_integer,
)

_MIN_C_OUT = 1e-6
_MIN_SQUARED_ERROR = 0.01  # c of MeanFlow's adaptive weight, in units of sigma_data^2


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
        velocity: alpha'(t) x + sigma'(t) noise, the shape of `x_t`, or None where no
            group is for flow matching.
    """

    x_t: Any
    x_r: Any
    s: Any
    r: Any
    t: Any
    labels: Any = None
    target_labels: Any = None
    velocity: Any = None


@keras.saving.register_keras_serializable(package="keras_imm.objectives")
class MomentMatching(Objective):
    """Matches the distribution reached from t with the one reached from r < t.

    Args:
        time_mapping: Name or `keras_imm.time_mappings.TimeMapping`: r(s, t).
        kernel: Name or `keras_imm.kernels.Kernel`.
        weighting: Name or `keras_imm.weightings.Weighting`: w(s, t).
        group_size: Particles per group, M in the paper; a positive integer that
            divides the batch.
        label_dropout: Probability in [0, 1] that a label becomes the null label while
            training.
        drop_target_labels: Whether a dropped label is dropped in both passes, as in
            Algorithm 3, or (False) in the pass with gradient alone.
        total_steps: As in `Objective`; not used.
        times: Name or `keras_imm.time_distributions.TimeDistribution` of (s, t).
        flow_matching_share: Share of the groups that learn the flow's velocity (s = t)
            in place of jumps: a fraction in [0, 1) with a denominator of at most 16,
            such as 0.25. The last groups of every run of that many have this role.
            Their loss is, to first order, the Laplace kernel's of jumps whose target
            starts at s, as s goes to t: w(t, t) times the norm of the velocity's error
            in units of sigma_data. A jump whose r is near t has less, by about
            (t - r) / (t - s).

    Raises:
        ValueError: If an argument is out of its range.

    Reference:
        - [Zhou et al., 2025](https://arxiv.org/abs/2503.07565), Algorithm 3
        - [Geng et al., 2025](https://arxiv.org/abs/2505.13447), Section 4, for a share
          of s = t and the norm's constant
    """

    network_passes = 4.0  # the target, the output, and its backward pass
    pieces: ClassVar[tuple[str, ...]] = (
        *("time_mapping", "kernel", "weighting", "times"),
    )

    def __init__(
        self,
        time_mapping: str | time_mappings.TimeMapping = "eta_decrement",
        kernel: str | kernels.Kernel = "laplace",
        weighting: str | weightings.Weighting = "elbo",
        group_size: int = 4,
        label_dropout: float = 0.1,
        drop_target_labels: bool = True,
        total_steps: int | None = None,
        times: str | time_distributions.TimeDistribution = "uniform",
        flow_matching_share: float = 0.0,
    ):
        super().__init__(label_dropout=label_dropout, total_steps=total_steps)
        check_integer("group_size", group_size, at_least=1)
        check_boolean("drop_target_labels", drop_target_labels)
        self.time_mapping = time_mappings.get(time_mapping)
        self.kernel = kernels.get(kernel)
        self.weighting = weightings.get(weighting)
        self.group_size = group_size
        self.drop_target_labels = drop_target_labels
        self.times = time_distributions.get(times)
        self._roles = Roles("flow_matching_share", flow_matching_share, group_size)
        self.flow_matching_share = self._roles.share

    @property
    def rows_together(self) -> int:
        """A group of particles, or as many as the roles of groups take to repeat."""
        return self._roles.rows_together

    @property
    def rows_argument(self) -> str:
        """What messages call that number."""
        period = self._roles.period
        return "group_size" if period == 1 else f"group_size * {period}"

    def check(self, flow_map: FlowMap) -> None:
        times = flow_map.min_time, flow_map.max_time
        self.time_mapping.check(flow_map.schedule, *times)
        if self.flow_matching_share:
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
        """Algorithm 3 up to the networks: times, noise and dropped labels.

        Raises:
            ValueError: If the group size, times the groups after which roles repeat,
                does not divide the batch, or `seed` is not a seed generator.
        """
        rows = self.rows_together
        check_batch_size(x.shape[0], rows, rows_argument=self.rows_argument)
        x = at_least_float32(x)
        dtype = keras.backend.standardize_dtype(x.dtype)
        min_time, max_time = network.min_time, network.max_time

        # (s, r, t) once per group
        groups = (ops.shape(x)[0] // self.group_size,)
        s, t = self.times.sample_pairs(groups, min_time, max_time, seed, dtype)
        r = self.time_mapping(network.schedule, s, t, min_time, max_time)
        if self.flow_matching_share:
            matches_flow = self._roles.of_velocity(groups[0])
            s, r = (ops.where(matches_flow, t, time) for time in (s, r))
        s, r, t = (ops.repeat(time, self.group_size, axis=0) for time in (s, r, t))

        # eps ~ N(0, sigma_d^2 I)
        noise = keras.random.normal(ops.shape(x), dtype=dtype, seed=seed)
        noise = noise * network.sigma_data

        dropped = self.drop_labels(network, labels, seed, training)
        target_labels = dropped if self.drop_target_labels else labels
        return self.noised(network, x, noise, s, r, t, dropped, target_labels)

    def noised(
        self,
        network: Network | FlowMap,
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
            network: For its schedule.
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
        schedule = network.schedule
        x_t = noised(schedule, x, noise, t)

        # x_r = DDIM(x_t, x, r, t)
        skip, out = schedule.ddim_coefficients(r, t)
        x_r = per_sample(skip, x) * x_t + per_sample(out, x) * x
        velocity = None
        if self.flow_matching_share:
            velocity = path_velocity(schedule, x, noise, t)
        return Particles(x_t, x_r, s, r, t, labels, target_labels, velocity)

    def target(self, network: Network, particles: Particles) -> Any:
        """y^- = f_{s,r}(x_r), with the current weights; shape (batch, ...)."""
        p = particles
        return network.flow_map(p.x_r, p.r, p.s, p.target_labels)

    def loss(self, network: Network, particles: Particles, target: Any) -> tuple:
        """Mean over the groups of w(s, t) times their squared MMD (Eq. 67).

        Groups that match the flow have a loss of their own in place of it.

        Args:
            network: The network, differentiable.
            particles: What `draw` returned.
            target: What `target` returned; no gradient should flow into it.

        Returns:
            Scalar tensor, float32 or wider, and further scalars by name: how much of
            the gradient particles owe to each other, "interaction_share", and the
            mean log of the squared error of the velocity.
        """
        p = particles
        c = self._coefficients(network, p)
        y = network.flow_map(p.x_t, p.t, p.s, p.labels, coefficients=c)  # f_{s,t}(x_t)

        s, t, c_out = (each[:: self.group_size] for each in (p.s, p.t, c.c_out))
        kernel_scale = 1.0 / maximum(ops.abs(c_out), _MIN_C_OUT)
        mmd = grouped_mmd(y, target, kernel_scale, self.kernel, self.group_size)
        weight = self.weighting(network.schedule, s, t)
        # At s = t both passes are the identity: exactly 0, whatever is rounded.
        weight = ops.where(s < t, weight, ops.zeros_like(weight))
        loss, others = mean(weight * mmd), {}
        if knows_interaction(self.kernel):
            others["interaction_share"] = self._interaction_share(
                *(y, target, kernel_scale, s < t)
            )
        if self.flow_matching_share:
            of_velocity, others["log_velocity_residual"] = self._flow_matching_loss(
                network, p, velocity=y
            )
            loss = loss + of_velocity
        return loss, others

    def _interaction_share(self, y: Any, target: Any, scale: Any, jumps: Any) -> Any:
        """The mean over the groups that jump; see `mmd.interaction_share`."""
        share = interaction_share(y, target, scale, self.kernel, self.group_size)
        jumps = ops.cast(jumps, share.dtype)
        return ops.sum(share * jumps) / maximum(ops.sum(jumps), 1.0)

    def _coefficients(self, network: Network, p: Particles) -> Coefficients:
        """Those with which the network's output becomes f_{s,t}, or the velocity."""
        c = network.coefficients(p.s, p.t)
        if not self.flow_matching_share:
            return c
        of_velocity = network.parameterization.velocity_coefficients(
            network.schedule, p.t, network.sigma_data
        )
        groups = ops.shape(p.t)[0] // self.group_size
        matches_flow = self._roles.of_velocity(groups)
        matches_flow = ops.repeat(matches_flow, self.group_size, axis=0)
        pairs = zip(of_velocity, c, strict=True)
        return Coefficients(*(ops.where(matches_flow, *pair) for pair in pairs))

    def _flow_matching_loss(
        self, network: Network, p: Particles, velocity: Any
    ) -> tuple[Any, Any]:
        """Mean over all groups of the loss of those that match the flow, and its log.

        It has the gradient of w(t, t) 2 / (M^2 D) sum_j ||e_j|| with the error e of
        the velocity in units of sigma_data, but for errors below 0.1.
        """
        M, D = self.group_size, math.prod(velocity.shape[1:])
        rows = self._roles.rows_of_velocity
        error = rows((velocity - p.velocity) / network.sigma_data)
        squared = ops.sum(ops.square(ops.reshape(error, (-1, D))), axis=-1)
        norm = ops.stop_gradient(ops.sqrt(squared + _MIN_SQUARED_ERROR))
        weight = self.weighting(network.schedule, rows(p.t), rows(p.t))
        loss = self.flow_matching_share * mean(weight * squared / norm) / (M * D)
        return loss, log_squared_norm(error)

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {
            "group_size": self.group_size,
            "drop_target_labels": self.drop_target_labels,
            "flow_matching_share": self.flow_matching_share,
        }


sample_times = time_distributions.Uniform().sample_pairs  # its name in 0.1.0
