"""What `make test` leaves out without ARGS=--long."""

from typing import Any

import pytest


def long(reason: str, *values: Any) -> list:
    """Parameters of a test that are left out; a tuple is one of several arguments."""
    mark = pytest.mark.long(reason)
    return [
        pytest.param(*(value if isinstance(value, tuple) else (value,)), marks=mark)
        for value in values
    ]
