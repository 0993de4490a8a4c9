"""The objective of Inductive Moment Matching: Algorithm 3 and Eq. 67."""

from typing import Any, NamedTuple

import keras
from keras import ops

from keras_imm import kernels, time_mappings, weightings
from keras_imm.flow_map import FlowMap, Network, per_sample
from keras_imm.objectives.mmd import grouped_mmd
from keras_imm.objectives.objective import Objective
from keras_imm.precision import at_least_float32, maximum, mean, minimum
from keras_imm.validation import (
    check_batch_size,
    check_boolean,
    check_instance,
    check_integer,
)

_MIN_C_OUT = 1e-6


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
    """

    x_t: Any
    x_r: Any
    s: Any
    r: Any
    t: Any
    labels: Any = None
    target_labels: Any = None


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

    Raises:
        ValueError: If an argument is out of its range.

    Reference:
        - [Zhou et al., 2025](https://arxiv.org/abs/2503.07565), Algorithm 3
    """

    network_passes = 4.0  # the target, the output, and its backward pass
    rows_argument = "group_size"

    def __init__(
        self,
        time_mapping: str | time_mappings.TimeMapping = "eta_decrement",
        kernel: str | kernels.Kernel = "laplace",
        weighting: str | weightings.Weighting = "elbo",
        group_size: int = 4,
        label_dropout: float = 0.1,
        drop_target_labels: bool = True,
        total_steps: int | None = None,
    ):
        super().__init__(label_dropout=label_dropout, total_steps=total_steps)
        check_integer("group_size", group_size, at_least=1)
        check_boolean("drop_target_labels", drop_target_labels)
        self.time_mapping = time_mappings.get(time_mapping)
        self.kernel = kernels.get(kernel)
        self.weighting = weightings.get(weighting)
        self.group_size = group_size
        self.drop_target_labels = drop_target_labels

    @property
    def rows_together(self) -> int:
        """A group of particles."""
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
    ) -> Particles:
        """Algorithm 3 up to the networks: times, noise and dropped labels.

        Raises:
            ValueError: If the group size does not divide the batch, or `seed` is
                not a seed generator.
        """
        check_batch_size(x.shape[0], self.group_size)
        x = at_least_float32(x)
        dtype = keras.backend.standardize_dtype(x.dtype)
        min_time, max_time = network.min_time, network.max_time

        # (s, r, t) once per group
        groups = (ops.shape(x)[0] // self.group_size,)
        s, t = sample_times(groups, min_time, max_time, seed, dtype)
        r = self.time_mapping(network.schedule, s, t, min_time, max_time)
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
        alpha_t = per_sample(schedule.alpha(t), x)
        sigma_t = per_sample(schedule.sigma(t), x)
        x_t = alpha_t * x + sigma_t * noise

        # x_r = DDIM(x_t, x, r, t)
        skip, out = schedule.ddim_coefficients(r, t)
        x_r = per_sample(skip, x) * x_t + per_sample(out, x) * x
        return Particles(x_t, x_r, s, r, t, labels, target_labels)

    def target(self, network: Network, particles: Particles) -> Any:
        """y^- = f_{s,r}(x_r), with the current weights; shape (batch, ...)."""
        p = particles
        return network.flow_map(p.x_r, p.r, p.s, p.target_labels)

    def loss(self, network: Network, particles: Particles, target: Any) -> Any:
        """Mean over the groups of w(s, t) times their squared MMD (Eq. 67).

        Args:
            network: The network, differentiable.
            particles: What `draw` returned.
            target: What `target` returned; no gradient should flow into it.

        Returns:
            Scalar tensor, float32 or wider.
        """
        p = particles
        c = network.coefficients(p.s, p.t)
        y = network.flow_map(p.x_t, p.t, p.s, p.labels, coefficients=c)  # f_{s,t}(x_t)

        s, t, c_out = (each[:: self.group_size] for each in (p.s, p.t, c.c_out))
        kernel_scale = 1.0 / maximum(ops.abs(c_out), _MIN_C_OUT)
        mmd = grouped_mmd(y, target, kernel_scale, self.kernel, self.group_size)
        weight = self.weighting(network.schedule, s, t)
        # At s = t both passes are the identity: exactly 0, whatever is rounded.
        weight = ops.where(s < t, weight, ops.zeros_like(weight))
        return mean(weight * mmd)

    def get_config(self) -> dict:
        return super().get_config() | {
            **{
                name: keras.saving.serialize_keras_object(getattr(self, name))
                for name in ("time_mapping", "kernel", "weighting")
            },
            "group_size": self.group_size,
            "drop_target_labels": self.drop_target_labels,
        }

    @classmethod
    def from_config(cls, config: dict) -> "MomentMatching":
        config = dict(config)
        for name in ("time_mapping", "kernel", "weighting"):
            config[name] = keras.saving.deserialize_keras_object(config[name])
        return cls(**config)


def sample_times(
    shape: tuple,
    min_time: float,
    max_time: float,
    seed: keras.random.SeedGenerator,
    dtype: str = "float32",
) -> tuple[Any, Any]:
    """Draws t ~ U(min_time, max_time) and s | t ~ U(min_time, t).

    Args:
        shape: Shape of the times, such as (groups,).
        min_time: Start of the time range (epsilon in the paper).
        max_time: End of the time range (T in the paper).
        seed: Seed generator; an integer would draw t and s alike.
        dtype: Dtype of the times.

    Returns:
        s and t, each of the given shape, min_time <= s <= t <= max_time.

    Raises:
        ValueError: If `seed` is not a seed generator.
    """
    check_instance("seed", seed, keras.random.SeedGenerator)
    t = keras.random.uniform(shape, min_time, max_time, dtype=dtype, seed=seed)
    fraction = keras.random.uniform(shape, dtype=dtype, seed=seed)
    return minimum(min_time + fraction * (t - min_time), t), t
