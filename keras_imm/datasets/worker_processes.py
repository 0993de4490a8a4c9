"""Starting grain's processes from any program, and ending them with it."""

import contextlib
import functools
import multiprocessing
import os
import sys
import threading
from collections.abc import Callable, Iterator

from keras_imm.datasets import pillow_settings


@contextlib.contextmanager
def starting_processes() -> Iterator[None]:
    """Inside, grain may start processes, whoever started the program.

    A new process runs the main script up to where it is guarded, and cannot where that
    came from the standard input. Reading needs nothing of it: it is set aside, and so
    are the missing file of a notebook and the missing guard of a short script.
    """
    with _flags_parsed(), _without_main_script():
        yield


@contextlib.contextmanager
def _flags_parsed():
    """Inside, absl's flags may be read, as grain does; they are parsed by `app.run`."""
    from absl import flags

    if flags.FLAGS.is_parsed():
        yield
        return
    flags.FLAGS.mark_as_parsed()
    try:
        yield
    finally:
        flags.FLAGS.unparse_flags()


@contextlib.contextmanager
def _without_main_script():
    main = sys.modules["__main__"].__dict__
    aside = {name: main[name] for name in ("__file__", "__spec__") if name in main}
    main.pop("__file__", None)
    main["__spec__"] = None
    try:
        yield
    finally:
        main.pop("__spec__")
        main.update(aside)


def worker_init() -> Callable[[int, int], None]:
    """What a process that reads runs first, with its number and how many there are.

    It reads as this process does, with its settings of Pillow, and ends when this one
    does, even if that is killed.
    """
    return functools.partial(_start, pillow_settings.current())


def _start(pillow_state, index, count):
    pillow_settings.apply(pillow_state)
    parent = multiprocessing.parent_process()
    threading.Thread(target=_wait_and_end, args=(parent,), daemon=True).start()


def _wait_and_end(parent):
    parent.join()
    os._exit(0)
