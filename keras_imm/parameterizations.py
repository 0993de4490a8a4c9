"""How a network output becomes the flow map.

f_{s,t}(x_t) = c_skip(s, t) x_t + c_out(s, t) G, with f_{s,s}(x) = x exactly.
"""

from typing import Any

import keras
from keras import ops

from keras_imm import schedules
from keras_imm.precision import at_least_float32
from keras_imm.registry import lookup


class Parameterization:
    """Base class of parameterizations.

    Subclasses implement `c_skip` and `c_out`; `velocity_coefficients` too, for
    objectives and samplers that follow the velocity of the flow (IMM does not); and
    `check`, where not every schedule will do. At s = t `c_skip` is exactly 1 and
    `c_out` exactly 0.

    All take a schedule and times of one shape, and return tensors of that shape in
    float32 or the times' wider dtype.
    """

    def c_skip(self, schedule: schedules.Schedule, s: Any, t: Any) -> Any:
        """Weight of x_t in the flow map."""
        raise NotImplementedError

    def c_out(
        self, schedule: schedules.Schedule, s: Any, t: Any, sigma_data: float
    ) -> Any:
        """Weight of the network output in the flow map, 0 where s = t."""
        raise NotImplementedError

    def velocity_coefficients(
        self, schedule: schedules.Schedule, t: Any, sigma_data: float
    ) -> tuple[Any, Any]:
        """Weights of x_t and of the network output in the velocity dx/dt.

        The flow map's derivative in s at s = t is the velocity of the flow at
        (x_t, t). c_out vanishes there, so it is skip * x_t + out * G.

        Args:
            schedule: Noise schedule.
            t: Times in [0, 1], any one shape.
            sigma_data: Standard deviation of the data.

        Returns:
            skip and out: d c_skip(s, t) / ds and d c_out(s, t) / ds at s = t, each of
            the shape of `t`.

        Raises:
            NotImplementedError: If the parameterization does not give them.
        """
        raise NotImplementedError(
            f"The parameterization {type(self).__name__} does not implement "
            "`velocity_coefficients`, which the velocity of the flow needs."
        )

    def check(self, schedule: schedules.Schedule) -> None:
        """Raises ValueError if the parameterization needs another schedule."""

    def get_config(self) -> dict[str, Any]:
        """Constructor arguments, for saving."""
        return {}

    @classmethod
    def from_config(cls, config: dict) -> "Parameterization":
        """The parameterization that `get_config` described."""
        return cls(**config)


@keras.saving.register_keras_serializable(package="keras_imm")
class Identity(Parameterization):
    """The network predicts the data, and DDIM goes there (IMM App. C.5).

    At s = t = 0 the ratio is 0/0 and its limit depends on the path; here it is the
    identity. Prefer `min_time` > 0 with it.
    """

    def c_skip(self, schedule: schedules.Schedule, s: Any, t: Any) -> Any:
        return schedule.ddim_coefficients(s, t)[0]

    def c_out(
        self, schedule: schedules.Schedule, s: Any, t: Any, sigma_data: float
    ) -> Any:
        return schedule.ddim_coefficients(s, t)[1]

    def velocity_coefficients(
        self, schedule: schedules.Schedule, t: Any, sigma_data: float
    ) -> tuple[Any, Any]:
        # sigma'/sigma and alpha' - (sigma'/sigma) alpha; infinite at t = 0.
        sigma = schedule.sigma(t)
        return schedule.sigma_derivative(t) / sigma, -schedule.rotation_rate(t) / sigma


@keras.saving.register_keras_serializable(package="keras_imm")
class SimpleEDM(Parameterization):
    """EDM's preconditioning put through DDIM, for any schedule (IMM App. C.5)."""

    def c_skip(self, schedule: schedules.Schedule, s: Any, t: Any) -> Any:
        product = schedule.alpha(s) * schedule.alpha(t)
        product = product + schedule.sigma(s) * schedule.sigma(t)
        ratio = product / schedule.squared_norm(t)
        # A fused multiply-add may round x/x away from 1; the boundary is exact.
        at_boundary = ops.equal(at_least_float32(s), at_least_float32(t))
        return ops.where(at_boundary, ops.ones_like(ratio), ratio)

    def c_out(
        self, schedule: schedules.Schedule, s: Any, t: Any, sigma_data: float
    ) -> Any:
        norm = ops.sqrt(schedule.squared_norm(t))
        return -schedule.rotation(s, t) * sigma_data / norm

    def velocity_coefficients(
        self, schedule: schedules.Schedule, t: Any, sigma_data: float
    ) -> tuple[Any, Any]:
        squared_norm = schedule.squared_norm(t)
        product = schedule.alpha(t) * schedule.alpha_derivative(t)
        product = product + schedule.sigma(t) * schedule.sigma_derivative(t)
        out = schedule.rotation_rate(t) * sigma_data / ops.sqrt(squared_norm)
        return product / squared_norm, out


@keras.saving.register_keras_serializable(package="keras_imm")
class EulerFM(Parameterization):
    """One Euler step along the network's velocity (IMM App. C.5).

    Defined for the flow-matching schedule only.
    """

    def c_skip(self, schedule: schedules.Schedule, s: Any, t: Any) -> Any:
        return ops.ones_like(at_least_float32(t))

    def c_out(
        self, schedule: schedules.Schedule, s: Any, t: Any, sigma_data: float
    ) -> Any:
        return -schedule.rotation(s, t) * sigma_data

    def velocity_coefficients(
        self, schedule: schedules.Schedule, t: Any, sigma_data: float
    ) -> tuple[Any, Any]:
        rate = schedule.rotation_rate(t)
        return ops.zeros_like(rate), rate * sigma_data

    def check(self, schedule: schedules.Schedule) -> None:
        if not isinstance(schedule, schedules.FlowMatching):
            raise ValueError(
                '`parameterization="euler_fm"` needs `schedule="flow_matching"`. '
                f"Received: schedule={schedule!r}"
            )


_PARAMETERIZATIONS = {
    "identity": Identity,
    "simple_edm": SimpleEDM,
    "euler_fm": EulerFM,
}


def get(identifier: str | Parameterization) -> Parameterization:
    """The parameterization of that name, or the object itself.

    Known names: "identity", "simple_edm", "euler_fm".

    Raises:
        ValueError: If the name is not known.
    """
    return lookup("parameterization", identifier, _PARAMETERIZATIONS, Parameterization)
