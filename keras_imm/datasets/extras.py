"""Libraries that reading data takes, imported where they are used."""

import importlib
from types import ModuleType
from typing import Any


def extra(module: str, needed_for: str) -> ModuleType:
    """Imports an optional library, or says how to install it.

    Args:
        module: The module to import.
        needed_for: What takes it, for the message.

    Returns:
        The module.

    Raises:
        ImportError: If it is missing.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f"{needed_for} takes `{module}`, which cannot be imported ({error}). "
            'Install it with `pip install "keras_imm[data]"`.'
        ) from error


def pillow() -> Any:
    """Pillow's module `PIL.Image`."""
    return extra("PIL.Image", "Reading images")
