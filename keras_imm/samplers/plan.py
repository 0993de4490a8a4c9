"""How to sample: steps, sampler, grid of times, guidance and weights, checked once."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from keras_imm.flow_map import FlowMap
from keras_imm.samplers import registered
from keras_imm.samplers.sampler import Sampler, checked_noises
from keras_imm.samplers.time_grids import TIME_GRIDS, time_grid
from keras_imm.validation import check_choice, check_integer

WEIGHTS = ("ema", "raw")


@dataclasses.dataclass(frozen=True)
class SamplingPlan:
    """How `generate`, callbacks, exports and evaluations sample.

    None stands for the objective's own value: see `completed`.

    Args:
        num_steps: Steps, a positive integer. A list of eta sets it.
        sampler: "pushforward", "restart", "euler", "heun" or a `Sampler`.
        time_grid: "uniform" (IMM Eq. 117), "edm" (Eq. 118), or the values of
            eta = sigma / alpha between `max_time` and `min_time` in sampling order: a
            list of n makes n + 1 steps, such as [1.4] for two.
        guidance_scale: Weight of classifier-free guidance (IMM Eq. 14), or None for
            none. A scalar tensor is taken, too.
        guidance_interval: Pair of times in [0, 1], the smaller first: guidance where t
            is between them. Default: everywhere.
        weights: "ema" for the optimizer's averages, "raw" for the model's own.

    Raises:
        ValueError: If an argument is out of its range, or two contradict each other.

    Example:

    ```python
    plan = SamplingPlan(num_steps=4, guidance_scale=1.5).completed(model.objective)
    plan.check(model.flow)
    plan.times(model.flow)                         # [0.994, ..., 0.0], five times
    images = model.generate(labels=[3, 1, 4], **plan.arguments())
    ```

    Reference:
        - [Kynkäänniemi et al., 2024](https://arxiv.org/abs/2404.07724), for guidance in
          an interval
    """

    num_steps: int | None = None
    sampler: str | Sampler | None = None
    time_grid: str | Sequence[float] | None = None
    guidance_scale: Any = None
    guidance_interval: tuple[float, float] | None = None
    weights: str = "ema"

    def __post_init__(self) -> None:
        if self.num_steps is not None:
            check_integer("num_steps", self.num_steps, at_least=1)
            object.__setattr__(self, "num_steps", int(self.num_steps))
        if self.sampler is not None:
            object.__setattr__(self, "sampler", registered.get(self.sampler))
        check_choice("weights", self.weights, WEIGHTS)
        _check_guidance_scale(self.guidance_scale)
        if self.guidance_interval is not None:
            interval = _checked_interval(self.guidance_interval, self.guidance_scale)
            object.__setattr__(self, "guidance_interval", interval)
        if self.time_grid is not None:
            self._check_time_grid()

    def _check_time_grid(self) -> None:
        grid = self.time_grid
        if isinstance(grid, str) and grid in TIME_GRIDS:
            return
        if isinstance(grid, str) or np.ndim(grid) != 1 or not _are_numbers(grid):
            names = ", ".join(map(repr, TIME_GRIDS))
            raise ValueError(
                f"`time_grid` must be one of {names} or a list of eta. "
                f"Received: time_grid={grid!r}"
            )
        grid = tuple(float(eta) for eta in grid)
        makes = len(grid) + 1
        if self.num_steps not in (None, makes):
            raise ValueError(
                f"`time_grid` as a list of {len(grid)} makes {makes} "
                f"step{'s' if makes > 1 else ''}. Received: num_steps={self.num_steps}"
            )
        object.__setattr__(self, "time_grid", grid)
        object.__setattr__(self, "num_steps", makes)

    def completed(self, objective: Any) -> "SamplingPlan":
        """The plan with the objective's defaults in place of None.

        Where the objective's grid is a list of eta, and the plan has another number of
        steps, the grid is uniform.

        Args:
            objective: Anything with `num_steps`, `sampler` and `time_grid`.
        """
        steps, grid = self.num_steps, self.time_grid
        if grid is None:
            grid = objective.time_grid
            is_list = not isinstance(grid, str)
            if is_list and steps not in (None, len(grid) + 1):
                grid = "uniform"
        if steps is None and isinstance(grid, str):
            steps = objective.num_steps
        sampler = objective.sampler if self.sampler is None else self.sampler
        return dataclasses.replace(
            self, num_steps=steps, time_grid=grid, sampler=sampler
        )

    def with_arguments(self, **arguments: Any) -> "SamplingPlan":
        """The plan with those arguments that are not None in place of its own.

        A grid that is given as a list of eta brings its number of steps. Another
        number of steps drops a list of the plan: the grid is the objective's then.

        Raises:
            ValueError: If they contradict each other or what is left of the plan.
        """
        given = {name: value for name, value in arguments.items() if value is not None}
        if not isinstance(given.get("time_grid", ""), str):
            given.setdefault("num_steps", None)
        elif "num_steps" in given and not isinstance(self.time_grid, str):
            check_integer("num_steps", given["num_steps"], at_least=1)
            if given["num_steps"] != self.num_steps:
                given.setdefault("time_grid", None)
        return dataclasses.replace(self, **given)

    def with_steps(self, num_steps: int) -> "SamplingPlan":
        """The same with another number of steps."""
        return dataclasses.replace(self, num_steps=num_steps)

    def times(self, flow_map: FlowMap) -> np.ndarray:
        """The grid of a completed plan, float64, in sampling order.

        Raises:
            ValueError: If the flow map has no such times.
        """
        return time_grid(
            self.time_grid,
            self.num_steps,
            flow_map.schedule,
            flow_map.min_time,
            flow_map.max_time,
        )

    def noises(self) -> int:
        """Draws of noise after the first, of a completed plan."""
        return checked_noises(self.sampler, self.num_steps)

    def evaluations(self) -> int:
        """Network evaluations for a sample, of a completed plan."""
        return self.num_steps * self.sampler.evaluations_per_step

    def check(self, flow_map: FlowMap) -> None:
        """Raises ValueError if a completed plan does not suit a flow map."""
        self.checked_times(flow_map)

    def checked_times(self, flow_map: FlowMap) -> np.ndarray:
        """As `times`, once all that could be wrong with the plan has been looked at."""
        self.check_guidance(flow_map)
        self.noises()
        return self.times(flow_map)

    def check_guidance(self, flow_map: FlowMap) -> None:
        """Raises ValueError if a flow map cannot be guided as the plan says."""
        if self.guidance_scale is not None and not flow_map.num_classes:
            raise ValueError(
                "`guidance_scale` needs a backbone with `num_classes` > 0. "
                f"Received: guidance_scale={self.guidance_scale!r}"
            )

    def arguments(self) -> dict[str, Any]:
        """The arguments of `generate` that ask for this plan."""
        return {
            field.name: getattr(self, field.name) for field in dataclasses.fields(self)
        }

    def get_config(self) -> dict[str, Any]:
        """The plan as JSON can hold it."""
        return self.arguments() | {
            "sampler": keras.saving.serialize_keras_object(self.sampler)
        }

    @classmethod
    def from_config(cls, config: dict) -> "SamplingPlan":
        """The plan that `get_config` described."""
        sampler = keras.saving.deserialize_keras_object(config["sampler"])
        return cls(**config | {"sampler": sampler})


def check_labels(labels: Any, num_classes: int) -> None:
    """Raises ValueError unless labels are in [0, num_classes].

    Args:
        labels: NumPy array of integers.
        num_classes: Classes of the model, 0 for none.
    """
    outside = labels[(labels < 0) | (labels > num_classes)]
    if outside.size:
        raise ValueError(
            f"`labels` must be in [0, {num_classes}], where {num_classes} is the null "
            f"label. Received: {outside.flat[0]}"
        )


def _are_numbers(values: Any) -> bool:
    return np.asarray(values).dtype.kind in "fiu" or len(values) == 0


def _check_guidance_scale(value: Any) -> None:
    """Raises ValueError unless it is None or one finite number, of any kind."""
    if value is None:
        return
    try:
        finite = not isinstance(value, str) and math.isfinite(value)
    except (TypeError, ValueError):
        finite = False
    if not finite:
        raise ValueError(
            "`guidance_scale` must be a finite number or None. "
            f"Received: guidance_scale={value!r}"
        )


def _checked_interval(interval: Any, guidance_scale: Any) -> tuple[float, float]:
    try:
        low, high = (float(end) for end in interval)
    except (TypeError, ValueError):
        low, high = math.nan, math.nan
    if not 0.0 <= low < high <= 1.0:
        raise ValueError(
            "`guidance_interval` must be a pair of rising times in [0, 1]. "
            f"Received: guidance_interval={interval!r}"
        )
    if guidance_scale is None:
        raise ValueError(
            "`guidance_interval` limits a `guidance_scale`. "
            f"Received: guidance_interval={interval!r}, guidance_scale=None"
        )
    return low, high
