"""Reads a pickle as data: nothing that it names is imported or called."""

import itertools
import pickletools
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple

# Longer byte strings are handed out as views of the file: weights are not copied.
_VIEWED = 4096
# DiT-XL/2 takes about 90,000: 28 times what the golden network takes for each block.
MOST_INSTRUCTIONS = 250_000
_LONGEST_NAME = 200
_LARGEST_INDEX = 2**32  # of the memo; numbers of text may have any size


class Name(NamedTuple):
    """A function or class that the pickle names."""

    module: str
    name: str


class Call:
    """What the pickle would have made by calling a name.

    Attributes:
        target: The `Name`.
        arguments: Tuple.
        state: What the object would have been given afterwards, or None.
    """

    __slots__ = ("arguments", "state", "target")

    def __init__(self, target: Name, arguments: tuple):
        self.target = target
        self.arguments = arguments
        self.state = None


class PersistentId(NamedTuple):
    """Stands for an object that is kept outside the pickle."""

    value: Any


class Buffer:
    """A file in memory, read in order; long reads are views of it.

    Args:
        data: Bytes, or a view of them.
        longest_line: Longest line to look for. Pickles of protocol 0 keep arrays in
            lines; those of later protocols only names.
    """

    def __init__(self, data: Any, longest_line: int = _VIEWED):
        self.data = memoryview(data)
        self.position = 0
        self.longest_line = longest_line

    def tell(self) -> int:
        return self.position

    def read(self, size: int) -> Any:
        if size > len(self.data) - self.position:
            raise ValueError(f"the file ends after {len(self.data)} bytes")
        part = self.data[self.position : self.position + size]
        self.position += size
        return part if size > _VIEWED else bytes(part)

    def readline(self) -> bytes:
        """The next line, or nothing if it does not end."""
        start = self.position
        last = min(len(self.data), start + self.longest_line)
        for position in range(start, last, _VIEWED):
            end = bytes(self.data[position : min(position + _VIEWED, last)]).find(b"\n")
            if end >= 0:
                self.position = position + end + 1
                return bytes(self.data[start : self.position])
        return b""


def read_pickle(
    buffer: Buffer,
    is_allowed: Callable[[Name], bool],
    most_instructions: int = MOST_INSTRUCTIONS,
    persistent_load: Callable[[Any], Any] = PersistentId,
) -> Any:
    """Reads one pickle, and leaves the buffer behind it.

    Args:
        buffer: Where to read.
        is_allowed: Says whether the pickle may use a name. It is never imported.
        most_instructions: How many instructions the pickle may have.
        persistent_load: Makes what stands for an object that is kept outside the
            pickle, from what the pickle says of it.

    Returns:
        Numbers, strings, bytes (or views), lists, tuples, sets and dictionaries as they
        are; a `Name` for a name, a `Call` for an object made by calling one, and what
        `persistent_load` makes.

    Raises:
        ValueError: If the pickle is damaged, uses a name that is not allowed, or does
            what no such file needs.
    """
    machine = _Machine(is_allowed, persistent_load)
    instructions = pickletools.genops(buffer)
    for opcode, argument, _ in itertools.islice(instructions, most_instructions):
        if opcode.name == "STOP":
            return machine.result()
        machine.run(opcode.name, argument)
    raise ValueError(f"the pickle has more than {most_instructions:,} instructions")


