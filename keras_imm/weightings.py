"""Weightings w(s, t) of the loss over times."""

import math
from typing import Any

import keras
from keras import ops

from keras_imm import schedules
from keras_imm.precision import at_least_float32
from keras_imm.registry import lookup
from keras_imm.validation import check_number


class Weighting:
    """Base class of weightings. Subclasses implement `__call__`."""

    def __call__(self, schedule: schedules.Schedule, s: Any, t: Any) -> Any:
        """w(s, t).

        Args:
            schedule: Noise schedule.
            s: Times in [0, 1], any one shape.
            t: Times in [0, 1], the same shape.

        Returns:
            Non-negative weights of that shape, in float32 or the times' wider dtype,
            finite on the whole range.
        """
        raise NotImplementedError(
            f"The weighting {type(self).__name__} does not implement `__call__`."
        )

    def get_config(self) -> dict[str, Any]:
        """Constructor arguments, for saving."""
        return {}

    @classmethod
    def from_config(cls, config: dict) -> "Weighting":
        """The weighting that `get_config` described."""
        return cls(**config)


@keras.saving.register_keras_serializable(package="keras_imm")
class ELBO(Weighting):
    """1/2 sigmoid(b - log_snr) (-d log_snr/dt) alpha^a / (alpha^2 + sigma^2).

    Args:
        a: Power of alpha, at least 1 (1 or 2 in the paper).
        b: Shift of the sigmoid, in [-80, 80] (4 or 5 in the paper).

    Reference: IMM Eq. 13, here in a closed form without poles at t = 0 and t = 1.
    """

    def __init__(self, a: float = 1, b: float = 4):
        check_number("a", a, "at least 1", lambda v: v >= 1)
        # exp(b) and exp(-b) have to fit into float32.
        check_number("b", b, "in [-80, 80]", lambda v: -80 <= v <= 80)
        self.a = a
        self.b = b

    def __call__(self, schedule: schedules.Schedule, s: Any, t: Any) -> Any:
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        sigmoid_denominator = ops.square(sigma) + math.exp(-self.b) * ops.square(alpha)
        weight = schedule.rotation_rate(t) * sigma * alpha ** (self.a - 1)
        return weight / (sigmoid_denominator * schedule.squared_norm(t))

    def get_config(self) -> dict[str, Any]:
        return {"a": self.a, "b": self.b}


@keras.saving.register_keras_serializable(package="keras_imm")
class Uniform(Weighting):
    """w(s, t) = 1."""

    def __call__(self, schedule: schedules.Schedule, s: Any, t: Any) -> Any:
        return ops.ones_like(at_least_float32(t))


_WEIGHTINGS = {"elbo": ELBO, "uniform": Uniform}


def get(identifier: str | Weighting) -> Weighting:
    """The weighting of that name ("elbo", "uniform"), or the object itself.

    Raises:
        ValueError: If the name is not known.
    """
    return lookup("weighting", identifier, _WEIGHTINGS, Weighting)
