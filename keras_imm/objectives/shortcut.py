"""Shortcut models: a step of size d is two steps of size d / 2."""

from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import keras
import numpy as np
from keras import ops

from keras_imm.flow_map import FlowMap, Network, per_sample
from keras_imm.objectives.objective import Objective
from keras_imm.objectives.roles import Roles, is_fraction
from keras_imm.objectives.velocity import (
    AVERAGE_VELOCITY,
    check_average_velocity,
    check_guidance,
    check_has_null_label,
    drawn_noise,
    log_squared_norm,
    noised,
    path_velocity,
)
from keras_imm.precision import at_least_float32, maximum, mean, minimum
from keras_imm.validation import check_number, check_positive_number, check_rate


class Particles(NamedTuple):
    """One batch, noised. Rows that learn the velocity have a step of 0.

    Attributes:
        x_t: Samples at time t, shape (batch, ...).
        t: Times of shape (batch,), multiples of the step.
        step: t - s of shape (batch,): 0, or a power of two times the finest step.
        velocity: alpha'(t) x + sigma'(t) noise, the shape of `x_t`.
        labels: Integers of shape (batch,), or None.
    """

    x_t: Any
    t: Any
    step: Any
    velocity: Any
    labels: Any = None


@keras.saving.register_keras_serializable(package="keras_imm.objectives")
class Shortcut(Objective):
    """Regresses the average velocity over a step to that over its two halves.

    Step sizes are 1, 1/2, ... down to two finest steps; the finest step is the flow's
    velocity, which the other rows learn. The halves are taken with averaged weights.
    Rows that learn from halves keep their labels, as published: of the null label the
    velocity is trained and no jump, so that sampling in few steps wants labels and no
    guidance.

    Args:
        bootstrap_share: Share of the rows that learn from two halves: a fraction in
            (0, 1] with a denominator of at most 16.
        finest_steps: Number of finest steps from noise to data, a power of two.
        clip: Samples and velocities of the halves are clipped to this many
            `sigma_data`.
        target_momentum: Momentum of the averages of the weights.
        guidance_scale: Guidance of the finest halves, from which the coarser steps
            learn it; None for none.
        label_dropout: As in `Objective`; of the rows that learn the velocity alone,
            unless it is 1.
        total_steps: As in `Objective`; not used.

    Raises:
        ValueError: If an argument is out of its range.

    Reference:
        - [Frans et al., 2024](https://arxiv.org/abs/2410.12557), Algorithm 1. The
          authors' code has a share of 1/8, the default here; their text says 1/4.
    """

    jumps_without_label = False
    flow_map: ClassVar[Mapping[str, Any]] = AVERAGE_VELOCITY
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "celeba_hq256": {"label_dropout": 0.0},
        "imagenet256": {"guidance_scale": 1.5},
    }

    def __init__(
        self,
        bootstrap_share: float = 0.125,
        finest_steps: int = 128,
        clip: float = 4.0,
        target_momentum: float = 0.999,
        guidance_scale: float | None = None,
        label_dropout: float = 0.1,
        total_steps: int | None = None,
    ):
        super().__init__(label_dropout=label_dropout, total_steps=total_steps)
        check_number(
            "bootstrap_share",
            bootstrap_share,
            "a fraction in (0, 1] with a denominator of at most 16",
            lambda share: 0 < share <= 1 and is_fraction(share),
        )
        self._roles = Roles("bootstrap_share", 1.0 - bootstrap_share)
        check_number(
            "finest_steps",
            finest_steps,
            "a power of two of at least 2",
            lambda v: v >= 2 and v == int(v) and int(v) & (int(v) - 1) == 0,
        )
        check_positive_number("clip", clip)
        check_rate("target_momentum", target_momentum)
        if guidance_scale is not None:
            check_number(
                *("guidance_scale", guidance_scale),
                *("a finite number, or None", lambda _: True),
            )
        self.bootstrap_share = 1.0 - self._roles.share
        self.finest_steps = int(finest_steps)
        self.clip = clip
        self.target_momentum = target_momentum
        self.guidance_scale = guidance_scale
        if self._guides:
            check_guidance(label_dropout, f"guidance_scale={guidance_scale!r}")

    @property
    def rows_together(self) -> int:
        return self._roles.rows_together

    @property
    def averages(self) -> Mapping[str, float]:
        return {"target": self.target_momentum}

    @property
    def network_passes(self) -> float:
        # Two halves of some rows, again without labels, the output and its backward
        # pass.
        return 3.0 + 2.0 * self.bootstrap_share * (1 + self._guides)

    @property
    def _guides(self) -> bool:
        return self.guidance_scale is not None

    def check(self, flow_map: FlowMap) -> None:
        check_average_velocity(flow_map, "Shortcut")
        if self._guides:
            check_has_null_label(flow_map, f"guidance_scale={self.guidance_scale!r}")
        if (flow_map.min_time, flow_map.max_time) != (0.0, 1.0):
            raise ValueError(
                "`Shortcut` has steps of 1, 1/2, 1/4 ...: it needs `min_time=0` and "
                f"`max_time=1`. Received: min_time={flow_map.min_time!r}, "
                f"max_time={flow_map.max_time!r}"
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
        of_velocity = self._roles.of_velocity(rows)

        def uniform():
            return keras.random.uniform((rows,), dtype=dtype, seed=seed)

        # Steps of 1, 1/2 ... 2 / finest_steps, and t a multiple of the step in (0, 1].
        # By products: a graph of TensorFlow may have 1 / 1 a little below 1.
        counts = 2.0 ** np.arange(int(np.log2(self.finest_steps)))
        chosen = _whole(uniform(), len(counts))
        count, step = (
            ops.take(ops.convert_to_tensor(values.astype(dtype)), chosen, axis=0)
            for values in (counts, 1.0 / counts)
        )
        count = ops.where(of_velocity, float(self.finest_steps), count)
        unit = ops.where(of_velocity, 1.0 / self.finest_steps, step)
        t = (1.0 + ops.floor(minimum(uniform() * count, count - 1.0))) * unit
        step = ops.where(of_velocity, ops.zeros_like(step), step)

        noise = drawn_noise(network, x, seed)
        if labels is not None:
            dropped = self.drop_labels(network, labels, seed, training)
            has_none = training and self.label_dropout == 1.0
            labels = dropped if has_none else ops.where(of_velocity, dropped, labels)
        return self.noised(network, x, noise, t, step, labels)

    def noised(
        self,
        network: Network,
        x: Any,
        noise: Any,
        t: Any,
        step: Any,
        labels: Any = None,
    ) -> Particles:
        """Particles of given noise of standard deviation `sigma_data`, and times."""
        of = network.schedule, x, noise, t
        return Particles(noised(*of), t, step, path_velocity(*of), labels)

    def target(self, network: Network, particles: Particles) -> Any:
        """The mean velocity over the two halves of a step, or the path's velocity."""
        p = particles
        rows = self._roles.rows_of_jumps
        x_t, t, half, labels = (rows(v) for v in (p.x_t, p.t, 0.5 * p.step, p.labels))
        averaged = network.part(rows).with_weights("target")
        largest = self.clip * network.sigma_data

        def clipped(x):
            return minimum(maximum(x, -largest), largest)

        def velocity(x, t):
            # Half of the smallest step is the finest one: the velocity itself.
            finest = half * self.finest_steps < 1.5
            s = ops.where(finest, t, t - half)
            u = averaged.output(x, t, s, labels)
            if self._guides and labels is not None:
                null = ops.zeros_like(labels) + network.null_label
                of_null = averaged.output(x, t, s, null)
                guided = of_null + self.guidance_scale * (u - of_null)
                u = ops.where(per_sample(finest, x), guided, u)
            return network.sigma_data * u

        first = velocity(x_t, t)
        x_m = clipped(x_t - per_sample(half, x_t) * first)
        second = velocity(x_m, t - half)
        of_halves = clipped(0.5 * (first + second))
        return self._roles.merged(of_halves, self._roles.rows_of_velocity(p.velocity))

    def loss(self, network: Network, particles: Particles, target: Any) -> tuple:
        """The mean squared error in units of `sigma_data`, over all rows alike."""
        p = particles
        output = network.output(p.x_t, p.t, p.t - p.step, p.labels)
        error = output - target / network.sigma_data
        others = {"log_residual": log_squared_norm(self._roles.rows_of_jumps(error))}
        if self._roles.share:
            of_velocity = self._roles.rows_of_velocity(error)
            others["log_velocity_residual"] = log_squared_norm(of_velocity)
        return mean(ops.square(error)), others

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {
            "bootstrap_share": self.bootstrap_share,
            "finest_steps": self.finest_steps,
            "clip": self.clip,
            "target_momentum": self.target_momentum,
            "guidance_scale": self.guidance_scale,
        }


def _whole(uniform: Any, count: int) -> Any:
    """Integers in [0, count) of draws from [0, 1)."""
    return ops.cast(minimum(ops.floor(uniform * count), count - 1.0), "int32")
