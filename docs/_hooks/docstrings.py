"""What griffe does not know of the docstrings here."""

import re
from typing import Any

import griffe

SECTION = re.compile(r"^Call arguments:\n((?:    .*\n|\n(?=    ))+)", re.MULTILINE)


def with_call_arguments(docstring: str) -> str:
    """A docstring whose section of call arguments is a list in Markdown."""

    def as_list(match: re.Match) -> str:
        entries = re.sub(r"^    (\w+): ", r"    - `\1`: ", match[1], flags=re.MULTILINE)
        return f"Call arguments:\n{entries}"

    return SECTION.sub(as_list, f"{docstring}\n").removesuffix("\n")


class Docstrings(griffe.Extension):
    """Rewrites docstrings as they are read."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called with every object of the package."""
        if obj.docstring:
            obj.docstring.value = with_call_arguments(obj.docstring.value)
