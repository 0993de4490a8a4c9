"""What a program has told Pillow, for the processes that read."""

import importlib
import sys
from typing import Any

# What decides whether an image can be read, and what of it.
_NAMES = (
    ("PIL.Image", "MAX_IMAGE_PIXELS"),
    ("PIL.ImageFile", "LOAD_TRUNCATED_IMAGES"),
    ("PIL.GifImagePlugin", "LOADING_STRATEGY"),
    ("PIL.PngImagePlugin", "MAX_TEXT_CHUNK"),
    ("PIL.PngImagePlugin", "MAX_TEXT_MEMORY"),
)


def current() -> dict[str, Any]:
    """The settings of this process, and the formats that other libraries registered.

    Returns:
        What `apply` takes. It can be pickled where the formats' readers can be.
    """
    settings = [
        (module, name, getattr(sys.modules[module], name))
        for module, name in _NAMES
        if module in sys.modules
    ]
    readers = getattr(sys.modules.get("PIL.Image"), "OPEN", {})
    foreign = {
        name: reader
        for name, reader in readers.items()
        if not reader[0].__module__.startswith("PIL.")
    }
    return {"settings": settings, "readers": foreign}


def apply(state: dict[str, Any]) -> None:
    """Tells Pillow in this process what `current` returned in another."""
    for module, name, value in state["settings"]:
        setattr(importlib.import_module(module), name, value)
    for name, reader in state["readers"].items():
        importlib.import_module("PIL.Image").register_open(name, *reader)
