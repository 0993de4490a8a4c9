"""Noise schedules: x_t = alpha(t) x + sigma(t) noise, data at t = 0, noise at 1."""

import math
from typing import Any

import keras
from keras import ops

from keras_imm.precision import at_least_float32
from keras_imm.registry import lookup


class Schedule:
    """Base class of noise schedules.

    Subclasses implement `alpha`, `sigma`, `alpha_derivative`, `sigma_derivative`,
    `inverse_eta`, `rotation` and `eta_gap`. The other methods are computed from
    these; override one where it has a form that rounds less. `get_config` returns
    the arguments of a constructor that has any.

    Every method takes times of any one shape, in [0, 1], and returns a tensor of
    that shape, in float32 or the times' wider dtype.
    """

    def alpha(self, t: Any) -> Any:
        """Weight of the data in x_t: 1 at t = 0, falling to 0 at t = 1."""
        raise self._missing("alpha")

    def sigma(self, t: Any) -> Any:
        """Weight of the noise in x_t: 0 at t = 0, rising to 1 at t = 1."""
        raise self._missing("sigma")

    def alpha_derivative(self, t: Any) -> Any:
        """d alpha / dt, at most 0."""
        raise self._missing("alpha_derivative")

    def sigma_derivative(self, t: Any) -> Any:
        """d sigma / dt, at least 0."""
        raise self._missing("sigma_derivative")

    def inverse_eta(self, eta: Any) -> Any:
        """The time t with eta(t) = `eta`, for `eta` in [0, inf]."""
        raise self._missing("inverse_eta")

    def rotation(self, s: Any, t: Any) -> Any:
        """alpha(s) sigma(t) - alpha(t) sigma(s), without cancellation."""
        raise self._missing("rotation")

    def eta_gap(self, t: Any, decrement: Any) -> Any:
        """t - eta^-1(eta(t) - decrement), without cancellation.

        Args:
            t: Times in [0, 1].
            decrement: Same shape; 0 <= `decrement` <= eta(t).

        Returns:
            The gap, in [0, t].
        """
        raise self._missing("eta_gap")

    def rotation_rate(self, t: Any) -> Any:
        """alpha sigma' - alpha' sigma at `t`: the slope of `rotation` at s = t."""
        rate = self.alpha(t) * self.sigma_derivative(t)
        return rate - self.alpha_derivative(t) * self.sigma(t)

    def eta(self, t: Any) -> Any:
        """sigma / alpha, in [0, inf]; infinite at t = 1."""
        return self.sigma(t) / self.alpha(t)

    def reciprocal_eta(self, t: Any) -> Any:
        """alpha / sigma, in [0, inf]; infinite at t = 0."""
        return self.alpha(t) / self.sigma(t)

    def inverse_reciprocal_eta(self, reciprocal_eta: Any) -> Any:
        """The time t with 1 / eta(t) = `reciprocal_eta`, in [0, inf)."""
        return self.inverse_eta(1.0 / at_least_float32(reciprocal_eta))

    def log_snr(self, t: Any) -> Any:
        """Log signal-to-noise ratio 2 log(alpha / sigma), falling in `t`."""
        return 2.0 * (ops.log(self.alpha(t)) - ops.log(self.sigma(t)))

    def inverse_log_snr(self, log_snr: Any) -> Any:
        """The time t with log_snr(t) = `log_snr`."""
        return self.inverse_eta(ops.exp(-0.5 * at_least_float32(log_snr)))

    def log_snr_decay(self, t: Any) -> Any:
        """-d log_snr / dt, positive; infinite at t = 0 and t = 1."""
        return 2.0 * self.rotation_rate(t) / (self.alpha(t) * self.sigma(t))

    def squared_norm(self, t: Any) -> Any:
        """alpha^2 + sigma^2."""
        return ops.square(self.alpha(t)) + ops.square(self.sigma(t))

    def ddim_coefficients(self, s: Any, t: Any) -> tuple[Any, Any]:
        """Weights of x_t and of x in DDIM(x_t, x, s, t).

        Returns:
            sigma_s / sigma_t and alpha_s - (sigma_s / sigma_t) alpha_t, each of the
            shape of `t`; exactly 1 and 0 at s = t, also where sigma_t = 0.
        """
        sigma_t = self.sigma(t)
        one = ops.ones_like(sigma_t)
        divisor = ops.where(ops.equal(sigma_t, 0.0), one, sigma_t)
        # Some compilers round x/x away from 1; the boundary is exact.
        at_boundary = ops.equal(at_least_float32(s), at_least_float32(t))
        skip = ops.where(at_boundary, one, self.sigma(s) / divisor)
        return skip, self.rotation(s, t) / divisor

    def get_config(self) -> dict[str, Any]:
        """Constructor arguments, for saving."""
        return {}

    @classmethod
    def from_config(cls, config: dict) -> "Schedule":
        """The schedule that `get_config` described."""
        return cls(**config)

    def _missing(self, method: str) -> NotImplementedError:
        return NotImplementedError(
            f"The schedule {type(self).__name__} does not implement `{method}`."
        )


