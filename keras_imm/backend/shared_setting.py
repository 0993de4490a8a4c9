"""A setting of the whole process, changed by threads that may overlap."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager


class SharedSetting:
    """Calls a context manager that changes a setting of the process, for many threads.

    A thread that leaves while another, which came later, is still inside puts nothing
    back: the last of them puts back all, in the reverse order of their coming.

    Args:
        change: Returns a context manager that changes the setting and puts back what
            it found.
    """

    def __init__(self, change: Callable[[], AbstractContextManager]):
        self._change = change
        self._lock = threading.Lock()
        self._entries: list[_Entry] = []

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        """Has the setting changed inside, for all threads."""
        with self._lock:
            entry = _Entry(self._change())
            self._entries.append(entry)
        try:
            yield
        finally:
            with self._lock:
                entry.left = True
                while self._entries and self._entries[-1].left:
                    self._entries.pop().put_back()


class _Entry:
    def __init__(self, change: AbstractContextManager):
        self.left = False
        self._stack = contextlib.ExitStack()
        self._stack.enter_context(change)

    def put_back(self) -> None:
        self._stack.close()
