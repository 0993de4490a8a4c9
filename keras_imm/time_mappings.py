"""Time mappings r(s, t): the slightly earlier time whose output is the target.

Every mapping keeps s <= r < t wherever s < t (IMM App. C.6).
"""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_imm import schedules
from keras_imm.precision import at_least_float32, maximum, minimum
from keras_imm.registry import lookup
from keras_imm.validation import check_number, check_positive_number


class TimeMapping:
    """Base class of time mappings.

    Subclasses implement `earlier`; calling the mapping keeps its times between s and
    t. The class attributes say which time ranges are allowed:
    `needs_positive_min_time` where min_time = 0 is not, `allows_max_time_one` where
    max_time = 1 is.

    Args:
        k: Positive number. The decrement is the whole range divided by 2^k.
        min_gap: Smallest allowed t - r, in [0, 1); 0 in float32, 1e-4 in half
            precision (IMM App. I.6). Where s is nearer to t than that, r = s.
    """

    needs_positive_min_time = False
    allows_max_time_one = False

    def __init__(self, k: float = 12, min_gap: float = 0.0):
        check_positive_number("k", k)
        check_number("min_gap", min_gap, "in [0, 1)", lambda v: 0 <= v < 1)
        self.k = k
        self.min_gap = min_gap

    def __repr__(self) -> str:
        return f"{type(self).__name__}(k={self.k!r}, min_gap={self.min_gap!r})"

    def check(
        self, schedule: schedules.Schedule, min_time: float, max_time: float
    ) -> None:
        """Raises ValueError if the mapping is not defined on that time range."""
        name = type(self).__name__
        if self.needs_positive_min_time and not min_time > 0.0:
            raise ValueError(
                f"`time_mapping={name}` needs `min_time` > 0. "
                f"Received: min_time={min_time!r}"
            )
        if not self.allows_max_time_one and not max_time < 1.0:
            raise ValueError(
                f"`time_mapping={name}` needs `max_time` < 1. "
                f"Received: max_time={max_time!r}"
            )

    def __call__(
        self,
        schedule: schedules.Schedule,
        s: Any,
        t: Any,
        min_time: float,
        max_time: float,
    ) -> Any:
        """r(s, t).

        Args:
            schedule: Noise schedule.
            s: Times, shape (groups,), `min_time` <= s <= t.
            t: Times, shape (groups,), s <= t <= `max_time`.
            min_time: Start of the time range (epsilon in the paper).
            max_time: End of the time range (T in the paper).

        Returns:
            Times of shape (groups,), in float32 or the times' wider dtype, with
            s <= r <= t, and r < t wherever s < t.
        """
        s, t = at_least_float32(s), at_least_float32(t)
        r = self.earlier(schedule, s, t, min_time, max_time)
        # Where the decrement is below the rounding of t, r is still before t.
        resolution = float(np.finfo(keras.backend.standardize_dtype(t.dtype)).eps)
        r = minimum(r, minimum(t - self.min_gap, t * (1.0 - resolution)))
        return maximum(s, r)

    def earlier(
        self,
        schedule: schedules.Schedule,
        s: Any,
        t: Any,
        min_time: float,
        max_time: float,
    ) -> Any:
        """The time r before `t`, not yet held between s and t.

        Args:
            schedule: Noise schedule.
            s: Times, shape (groups,), in float32 or wider.
            t: Times, the shape and dtype of `s`, s <= t.
            min_time: Start of the time range (epsilon in the paper).
            max_time: End of the time range (T in the paper).

        Returns:
            Times of shape (groups,) in the dtype of `t`; they may lie below `s` or
            `min_time`, and must not be NaN.
        """
        raise NotImplementedError(
            f"The time mapping {type(self).__name__} does not implement `earlier`."
        )

    def get_config(self) -> dict[str, Any]:
        """Constructor arguments, for saving."""
        return {"k": self.k, "min_gap": self.min_gap}

    @classmethod
    def from_config(cls, config: dict) -> "TimeMapping":
        """The time mapping that `get_config` described."""
        return cls(**config)


