"""What an export is asked for, checked before anything is computed."""

import dataclasses
from typing import Any

import numpy as np

from keras_imm.flow_map import FlowMap
from keras_imm.samplers import SamplingPlan
from keras_imm.validation import check_boolean, check_choice, check_integer


@dataclasses.dataclass(frozen=True)
class Settings:
    """How an exported model samples.

    Attributes:
        plan: How to sample, whatever the number of steps.
        time_grids: The grid of each of `num_steps`, or None for those of `plan`.
        num_steps: Step counts to export, each once.
        default_num_steps: The one of the signatures that do not name one.
        value_range: Values of the model's range that become the bytes 0 and 255.
        signatures: Names of the signatures to export, or None for all.
        warmup: Whether to write requests to warm up with; None if it can be done.
        inputs: What the function of `from_noise` takes, "noise" or "seeds".
    """

    plan: SamplingPlan
    num_steps: tuple[int, ...] = (1, 2, 8)
    default_num_steps: int | None = None
    value_range: tuple[float, float] = (-1.0, 1.0)
    signatures: tuple[str, ...] | None = None
    warmup: bool | None = None
    time_grids: tuple | None = None
    inputs: str = "noise"

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
        check_choice("inputs", self.inputs, ("noise", "seeds"))
        if self.warmup is not None:
            check_boolean("warmup", self.warmup)
        for count in steps:
            self.plan.with_steps(count)
        scale = self.plan.guidance_scale
        return dataclasses.replace(
            self,
            plan=dataclasses.replace(
                self.plan, guidance_scale=None if scale is None else float(scale)
            ),
            num_steps=tuple(int(count) for count in steps),
            default_num_steps=int(default),
            value_range=_checked_range(self.value_range),
            signatures=_checked_names(self.signatures),
        )

    def completed(
        self, objective: Any, flow: FlowMap, own: SamplingPlan | None = None
    ) -> "Settings":
        """Checked settings with what a model and its objective say of sampling.

        Args:
            objective: The model's.
            flow: Its flow map.
            own: Its own plan, if it has one, which a number of steps that is not that
                of its list of eta follows but for the list.

        Raises:
            ValueError: If the flow map cannot be sampled so.
        """
        own = own or SamplingPlan()
        plans = [
            own.with_arguments(**plan.arguments()).completed(objective)
            for plan in self.plans().values()
        ]
        for plan in plans:
            plan.check(flow)
        common = dataclasses.replace(plans[0], num_steps=None, time_grid=None)
        grids = tuple(plan.time_grid for plan in plans)
        return dataclasses.replace(self, plan=common, time_grids=grids)

    def plans(self) -> dict[int, SamplingPlan]:
        """The plan of every number of steps."""
        grids = self.time_grids or (self.plan.time_grid,) * len(self.num_steps)
        return {
            count: dataclasses.replace(self.plan, num_steps=count, time_grid=grid)
            for count, grid in zip(self.num_steps, grids, strict=True)
        }

    def get_config(self) -> dict[str, Any]:
        """The settings as JSON can hold them."""
        fields = (field.name for field in dataclasses.fields(self))
        config = {name: getattr(self, name) for name in fields}
        return config | {"plan": self.plan.get_config()}

    @classmethod
    def from_config(cls, config: dict) -> "Settings":
        """The checked settings that `get_config` described."""
        plan = SamplingPlan.from_config(config["plan"])
        return cls(**config | {"plan": plan}).checked()


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
