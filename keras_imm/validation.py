"""Checks of arguments that several constructors share."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np


def shortened(text: Any, longest: int = 200) -> str:
    """Text for a message, cut after `longest` characters: files may hold anything."""
    text = str(text)
    return text if len(text) <= longest else f"{text[:longest]} ..."


def check_instance(name: str, value: Any, kind: type) -> None:
    """Raises ValueError unless `value` is a `kind`."""
    if not isinstance(value, kind):
        raise ValueError(
            f"`{name}` must be a {kind.__name__}. Received: {name}={value!r}"
        )


def check_choice(name: str, value: Any, choices: tuple) -> None:
    """Raises ValueError unless `value` is one of `choices`."""
    if not isinstance(value, str) or value not in choices:
        allowed = ", ".join(repr(choice) for choice in choices)
        raise ValueError(
            f"`{name}` must be one of {allowed}. Received: {name}={value!r}"
        )


def check_boolean(name: str, value: Any) -> None:
    """Raises ValueError unless `value` is True or False."""
    if not isinstance(value, bool):
        raise ValueError(f"`{name}` must be True or False. Received: {name}={value!r}")


def check_number(
    name: str, value: Any, allowed: str, holds: Callable[[float], bool]
) -> None:
    """Raises ValueError unless `value` is a finite number for which `holds` is true.

    `allowed` says in words what that is.
    """
    kinds = (int, float, np.integer, np.floating)
    is_number = isinstance(value, kinds) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value) or not holds(value):
        raise ValueError(f"`{name}` must be {allowed}. Received: {name}={value!r}")


def check_positive_number(name: str, value: Any) -> None:
    """Raises ValueError unless `value` is a finite number above 0."""
    check_number(name, value, "a finite number above 0", lambda v: v > 0)


def check_fraction(name: str, value: Any) -> None:
    """Raises ValueError unless `value` is a number in [0, 1]."""
    check_number(name, value, "a number in [0, 1]", lambda v: 0 <= v <= 1)


def check_rate(name: str, value: Any) -> None:
    """Raises ValueError unless `value` is a number in [0, 1)."""
    check_number(name, value, "a number in [0, 1)", lambda v: 0 <= v < 1)


def check_integer(name: str, value: Any, at_least: int) -> None:
    """Raises ValueError unless `value` is an integer of at least `at_least`."""
    is_integer = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    if not is_integer or value < at_least:
        raise ValueError(
            f"`{name}` must be an integer of at least {at_least}. "
            f"Received: {name}={value!r}"
        )


def check_batch_size(
    batch: int | None,
    rows: int,
    accumulation_steps: int = 1,
    devices: int = 1,
    rows_argument: str = "group_size",
) -> None:
    """Raises ValueError if a known batch size does not split into whole groups.

    `devices` share the batch evenly.
    """
    if isinstance(batch, int) and batch % (rows * accumulation_steps * devices):
        message = batch_size_message(rows, accumulation_steps, devices, rows_argument)
        raise ValueError(f"{message}{batch}")


def batch_size_message(
    rows: int,
    accumulation_steps: int,
    devices: int = 1,
    rows_argument: str = "group_size",
) -> str:
    """What is wrong with a batch size, up to the batch size.

    Args:
        rows: Rows that stay together.
        accumulation_steps: Parts of a batch.
        devices: Devices that share it.
        rows_argument: The argument that says `rows`.
    """
    several = devices > 1
    return (
        f"The batch size must be a multiple of `{rows_argument}` times "
        f"`accumulation_steps`{' times the number of devices' if several else ''}. "
        f"Received: {rows_argument}={rows}, accumulation_steps={accumulation_steps}, "
        f"{f'{devices} devices, ' if several else ''}batch size "
    )


def check_times(min_time: float, max_time: float) -> None:
    """Raises ValueError unless 0 <= min_time < max_time <= 1."""
    for name, value in (("min_time", min_time), ("max_time", max_time)):
        check_number(name, value, "a number in [0, 1]", lambda _: True)
    if not 0.0 <= min_time < max_time <= 1.0:
        raise ValueError(
            "Times must satisfy 0 <= `min_time` < `max_time` <= 1. "
            f"Received: min_time={min_time!r}, max_time={max_time!r}"
        )
