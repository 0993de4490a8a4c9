"""What an export is asked for, checked before anything is computed."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from keras_imm import samplers
from keras_imm.validation import check_boolean, check_choice, check_integer


@dataclasses.dataclass(frozen=True)
class Settings:
    """How an exported model samples, as JSON can hold it.

    Attributes:
        num_steps: Step counts to export, each once.
        default_num_steps: The one of the signatures that do not name one.
        guidance_scale: Weight of classifier-free guidance, or None for none.
        sampler: "pushforward" or "restart".
        time_grid: "uniform", "edm" or a list of eta.
        value_range: Values of the model's range that become the bytes 0 and 255.
        weights: "ema" or "raw".
        signatures: Names of the signatures to export, or None for all.
        warmup: Whether to write requests to warm up with; None if it can be done.
    """

    num_steps: tuple[int, ...] = (1, 2, 8)
    default_num_steps: int | None = None
    guidance_scale: float | None = None
    sampler: str = "pushforward"
    time_grid: str | tuple[float, ...] = "uniform"
    value_range: tuple[float, float] = (-1.0, 1.0)
    weights: str = "ema"
    signatures: tuple[str, ...] | None = None
    warmup: bool | None = None

    def checked(self) -> "Settings":
        """The same in plain types, with the default step count filled in.

        Raises:
            ValueError: If a value is out of its range.
        """
        steps = self.num_steps
        steps = (steps,) if np.ndim(steps) == 0 else tuple(steps)
        for count in steps:
            check_integer("num_steps", count, at_least=1)
        if not steps or len(set(steps)) < len(steps):
            raise ValueError(
                "`num_steps` must be one or more different numbers. "
                f"Received: num_steps={self.num_steps!r}"
            )
        default = self.default_num_steps
        if default is None:
            default = 2 if 2 in steps else steps[0]
        if default not in steps:
            raise ValueError(
                f"`default_num_steps` must be one of {', '.join(map(str, steps))}. "
                f"Received: default_num_steps={default!r}"
            )
        check_choice("sampler", self.sampler, samplers.SAMPLERS)
        check_choice("weights", self.weights, ("ema", "raw"))
        if self.warmup is not None:
            check_boolean("warmup", self.warmup)
        return dataclasses.replace(
            self,
            num_steps=tuple(int(count) for count in steps),
            default_num_steps=int(default),
            guidance_scale=_checked_scale(self.guidance_scale),
            time_grid=_checked_grid(self.time_grid, steps),
            value_range=_checked_range(self.value_range),
            signatures=_checked_names(self.signatures),
        )


def _checked_scale(scale: Any) -> float | None:
    if scale is None:
        return None
    if not isinstance(scale, (int, float, np.number)) or not math.isfinite(scale):
        raise ValueError(
            "`guidance_scale` must be a finite number or None. "
            f"Received: guidance_scale={scale!r}"
        )
    return float(scale)


def _checked_grid(grid: Any, steps: Sequence[int]) -> str | tuple[float, ...]:
    if isinstance(grid, str):
        check_choice("time_grid", grid, samplers.TIME_GRIDS)
        return grid
    grid = _numbers("time_grid", grid, "a name or a list of numbers")
    if set(steps) != {len(grid) + 1}:
        raise ValueError(
            f"`time_grid` as a list of {len(grid)} makes {len(grid) + 1} steps: "
            f"`num_steps` must be {len(grid) + 1}. Received: num_steps={steps!r}"
        )
    return grid


def _numbers(name: str, values: Any, allowed: str) -> tuple[float, ...]:
    try:
        return tuple(float(value) for value in values)
    except (TypeError, ValueError):
        raise ValueError(
            f"`{name}` must be {allowed}. Received: {name}={values!r}"
        ) from None


def _checked_range(value_range: Any) -> tuple[float, float]:
    values = _numbers("value_range", value_range, "a pair of numbers")
    if len(values) != 2 or not values[0] < values[1] or not np.all(np.isfinite(values)):
        raise ValueError(
            "`value_range` must be a pair of rising, finite numbers. "
            f"Received: value_range={value_range!r}"
        )
    return values


def _checked_names(names: Any) -> tuple[str, ...] | None:
    if names is None:
        return None
    if isinstance(names, str) or not names:
        raise ValueError(
            "`signatures` must be a non-empty sequence of names or None. "
            f"Received: signatures={names!r}"
        )
    return tuple(names)