def _at(function: Callable, time: float, t: Any) -> Any:
    """A schedule's value at one time, in the dtype of `t`."""
    return function(ops.convert_to_tensor(time, t.dtype))


@keras.saving.register_keras_serializable(package="keras_imm")
class EtaDecrement(TimeMapping):
    """eta(r) = eta(t) - (eta(T) - eta(epsilon)) / 2^k, the paper's choice.

    Needs `max_time` < 1. Reference: IMM App. C.6.
    """

    def earlier(
        self,
        schedule: schedules.Schedule,
        s: Any,
        t: Any,
        min_time: float,
        max_time: float,
    ) -> Any:
        eta_min = _at(schedule.eta, min_time, t)
        decrement = (_at(schedule.eta, max_time, t) - eta_min) * 2.0**-self.k
        # eta^-1 has a pole at -1: stop at eta(epsilon).
        room = maximum(schedule.eta(t) - eta_min, 0.0)
        return t - schedule.eta_gap(t, minimum(room, decrement))


@keras.saving.register_keras_serializable(package="keras_imm")
class TimeDecrement(TimeMapping):
    """r = t - (T - epsilon) / 2^k; the whole range [0, 1] is allowed.

    Reference: IMM App. C.6.
    """

    allows_max_time_one = True

    def earlier(
        self,
        schedule: schedules.Schedule,
        s: Any,
        t: Any,
        min_time: float,
        max_time: float,
    ) -> Any:
        return t - (max_time - min_time) * 2.0**-self.k


@keras.saving.register_keras_serializable(package="keras_imm")
class LogSNRDecrement(TimeMapping):
    """log_snr(r) = log_snr(t) + (log_snr(epsilon) - log_snr(T)) / 2^k.

    The log-SNR falls in t, so the earlier time has the larger one. Needs
    `min_time` > 0 (0.001 in the paper) and `max_time` < 1.
    Reference: IMM App. C.6, where the sign is printed the other way round.
    """

    needs_positive_min_time = True

    def earlier(
        self,
        schedule: schedules.Schedule,
        s: Any,
        t: Any,
        min_time: float,
        max_time: float,
    ) -> Any:
        span = _at(schedule.log_snr, min_time, t)
        span = span - _at(schedule.log_snr, max_time, t)
        return schedule.inverse_log_snr(schedule.log_snr(t) + span * 2.0**-self.k)


@keras.saving.register_keras_serializable(package="keras_imm")
class InverseEtaIncrement(TimeMapping):
    """1 / eta(r) = 1 / eta(t) + (1 / eta(epsilon) - 1 / eta(T)) / 2^k.

    Needs `min_time` > 0 (0.005 in the paper); `max_time` = 1 is allowed.
    Reference: IMM App. C.6.
    """

    needs_positive_min_time = True
    allows_max_time_one = True

    def earlier(
        self,
        schedule: schedules.Schedule,
        s: Any,
        t: Any,
        min_time: float,
        max_time: float,
    ) -> Any:
        span = _at(schedule.reciprocal_eta, min_time, t)
        span = span - _at(schedule.reciprocal_eta, max_time, t)
        reciprocal_eta = schedule.reciprocal_eta(t) + span * 2.0**-self.k
        return schedule.inverse_reciprocal_eta(reciprocal_eta)


_TIME_MAPPINGS = {
    "eta_decrement": EtaDecrement,
    "time_decrement": TimeDecrement,
    "log_snr_decrement": LogSNRDecrement,
    "inverse_eta_increment": InverseEtaIncrement,
}


def get(identifier: str | TimeMapping) -> TimeMapping:
    """The time mapping of that name, or the object itself.

    Known names: "eta_decrement", "time_decrement", "log_snr_decrement",
    "inverse_eta_increment".

    Raises:
        ValueError: If the name is not known.
    """
    return lookup("time_mapping", identifier, _TIME_MAPPINGS, TimeMapping)
