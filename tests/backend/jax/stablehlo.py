"""Reads the text of a StableHLO program."""

import collections
import re
from collections.abc import Iterator
from typing import NamedTuple

_LOCATION = re.compile(r' loc\((?:#\w+|unknown|"[^"]*"(?:\(#\w+\))?)\)')
_OPERATION = re.compile(r'^\s*(%\w+)(?::\d+)? = "?([\w.]+)"? ?(.*) : (.*)$')
_FLOATS = re.compile(r"tensor<(?:[^<>]*x)?(b?f\d+)>")


class Operation(NamedTuple):
    """A line such as `%2 = stablehlo.add %0, %1 : tensor<4xf32>` of a function."""

    function: str
    result: str
    kind: str
    text: str
    operands: tuple[str, ...]
    signature: str


class Program:
    """The operations of a program.

    Args:
        text: What `jax.export.Exported.mlir_module()` returns.
    """

    def __init__(self, text: str):
        self.text = _LOCATION.sub("", text)
        self._functions = collections.defaultdict(list)
        self._made_by = {}
        for one in _operations(self.text):
            self._functions[one.function].append(one)
            self._made_by[one.function, one.result] = one

    def of_kind(self, *kinds: str) -> list[Operation]:
        return [one for one in self._made_by.values() if one.kind in kinds]

    def count(self, kind: str) -> int:
        """Occurrences of an operation, also where it has no result or a region."""
        return len(re.findall(rf"\b{re.escape(kind)}\b", self.text))

    def custom_calls(self) -> set[str]:
        return set(re.findall(r"custom_call @(\w+)", self.text))

    def products(self) -> collections.Counter:
        """How often there is each signature of a product or convolution."""
        products = self.of_kind("stablehlo.dot_general", "stablehlo.convolution")
        return collections.Counter(one.signature for one in products)

    def uses(self, operation: Operation) -> list[Operation]:
        """Operations of the same function that take a result."""
        own = self._functions[operation.function]
        return [one for one in own if operation.result in one.operands]

    def before(self, operation: Operation, until: str) -> list[Operation]:
        """What an operation is computed from, back to those of the kind `until`.

        A function that is called on the way counts as a whole.
        """
        found = {}
        waiting = [(operation.function, name) for name in operation.operands]
        while waiting:
            key = waiting.pop()
            made = self._made_by.get(key)
            if made is None or key in found or made.kind == until:
                continue
            found[key] = made
            waiting += [(made.function, name) for name in made.operands]
            called = re.match(r"@(\w+)", made.text)
            for one in self._functions[called.group(1)] if called else ():
                if one.kind != until:
                    found[one.function, one.result] = one
        return list(found.values())


def dtypes(signature: str) -> set[str]:
    """The floating dtypes of the operands of a signature `(operands) -> results`."""
    return set(_FLOATS.findall(signature.split(" -> ")[0]))


def _operations(text: str) -> Iterator[Operation]:
    function = ""
    for line in text.splitlines():
        header = re.match(r"\s*func\.func \w+ @(\w+)", line)
        if header:
            function = header.group(1)
        match = _OPERATION.match(line)
        if match:
            result, kind, body, signature = match.groups()
            operands = tuple(re.findall(r"%\w+", body))
            yield Operation(function, result, kind, body, operands, signature)
