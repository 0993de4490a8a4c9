"""Consistency training in stages (ECT)."""

from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import keras
from keras import ops

from keras_imm.flow_map import Network, per_sample
from keras_imm.objectives.to_the_data import ToTheData, start
from keras_imm.objectives.velocity import (
    drawn_noise,
    log_squared_norm,
    noised,
    squared_norm,
)
from keras_imm.precision import at_least_float32, maximum, mean, minimum
from keras_imm.validation import check_integer, check_number

_MIN_SQUARED_NORM = 1e-16


class Particles(NamedTuple):
    """One batch, noised.

    Attributes:
        x_t: Samples at time t, shape (batch, ...).
        x_r: The same samples at time r, shape (batch, ...).
        t: Times the output starts from, shape (batch,).
        r: Times the target starts from, shape (batch,), r < t.
        labels: Integers of shape (batch,), or None.
    """

    x_t: Any
    x_r: Any
    t: Any
    r: Any
    labels: Any = None


@keras.saving.register_keras_serializable(package="keras_imm.objectives")
class ConsistencyTraining(ToTheData):
    """Moves f_{0,t}(x_t) towards f_{0,r}(x_r), with r nearer to t from stage to stage.

    sigma_r = sigma_t max(0, 1 - q^-(stage + 1) n(sigma_t)), with n(sigma) = 1 + k
    sigmoid(-b sigma). At first r = 0 for most t, which is denoising. The defaults are
    the published ones, for training that starts from the weights of a diffusion model.

    Args:
        stages: How often the gap shrinks by q during training.
        q: Number above 1.
        k: Number of at least 0.
        b: Number of at least 0.
        huber: c of the loss sqrt(||e||^2 + c^2) - c of a sample; 0 for its norm.
        noise_mean: Mean of log(sigma), where sigma = sigma_data eta(t).
        noise_std: Its standard deviation.
        label_dropout: As in `Objective`.
        total_steps: As in `Objective`; needed.

    Raises:
        ValueError: If an argument is out of its range.

    Reference:
        - [Geng et al., 2024](https://arxiv.org/abs/2406.14548), Section 4
    """

    needs_total_steps = True
    network_passes = 4.0  # the target, the output, and its backward pass
    flow_map: ClassVar[Mapping[str, Any]] = {
        "parameterization": "simple_edm",
        "max_time": 0.994,  # sigma 80, nearly
    }
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "cifar10": {"label_dropout": 0.0},
        "cifar10_one_hour": {"q": 256.0, "stages": 1, "label_dropout": 0.0},
    }

    def __init__(
        self,
        stages: int = 8,
        q: float = 2.0,
        k: float = 8.0,
        b: float = 1.0,
        huber: float = 0.0,
        noise_mean: float = -1.1,
        noise_std: float = 2.0,
        label_dropout: float = 0.1,
        total_steps: int | None = None,
    ):
        super().__init__(
            noise_mean, noise_std, label_dropout=label_dropout, total_steps=total_steps
        )
        check_integer("stages", stages, at_least=1)
        check_number("q", q, "a number above 1", lambda v: v > 1)
        for name, value in (("k", k), ("b", b), ("huber", huber)):
            check_number(name, value, "a number of at least 0", lambda v: v >= 0)
        self.stages = stages
        self.q = q
        self.k = k
        self.b = b
        self.huber = huber

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
        t = self.draw_times(network, ops.shape(x)[0], seed, dtype)
        r = self.target_times(network, t, progress)
        noise = drawn_noise(network, x, seed)
        labels = self.drop_labels(network, labels, seed, training)
        return self.noised(network, x, noise, t, r, labels)

    def target_times(self, network: Network, t: Any, progress: Any) -> Any:
        """r(t) at some progress of training.

        Args:
            network: For its schedule.
            t: Times of shape (batch,).
            progress: Scalar tensor in [0, 1].

        Returns:
            Times of that shape, in [min_time, t].
        """
        progress = ops.cast(progress, t.dtype)
        stage = minimum(ops.floor(progress * self.stages), self.stages - 1.0)
        sigma_t = network.sigma_data * network.schedule.eta(t)
        n = 1.0 + self.k * ops.sigmoid(-self.b * sigma_t)
        ratio = maximum(1.0 - n * self.q ** -(stage + 1.0), 0.0)
        r = network.schedule.inverse_eta(ratio * sigma_t / network.sigma_data)
        return minimum(maximum(r, network.min_time), t)

    def noised(
        self, network: Network, x: Any, noise: Any, t: Any, r: Any, labels: Any = None
    ) -> Particles:
        """Particles of given noise of standard deviation `sigma_data`, and times."""
        x_t, x_r = (noised(network.schedule, x, noise, each) for each in (t, r))
        return Particles(x_t, x_r, t, r, labels)

    def target(self, network: Network, particles: Particles) -> Any:
        """f_{0,r}(x_r), which is the data where r = 0; shape (batch, ...)."""
        p = particles
        return network.flow_map(p.x_r, p.r, start(network, p.r), p.labels)

    def loss(self, network: Network, particles: Particles, target: Any) -> tuple:
        """The norm of the difference over sigma_t - sigma_r."""
        p = particles
        y = network.flow_map(p.x_t, p.t, start(network, p.t), p.labels)
        eta = network.schedule.eta
        gap = maximum(network.sigma_data * (eta(p.t) - eta(p.r)), 1e-8)
        squared = squared_norm(y - target) + self.huber**2
        # The maximum is inside the root: its gradient is 0 there, not 0/0.
        distance = ops.sqrt(maximum(squared, _MIN_SQUARED_NORM)) - self.huber
        error = (y - target) / per_sample(gap, y)
        return mean(distance / gap), {"log_residual": log_squared_norm(error)}

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {
            "stages": self.stages,
            "q": self.q,
            "k": self.k,
            "b": self.b,
            "huber": self.huber,
        }
