"""Time that callbacks take from training, for those that measure its speed."""

import contextlib
import time
import weakref
from collections.abc import Iterator
from typing import Any

_seconds: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()


@contextlib.contextmanager
def pause(model: Any) -> Iterator[None]:
    """What is done inside is no part of the training of `model`."""
    start = time.perf_counter()
    try:
        yield
    finally:
        _seconds[model] = paused_seconds(model) + time.perf_counter() - start


def paused_seconds(model: Any) -> float:
    """Seconds in all that training of `model` has been paused."""
    return _seconds.get(model, 0.0)
