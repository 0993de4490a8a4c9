"""Names that stand for objects, as in `IMM(schedule="cosine")`."""

from collections.abc import Iterable, Mapping
from typing import Any


def list_names(names: Iterable[str]) -> str:
    """Names as error messages list them: 'laplace', 'rbf', 'energy'."""
    return ", ".join(repr(name) for name in names)


def lookup(
    argument: str, identifier: Any, known: Mapping[str, type], kind: type
) -> Any:
    """Returns `identifier` if it is a `kind`, or a default one of that name.

    Args:
        argument: Name of the argument, for the error message.
        identifier: A name in `known` or an instance of `kind`.
        known: Names and the classes they stand for.
        kind: Base class of what is allowed.

    Returns:
        An instance of `kind`.

    Raises:
        ValueError: If the name is not known or the object is of another type.
    """
    if isinstance(identifier, kind):
        return identifier
    if isinstance(identifier, str) and identifier in known:
        return known[identifier]()
    raise ValueError(
        f"`{argument}` must be one of {list_names(known)} or an instance of "
        f"{kind.__module__}.{kind.__name__}. Received: {argument}={identifier!r}"
    )
