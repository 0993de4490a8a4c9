"""Consistency: training in stages (ECT), and its continuous-time limit (sCM)."""

import math
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import keras
from keras import ops

from keras_imm import parameterizations, schedules
from keras_imm.flow_map import FlowMap, Network, per_sample
from keras_imm.objectives.objective import Objective
from keras_imm.objectives.velocity import (
    drawn_noise,
    log_squared_norm,
    noised,
    path_velocity,
    squared_norm,
)
from keras_imm.precision import at_least_float32, maximum, mean, minimum
from keras_imm.validation import (
    check_fraction,
    check_integer,
    check_number,
    check_positive_number,
)

_TWO_STEPS = (1.642,)  # eta between two steps of sampling: sigma 0.821
_MIN_SQUARED_NORM = 1e-16


class _ToTheData(Objective):
    """What both have: noise levels drawn log-normally, and jumps to the data alone.

    Args:
        noise_mean: Mean of log(sigma), where sigma = sigma_data eta(t).
        noise_std: Its standard deviation; positive.
    """

    sampler = "restart"
    time_grid = _TWO_STEPS

    def __init__(self, noise_mean: float, noise_std: float, **kwargs: Any):
        super().__init__(**kwargs)
        check_number("noise_mean", noise_mean, "a finite number", lambda _: True)
        check_positive_number("noise_std", noise_std)
        self.noise_mean = noise_mean
        self.noise_std = noise_std

    def draw_times(self, network: Network, rows: Any, seed: Any, dtype: str) -> Any:
        normal = keras.random.normal((rows,), dtype=dtype, seed=seed)
        sigma = ops.exp(self.noise_mean + self.noise_std * normal)
        t = network.schedule.inverse_eta(sigma / network.sigma_data)
        return minimum(maximum(t, network.min_time), network.max_time)

    def get_config(self) -> dict:
        return super().get_config() | {
            "noise_mean": self.noise_mean,
            "noise_std": self.noise_std,
        }


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
class ConsistencyTraining(_ToTheData):
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
        return network.flow_map(p.x_r, p.r, _start(network, p.r), p.labels)

    def loss(self, network: Network, particles: Particles, target: Any) -> tuple:
        """The norm of the difference over sigma_t - sigma_r."""
        p = particles
        y = network.flow_map(p.x_t, p.t, _start(network, p.t), p.labels)
        eta = network.schedule.eta
        gap = maximum(network.sigma_data * (eta(p.t) - eta(p.r)), 1e-8)
        squared = squared_norm(y - target) + self.huber**2
        # The maximum is inside the root: its gradient is 0 there, not 0/0.
        distance = ops.sqrt(maximum(squared, _MIN_SQUARED_NORM)) - self.huber
        error = (y - target) / per_sample(gap, y)
        return mean(distance / gap), {"log_residual": log_squared_norm(error)}

    def get_config(self) -> dict:
        return super().get_config() | {
            "stages": self.stages,
            "q": self.q,
            "k": self.k,
            "b": self.b,
            "huber": self.huber,
        }


class ContinuousParticles(NamedTuple):
    """One batch, noised.

    Attributes:
        x_t: Samples at time t, shape (batch, ...).
        t: Times of shape (batch,).
        velocity: dx/dtau with the angle tau = pi t / 2, the shape of `x_t`.
        ramp: Weight of the derivative in the tangent, the same in all rows, (batch,).
        labels: Integers of shape (batch,), or None.
    """

    x_t: Any
    t: Any
    velocity: Any
    ramp: Any
    labels: Any = None


