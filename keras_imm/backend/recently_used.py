"""What was used last, such as compiled functions, kept up to a number of them."""

import contextlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any


class RecentlyUsed:
    """Values by their keys, of which those that were used last are kept.

    Threads may share one.

    Args:
        kept: Values to keep, a positive integer. Defaults to 16.

    Example:

    ```python
    functions = RecentlyUsed(kept=2)
    step = functions.get_or_make(shape, lambda: compile_step(shape))
    ```
    """

    def __init__(self, kept: int = 16):
        self._values: OrderedDict[Hashable, Any] = OrderedDict()
        self._kept = kept
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._values)

    def __contains__(self, key: Hashable) -> bool:
        return key in self._values

    def get(self, key: Hashable) -> Any:
        """The value of a key, which is the last used from now on, or None."""
        value = self._values.get(key)
        if value is not None:
            with contextlib.suppress(KeyError):  # another thread dropped it
                self._values.move_to_end(key)
        return value

    def put(self, key: Hashable, value: Any) -> None:
        """Keeps a value that is not None; the one unused for longest may go."""
        with self._lock:
            self._values[key] = value
            self._values.move_to_end(key)
            while len(self._values) > self._kept:
                self._values.popitem(last=False)

    def get_or_make(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """The value of a key, made where it is not kept."""
        value = self.get(key)
        if value is None:
            value = make()
            self.put(key, value)
        return value
