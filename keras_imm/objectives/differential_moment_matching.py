"""The limit r -> t of moment matching: its gradient, by one derivative."""

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import keras
from keras import ops

from keras_imm import kernels, time_distributions, time_mappings, weightings
from keras_imm.backend import jvp
from keras_imm.flow_map import FlowMap, Network, per_sample
from keras_imm.objectives.objective import Objective
from keras_imm.objectives.velocity import (
    JumpParticles,
    drawn_noise,
    jump_particles,
    log_squared_norm,
    squared_norm,
)
from keras_imm.precision import at_least_float32, maximum, mean
from keras_imm.validation import check_batch_size, check_integer

_MIN_C_OUT = 1e-6
_MIN_SQUARED_NORM = 1e-30


@keras.saving.register_keras_serializable(package="keras_imm.objectives")
class DifferentialMomentMatching(Objective):
    """Moment matching with an infinitesimal gap between r and t.

    Rows i M ... i M + M - 1 of a batch are group i and share s and t. With d the
    derivative of f_{s,t}(x_t) along the path, the target of a particle y is
    y - (t - r) d. The gradient of the squared MMD is then (t - r) times the kernel's
    mixed second derivative applied to d; for the Laplace kernel, which has a corner
    where particle and target meet, it is the unit vector d / ||d|| at any gap, and the
    particles of a group no longer see each other. Only the gradient is that limit: the
    value of the loss says nothing.

    Args:
        kernel: Name or `keras_imm.kernels.Kernel`. Other kernels than `Laplace` are
            taken to be smooth. `Energy` matches the means of groups alone: give it a
            `group_size` of 1.
        weighting: Name or `keras_imm.weightings.Weighting`: w(s, t).
        time_mapping: Name or `keras_imm.time_mappings.TimeMapping`: the factor t - r
            of smooth kernels, which keeps their gradient bounded as s goes to t.
        group_size: Particles per group, M in the paper; a positive integer that
            divides the batch.
        times: Name or `keras_imm.time_distributions.TimeDistribution` of (s, t).
        label_dropout: As in `Objective`.
        total_steps: As in `Objective`; not used.

    Raises:
        ValueError: If an argument is out of its range.

    Reference:
        - [Zhou et al., 2025](https://arxiv.org/abs/2503.07565), Algorithm 3; the limit
          is derived in docs/objectives.md
    """

    network_passes = 5.0  # the derivative with its value, the output, its backward pass
    flow_map: ClassVar[Mapping[str, Any]] = {
        "second_time": "stride",
        "time_scale": 1.0,
    }
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    pieces: ClassVar[tuple[str, ...]] = (
        *("kernel", "weighting", "time_mapping", "times"),
    )

    def __init__(
        self,
        kernel: str | kernels.Kernel = "laplace",
        weighting: str | weightings.Weighting = "elbo",
        time_mapping: str | time_mappings.TimeMapping = "eta_decrement",
        group_size: int = 4,
        times: str | time_distributions.TimeDistribution = "uniform",
        label_dropout: float = 0.1,
        total_steps: int | None = None,
    ):
        super().__init__(label_dropout=label_dropout, total_steps=total_steps)
        check_integer("group_size", group_size, at_least=1)
        self.kernel = kernels.get(kernel)
        self.weighting = weightings.get(weighting)
        self.time_mapping = time_mappings.get(time_mapping)
        self.group_size = group_size
        self.times = time_distributions.get(times)

    rows_argument = "group_size"

    @property
    def rows_together(self) -> int:
        return self.group_size

    def check(self, flow_map: FlowMap) -> None:
        times = flow_map.min_time, flow_map.max_time
        self.time_mapping.check(flow_map.schedule, *times)

    def draw(
        self,
        network: Network,
        x: Any,
        labels: Any,
        seed: keras.random.SeedGenerator,
        progress: Any = None,
        training: bool = True,
    ) -> JumpParticles:
        check_batch_size(x.shape[0], self.group_size)
        x = at_least_float32(x)
        dtype = keras.backend.standardize_dtype(x.dtype)
        groups = (ops.shape(x)[0] // self.group_size,)
        s, t = self.times.sample_pairs(
            groups, network.min_time, network.max_time, seed, dtype
        )
        s, t = (ops.repeat(time, self.group_size, axis=0) for time in (s, t))
        noise = drawn_noise(network, x, seed)
        labels = self.drop_labels(network, labels, seed, training)
        return self.noised(network, x, noise, t, s, labels)

    def noised(
        self, network: Network, x: Any, noise: Any, t: Any, s: Any, labels: Any = None
    ) -> JumpParticles:
        """Particles of given noise of standard deviation `sigma_data`, and times."""
        return jump_particles(network.schedule, x, noise, t, s, labels)

    def target(self, network: Network, particles: JumpParticles) -> Any:
        """d f_{s,t}(x_t) / dt along the path, of the shape of `x_t`."""
        p = particles
        output, rate = network.total_derivative(p.x_t, p.t, p.s, p.labels, p.velocity)
        c = network.coefficients(p.s, p.t)
        _, slopes = jvp(
            lambda t: ops.stack(network.coefficients(p.s, t)),
            (p.t,),
            (ops.ones_like(p.t),),
        )
        skip, out, skip_rate, out_rate = (
            per_sample(v, p.x_t) for v in (c.c_skip, c.c_out, slopes[0], slopes[1])
        )
        along = skip_rate * p.x_t + skip * p.velocity
        return along + out_rate * output + out * rate

    def loss(self, network: Network, particles: JumpParticles, target: Any) -> tuple:
        """What has the limit's gradient: d is constant, and y the flow map's result."""
        p = particles
        c = network.coefficients(p.s, p.t)
        y = network.flow_map(p.x_t, p.t, p.s, p.labels, coefficients=c)
        s, t, c_out = (each[:: self.group_size] for each in (p.s, p.t, c.c_out))
        scale = 1.0 / maximum(ops.abs(c_out), _MIN_C_OUT)
        weight = self.weighting(network.schedule, s, t)
        weight = ops.where(s < t, weight, ops.zeros_like(weight))
        if isinstance(self.kernel, kernels.Laplace):
            losses = self._corner(y, target, scale)
        else:
            losses = self._smooth(y, target, scale)
            times = network.min_time, network.max_time
            weight = weight * (t - self.time_mapping(network.schedule, s, t, *times))
        others = {"log_residual": log_squared_norm(target / network.sigma_data)}
        return mean(weight * losses), others

    def _corner(self, y: Any, d: Any, scale: Any) -> Any:
        """(2 / M^2) sum_j scale / D <y_j, d_j / ||d_j||>, for each group."""
        M, D = self.group_size, math.prod(y.shape[1:])
        norm = ops.sqrt(squared_norm(d) + _MIN_SQUARED_NORM)
        d = d / per_sample(norm, d)
        products = ops.sum(ops.reshape(y * d, (-1, M * D)), axis=1)
        return 2.0 * scale / (M * M * D) * products

    def _smooth(self, y: Any, d: Any, scale: Any) -> Any:
        """(2 / M^2) sum_jk <y_j, K(y_j, y_k) d_k>, K the mixed second derivative.

        That sum is the derivative along d of the kernel in its second argument, whose
        gradient in the first is taken.
        """
        M, D = self.group_size, math.prod(y.shape[1:])
        y, d = (ops.reshape(v, (-1, M, D)) for v in (y, d))
        scale = ops.reshape(scale, (-1, 1, 1))
        _, along = jvp(
            lambda b: self.kernel.pairs(y, b, scale), (ops.stop_gradient(y),), (d,)
        )
        return 2.0 * mean(along, axis=(1, 2))

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {"group_size": self.group_size}