@keras.saving.register_keras_serializable(package="keras_imm.objectives")
class ContinuousConsistency(_ToTheData):
    """Consistency in continuous time, with a normalised tangent (sCM, TrigFlow).

    With the angle tau = pi t / 2 the flow map to the data is f = cos(tau) x - sin(tau)
    sigma_data F, the network F moves against the normalised tangent g = cos(tau)
    df/dtau. The learned weight of the paper is left out: at its optimum it cancels the
    paper's other weight, up to the mean of ||g||^2 at a time.

    Args:
        warmup: Share of the training in [0, 1] over which the weight of the
            derivative in the tangent goes from 0, flow matching, to 1. Published are
            10,000 steps of some 400,000 that start from a diffusion model's weights.
        constant: c of the tangent's normalisation g / (rms(g) + c), in units of
            sigma_data; positive.
        noise_mean: Mean of log(sigma), where sigma = sigma_data tan(tau).
        noise_std: Its standard deviation.
        label_dropout: As in `Objective`.
        total_steps: As in `Objective`; needed.

    Raises:
        ValueError: If an argument is out of its range.

    Reference:
        - [Lu and Song, 2024](https://arxiv.org/abs/2410.11081), Algorithm 1
    """

    needs_total_steps = True
    network_passes = 5.0  # value and derivative, the output and its backward pass
    flow_map: ClassVar[Mapping[str, Any]] = {
        "schedule": "cosine",
        "parameterization": "simple_edm",
        "time_scale": 1.0,
        "max_time": 1.0,
    }
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "cifar10": {"label_dropout": 0.0},
        "imagenet64": {"noise_std": 1.6},
    }

    def __init__(
        self,
        warmup: float = 0.3,
        constant: float = 0.1,
        noise_mean: float = -1.0,
        noise_std: float = 1.4,
        label_dropout: float = 0.1,
        total_steps: int | None = None,
    ):
        super().__init__(
            noise_mean, noise_std, label_dropout=label_dropout, total_steps=total_steps
        )
        check_fraction("warmup", warmup)
        check_positive_number("constant", constant)
        self.warmup = warmup
        self.constant = constant

    def check(self, flow_map: FlowMap) -> None:
        kinds = schedules.Cosine, parameterizations.SimpleEDM
        pieces = flow_map.schedule, flow_map.parameterization
        if not all(map(isinstance, pieces, kinds)):
            raise ValueError(
                '`ContinuousConsistency` needs `schedule="cosine"` and '
                '`parameterization="simple_edm"`. Received: '
                f"schedule={pieces[0]!r}, parameterization={pieces[1]!r}"
            )

    def draw(
        self,
        network: Network,
        x: Any,
        labels: Any,
        seed: keras.random.SeedGenerator,
        progress: Any = None,
        training: bool = True,
    ) -> ContinuousParticles:
        x = at_least_float32(x)
        rows, dtype = ops.shape(x)[0], keras.backend.standardize_dtype(x.dtype)
        t = self.draw_times(network, rows, seed, dtype)
        noise = drawn_noise(network, x, seed)
        done = ops.cast(progress, dtype) + ops.zeros_like(t)
        ramp = minimum(done / self.warmup, 1.0) if self.warmup else ops.ones_like(t)
        labels = self.drop_labels(network, labels, seed, training)
        return self.noised(network, x, noise, t, ramp, labels)

    def noised(
        self,
        network: Network,
        x: Any,
        noise: Any,
        t: Any,
        ramp: Any,
        labels: Any = None,
    ) -> ContinuousParticles:
        """Particles of given noise of standard deviation `sigma_data`, and times."""
        of = network.schedule, x, noise, t
        velocity = path_velocity(*of) / (math.pi / 2)
        return ContinuousParticles(noised(*of), t, velocity, ramp, labels)

    def target(self, network: Network, particles: ContinuousParticles) -> Any:
        """F and g, each of the shape of `x_t`."""
        return self.tangent(network, particles)

    def tangent(
        self, network: Network, particles: ContinuousParticles
    ) -> tuple[Any, Any]:
        """F, and cos(tau) df/dtau in units of `sigma_data`.

        Args:
            network: The network.
            particles: What `draw` returned.

        Returns:
            Two tensors of the shape of `x_t`.
        """
        p = particles
        cos, sin = network.schedule.alpha(p.t), network.schedule.sigma(p.t)
        # cos sin dF/dtau as one derivative, which is finite at t = 1.
        both = cos * sin
        along = per_sample(both, p.x_t) * p.velocity
        rate = both * (2.0 / math.pi)  # dt = 2/pi dtau
        start = _start(network, p.t)
        output, derivative = network.total_derivative(
            p.x_t, p.t, start, p.labels, along, rate
        )
        cos2, ramp, both = (per_sample(v, p.x_t) for v in (cos * cos, p.ramp, both))
        sigma_data = network.sigma_data
        tangent = -cos2 * (output - p.velocity / sigma_data)
        tangent = tangent - ramp * (both * p.x_t / sigma_data + derivative)
        return output, tangent

    def loss(
        self, network: Network, particles: ContinuousParticles, target: Any
    ) -> tuple:
        """The mean squared distance to sg(F + g / (rms(g) + c))."""
        p = particles
        before, tangent = target
        rms = ops.sqrt(squared_norm(tangent) / math.prod(tangent.shape[1:]))
        step = tangent / per_sample(rms + self.constant, tangent)
        output = network.output(p.x_t, p.t, _start(network, p.t), p.labels)
        others = {"log_residual": log_squared_norm(tangent)}
        return mean(ops.square(output - (before + step))), others

    def get_config(self) -> dict:
        return super().get_config() | {
            "warmup": self.warmup,
            "constant": self.constant,
        }


def _start(network: Network, t: Any) -> Any:
    return ops.zeros_like(t) + network.min_time
