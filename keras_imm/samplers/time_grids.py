"""Time grids: NumPy arrays T = t_N > ... > t_0 = epsilon in sampling order.

`num_steps` steps take `num_steps + 1` times.
"""

import functools
from collections.abc import Sequence

import numpy as np
from keras import ops

from keras_imm import schedules
from keras_imm.validation import check_integer

TIME_GRIDS = ("uniform", "edm")
"""Names of the time grids; a list of eta is one, too."""


def uniform_grid(num_steps: int, min_time: float, max_time: float) -> np.ndarray:
    """Times evenly spaced from `max_time` to `min_time` (IMM Eq. 117)."""
    return _evenly_spaced(max_time, min_time, num_steps + 1).copy()


@functools.lru_cache(maxsize=16)
def _evenly_spaced(start: float, stop: float, count: int) -> np.ndarray:
    return np.linspace(start, stop, count)


def edm_grid(
    num_steps: int,
    schedule: schedules.Schedule,
    min_time: float,
    max_time: float,
    rho: float = 7.0,
) -> np.ndarray:
    """Times evenly spaced in eta^(1/rho) (IMM Eq. 118; Karras et al. 2022, Eq. 5).

    Raises:
        ValueError: If `max_time` is 1, where eta is infinite.
    """
    if not max_time < 1.0:
        raise ValueError(
            f'`time_grid="edm"` needs `max_time` < 1. Received: max_time={max_time!r}'
        )
    ends = np.array([max_time, min_time])
    eta_max, eta_min = ops.convert_to_numpy(schedule.eta(ends)) ** (1.0 / rho)
    eta = np.linspace(eta_max, eta_min, num_steps + 1) ** rho
    times = np.asarray(ops.convert_to_numpy(schedule.inverse_eta(eta)), "float64")
    times[[0, -1]] = ends
    return times


def eta_grid(
    etas: Sequence[float],
    schedule: schedules.Schedule,
    min_time: float,
    max_time: float,
) -> np.ndarray:
    """`max_time`, the times of the given eta in sampling order, `min_time`.

    Raises:
        ValueError: If the times do not fall.
    """
    etas = np.asarray(etas, "float64")
    between = ops.convert_to_numpy(schedule.inverse_eta(etas))
    times = np.concatenate([[max_time], between, [min_time]])
    if not np.all(np.diff(times) < 0):
        raise ValueError(
            "`time_grid` as a list must hold falling values of eta between those of "
            f"`max_time` and `min_time`. Received: time_grid={etas.tolist()}, "
            f"max_time={max_time!r}, min_time={min_time!r}"
        )
    return times


def time_grid(
    identifier: str | Sequence[float],
    num_steps: int,
    schedule: schedules.Schedule,
    min_time: float,
    max_time: float,
) -> np.ndarray:
    """The grid "uniform", "edm", or of an explicit list of eta.

    Args:
        identifier: Name, or the values of eta between the ends, falling.
        num_steps: Positive number of steps; a list of eta sets its own.
        schedule: Noise schedule.
        min_time: Start of the time range (epsilon in the paper).
        max_time: End of the time range (T in the paper).

    Returns:
        float64 array of times in sampling order.

    Raises:
        ValueError: If the name is not known, the number of steps is not a positive
            integer, or the times do not fall.
    """
    if np.ndim(identifier) == 1 and np.asarray(identifier).dtype.kind in "fiu":
        return eta_grid(identifier, schedule, min_time, max_time)
    check_integer("num_steps", num_steps, at_least=1)
    if identifier == "uniform":
        return uniform_grid(num_steps, min_time, max_time)
    if identifier == "edm":
        return edm_grid(num_steps, schedule, min_time, max_time)
    raise ValueError(
        f"`time_grid` must be one of {', '.join(map(repr, TIME_GRIDS))} or a list of "
        f"eta. Received: time_grid={identifier!r}"
    )