@keras.saving.register_keras_serializable(package="keras_imm")
class FlowMatching(Schedule):
    """Optimal-transport flow matching: alpha = 1 - t, sigma = t.

    Reference: Lipman et al. 2023; IMM Sec. 2 and App. C.1.
    """

    def alpha(self, t: Any) -> Any:
        return 1.0 - at_least_float32(t)

    def sigma(self, t: Any) -> Any:
        return at_least_float32(t)

    def alpha_derivative(self, t: Any) -> Any:
        return -ops.ones_like(at_least_float32(t))

    def sigma_derivative(self, t: Any) -> Any:
        return ops.ones_like(at_least_float32(t))

    def inverse_eta(self, eta: Any) -> Any:
        # 1 / (1 + 1 / eta) has the right limits at 0 and at infinity.
        return self.inverse_reciprocal_eta(1.0 / at_least_float32(eta))

    def inverse_reciprocal_eta(self, reciprocal_eta: Any) -> Any:
        return 1.0 / (1.0 + at_least_float32(reciprocal_eta))

    def rotation(self, s: Any, t: Any) -> Any:
        return at_least_float32(t) - at_least_float32(s)

    def rotation_rate(self, t: Any) -> Any:
        return ops.ones_like(at_least_float32(t))

    def eta_gap(self, t: Any, decrement: Any) -> Any:
        alpha = self.alpha(t)
        # decrement <= eta, so that 1 - decrement alpha >= alpha.
        return decrement * ops.square(alpha) / (1.0 - decrement * alpha)


@keras.saving.register_keras_serializable(package="keras_imm")
class Cosine(Schedule):
    """Variance-preserving cosine: alpha = cos(pi t / 2), sigma = sin(pi t / 2).

    Reference: Nichol & Dhariwal 2021; IMM Sec. 2 and App. C.1.
    """

    def alpha(self, t: Any) -> Any:
        # cos(pi / 2) is -4e-8 in float32; this form is exactly 0 at t = 1.
        return ops.sin((0.5 * math.pi) * (1.0 - at_least_float32(t)))

    def sigma(self, t: Any) -> Any:
        return ops.sin((0.5 * math.pi) * at_least_float32(t))

    def alpha_derivative(self, t: Any) -> Any:
        return (-0.5 * math.pi) * self.sigma(t)

    def sigma_derivative(self, t: Any) -> Any:
        return (0.5 * math.pi) * self.alpha(t)

    def inverse_eta(self, eta: Any) -> Any:
        # Not arctan2, which Keras computes in float32 on torch; arctan(inf) is right.
        return (2.0 / math.pi) * ops.arctan(at_least_float32(eta))

    def rotation(self, s: Any, t: Any) -> Any:
        return ops.sin((0.5 * math.pi) * (at_least_float32(t) - at_least_float32(s)))

    def rotation_rate(self, t: Any) -> Any:
        return (0.5 * math.pi) * ops.ones_like(at_least_float32(t))

    def eta_gap(self, t: Any, decrement: Any) -> Any:
        # tan(a - b) with tan a = eta and tan b = eta - decrement, multiplied by
        # alpha^2 above and below so that it stays finite at t = 1.
        alpha, sigma = self.alpha(t), self.sigma(t)
        product = sigma * (sigma - decrement * alpha)
        tangent = decrement * ops.square(alpha) / (ops.square(alpha) + product)
        return (2.0 / math.pi) * ops.arctan(tangent)


_SCHEDULES = {"flow_matching": FlowMatching, "cosine": Cosine}


def get(identifier: str | Schedule) -> Schedule:
    """The schedule of that name ("flow_matching", "cosine"), or the object itself.

    Raises:
        ValueError: If the name is not known.
    """
    return lookup("schedule", identifier, _SCHEDULES, Schedule)
