"""Objectives that are no part of the library, one for each thing it offers them."""

from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import keras
from keras import ops

from keras_imm.flow_map import per_sample
from keras_imm.objectives import Objective

MOMENTUM = 0.9


class Particles(NamedTuple):
    """Noised data with what the tests look at.

    Attributes:
        x: Data.
        x_t: Samples at time t.
        t: Times of the samples.
        s: Times to go to.
        progress: Progress of the training, the same in every row.
        place: Place of a row in its run of `rows_together` rows.
        labels: Labels, or None.
    """

    x: Any
    x_t: Any
    t: Any
    s: Any
    progress: Any
    place: Any
    labels: Any = None


class Noised(Objective):
    """Draws particles for the flow-matching schedule."""

    def draw(self, network, x, labels, seed, progress, training) -> Particles:
        rows = (ops.shape(x)[0],)
        t = keras.random.uniform(rows, 0.1, network.max_time, seed=seed)
        s = t * keras.random.uniform(rows, seed=seed)
        noise = keras.random.normal(ops.shape(x), seed=seed) * network.sigma_data
        a, b = (
            per_sample(of(t), x)
            for of in (network.schedule.alpha, network.schedule.sigma)
        )
        return Particles(
            x,
            a * x + b * noise,
            t,
            s,
            ops.broadcast_to(progress, rows),
            ops.arange(rows[0], dtype="int32") % self.rows_together,
            self.drop_labels(network, labels, seed, training),
        )


@keras.saving.register_keras_serializable(package="newcomers")
class Regression(Noised):
    """Regresses the flow map at min_time to the data, less and less; with scalars."""

    network_passes = 3.0
    needs_total_steps = True
    sampler = "restart"
    time_grid = (1.4,)

    def loss(self, network, particles, target=None) -> tuple:
        p = particles
        x = network.flow_map(p.x_t, p.t, ops.zeros_like(p.t), p.labels)
        error = ops.mean(ops.square(x - p.x))
        progress = ops.mean(p.progress)
        return error * (2.0 - progress), {"error": error, "progress": progress}


@keras.saving.register_keras_serializable(package="newcomers")
class AveragedTarget(Noised):
    """The output moves towards the data and the output of averaged weights."""

    network_passes = 4.0
    averages: Mapping[str, float] = {"target": MOMENTUM}

    def target(self, network, particles) -> Any:
        p = particles
        return network.with_weights("target").output(p.x_t, p.t, p.s, p.labels)

    def loss(self, network, particles, target) -> tuple:
        p = particles
        output = network.output(p.x_t, p.t, p.s, p.labels)
        distance = ops.mean(ops.square(output - target))
        loss = distance + ops.mean(ops.square(output - p.x))
        return loss, {"distance": distance}


@keras.saving.register_keras_serializable(package="newcomers")
class Roles(Noised):
    """Rows 0 and 1 of every four go to min_time, the others to s."""

    network_passes = 3.0
    rows_together = 4

    def loss(self, network, particles, target=None) -> tuple:
        p = particles
        place = ops.arange(ops.shape(p.t)[0], dtype="int32") % 4
        s = ops.where(place < 2, ops.zeros_like(p.s), p.s)
        x_s = network.flow_map(p.x_t, p.t, s, p.labels)
        misplaced = ops.sum(ops.cast(place != p.place, "float32"))
        return ops.mean(ops.square(x_s - p.x)), {"misplaced": misplaced}


@keras.saving.register_keras_serializable(package="newcomers")
class Derivatives(Noised):
    """A derivative in the target and another, differentiated again, in the loss."""

    network_passes = 8.0  # two for each derivative, with its value, of which one thrice
    flow_map: ClassVar[Mapping[str, Any]] = {"time_scale": 1.0, "second_time": "stride"}
    sampler = "euler"

    def target(self, network, particles) -> Any:
        p = particles
        output, total = network.total_derivative(
            p.x_t, p.t, p.s, p.labels, ops.ones_like(p.x_t)
        )
        return {"output": output, "total": ops.tanh(total), "nothing": None}

    def loss(self, network, particles, target) -> Any:
        p = particles
        output, in_s = network.derivative_in_s(p.x_t, p.t, p.s, p.labels)
        error = output - p.x + 0.1 * target["total"] - 0.1 * target["output"]
        return ops.mean(ops.square(error)) + 0.1 * ops.mean(ops.square(in_s))


EVERY = (Regression, AveragedTarget, Roles, Derivatives)