class _Machine:
    """The pickle machine, without the instructions that act."""

    def __init__(self, is_allowed, persistent_load):
        self.is_allowed = is_allowed
        self.persistent_load = persistent_load
        self.stack = []
        self.marks = []
        self.memo = {}

    def run(self, instruction: str, argument: Any) -> None:
        if instruction in _CONSTANTS:
            self.stack.append(_CONSTANTS[instruction]())
        elif instruction in _VALUES:
            self.stack.append(argument)
        elif instruction not in ("PROTO", "FRAME"):
            act = getattr(self, f"do_{instruction.lower()}", None)
            if act is None:
                raise ValueError(f"the instruction {instruction} is not allowed")
            act(argument)

    def result(self) -> Any:
        if len(self.stack) != 1 or self.marks:
            raise ValueError("the pickle leaves objects behind")
        return self.stack[0]

    def pop(self) -> Any:
        if not self.stack or (self.marks and len(self.stack) == self.marks[-1]):
            raise ValueError("the pickle takes more than it made")
        return self.stack.pop()

    def top(self, *kinds: type) -> Any:
        value = self.pop()
        if not isinstance(value, kinds):
            raise ValueError(f"the pickle treats a {type(value).__name__} as another")
        self.stack.append(value)
        return value

    def pop_mark(self) -> list:
        if not self.marks:
            raise ValueError("the pickle takes more than it made")
        start = self.marks.pop()
        items = self.stack[start:]
        del self.stack[start:]
        return items

    # -- Containers

    def do_mark(self, _) -> None:
        self.marks.append(len(self.stack))

    def do_tuple(self, _) -> None:
        self.stack.append(tuple(self.pop_mark()))

    def do_tuple1(self, _) -> None:
        self.stack.append((self.pop(),))

    def do_tuple2(self, _) -> None:
        second, first = self.pop(), self.pop()
        self.stack.append((first, second))

    def do_tuple3(self, _) -> None:
        third, second, first = self.pop(), self.pop(), self.pop()
        self.stack.append((first, second, third))

    def do_list(self, _) -> None:
        self.stack.append(self.pop_mark())

    def do_dict(self, _) -> None:
        items = self.pop_mark()
        self.stack.append({})
        self.set_items(items)

    def do_append(self, _) -> None:
        value = self.pop()
        self.top(list).append(value)

    def do_appends(self, _) -> None:
        values = self.pop_mark()
        self.top(list).extend(values)

    def do_setitem(self, _) -> None:
        value, key = self.pop(), self.pop()
        self.set_items([key, value])

    def do_setitems(self, _) -> None:
        self.set_items(self.pop_mark())

    def set_items(self, items: list) -> None:
        target = self.top(dict)
        if len(items) % 2:
            raise ValueError("the pickle has a key without a value")
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[_plain(key)] = value

    def do_additems(self, _) -> None:
        items = self.pop_mark()
        self.top(set).update(_plain(item) for item in items)

    # -- The memo

    def do_memoize(self, _) -> None:
        self.memo[len(self.memo)] = self.top(object)

    def do_binput(self, index) -> None:
        if not 0 <= index < _LARGEST_INDEX:
            raise ValueError("the pickle has an index that is out of range")
        self.memo[index] = self.top(object)

    def do_binget(self, index) -> None:
        if index not in self.memo:
            raise ValueError("the pickle takes more than it made")
        self.stack.append(self.memo[index])

    do_put = do_long_binput = do_binput
    do_get = do_long_binget = do_binget

    # -- Names and what would be called

    def do_global(self, argument) -> None:
        module, _, name = argument.partition(" ")
        self.push_name(module, name)

    def do_stack_global(self, _) -> None:
        name, module = self.pop(), self.pop()
        self.push_name(module, name)

    def push_name(self, module: Any, name: Any) -> None:
        if not isinstance(module, str) or not isinstance(name, str):
            raise ValueError("the pickle names something that is not a name")
        if max(len(module), len(name)) > _LONGEST_NAME:
            raise ValueError("the pickle has a name that is too long")
        if not self.is_allowed(Name(module, name)):
            raise ValueError(f"the pickle asks for {f'{module}.{name}'[:200]!r}")
        self.stack.append(Name(module, name))

    def do_reduce(self, _) -> None:
        arguments, target = self.pop(), self.pop()
        if not isinstance(target, Name) or not isinstance(arguments, tuple):
            raise ValueError("the pickle calls something that is not a name")
        if target in _DICTIONARIES and not arguments:
            self.stack.append(OrderedDict())  # its items follow
        else:
            self.stack.append(Call(target, arguments))

    do_newobj = do_reduce

    def do_build(self, _) -> None:
        state = self.pop()
        target = self.top(Call, OrderedDict)
        if isinstance(target, Call):  # attributes of a dictionary mean nothing here
            target.state = state

    def do_binpersid(self, _) -> None:
        self.stack.append(self.persistent_load(self.pop()))


def _plain(key: Any) -> Any:
    """A key whose hash takes no time and which nobody can make to collide.

    Raises:
        ValueError: For anything but a string, a small integer, a truth value or None.
    """
    if key is None or isinstance(key, str):
        return key
    if isinstance(key, int) and abs(key) < 2**31:
        return key
    raise ValueError(f"the pickle has a {type(key).__name__} as a key")


_DICTIONARIES = {Name("collections", "OrderedDict"), Name("dnnlib.util", "EasyDict")}
_CONSTANTS = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "EMPTY_SET": set,
}
_VALUES = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1"),
    *("FLOAT", "BINFLOAT"),
    *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING"),  # Python 2's, as text
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}
