"""The modules of a published checkpoint, as plain data."""

import mmap
import pathlib
from typing import Any, NamedTuple

import numpy as np

from keras_imm.files.pickle_reader import Buffer, Call, Name, read_pickle
from keras_imm.files.torch_storage import read_storage, view

_PERSISTENT = Name("torch_utils.persistence", "_reconstruct_persistent_obj")
_PARAMETER = Name("torch._utils", "_rebuild_parameter")
_TENSOR = Name("torch._utils", "_rebuild_tensor_v2")
_STORAGE = Name("torch.storage", "_load_from_bytes")
_SCALARS = {
    Name("numpy.core.multiarray", "scalar"),
    Name("numpy._core.multiarray", "scalar"),
}
_DTYPE = Name("numpy", "dtype")
_NAMES = {
    *(_PERSISTENT, _PARAMETER, _TENSOR, _STORAGE, _DTYPE),
    *_SCALARS,
    Name("collections", "OrderedDict"),
    Name("dnnlib.util", "EasyDict"),
    # Attributes of modules that mean nothing here.
    *(Name("torch", dtype) for dtype in ("float64", "float32", "float16", "bfloat16")),
    *(Name("torch", kind) for kind in ("int64", "int32", "uint8", "bool")),
    *(Name("torch", "device"), Name("torch", "Size"), Name("functools", "partial")),
    *(Name("torch.nn.functional", f) for f in ("silu", "gelu", "relu", "dropout")),
    Name("torch._C._nn", "gelu"),
}
# Classes of these packages hold the weights; they become dictionaries as well.
_MODULE_PACKAGES = ("torch.nn.modules.", "timm.models.", "timm.layers.")
_MOST_WEIGHTS = 2_000  # the largest published network has 700
_MOST_ENTRIES = 1_000  # of one module: parameters, buffers or modules
_LONGEST_NAME = 200
_LONGEST_LIST = 16  # of levels, of resolutions, of taps
_DEEPEST = 32
_FIRST_BYTE = b"\x80"


class Module(NamedTuple):
    """A module without its code.

    Attributes:
        class_name: Name of its class.
        state: Its attributes, as they were stored.
    """

    class_name: str
    state: dict

    @property
    def arguments(self) -> dict:
        """What its constructor was given by keyword, as far as it is plain data.

        Numbers (NumPy's as Python's), strings, and short lists and dictionaries of
        them; what else was given is left out.

        Raises:
            ValueError: If anything was given by position, or the file does not say.
        """
        arguments = self.state.get("_init_kwargs")
        if not isinstance(arguments, dict) or self.state.get("_init_args"):
            raise ValueError(
                f"the arguments that {self.class_name} was made with are not known"
            )
        return _plain_data(arguments)

    @property
    def attributes(self) -> dict:
        """Attributes that are numbers or strings."""
        return {
            name: value
            for name, value in _plain_data(self.state).items()
            if isinstance(value, (str, int, float))
        }

    def children(self) -> dict[str, "Module"]:
        """Its modules by name."""
        modules = _section(self, "_modules").items()
        return {name: as_module(value) for name, value in modules if value is not None}


def read_checkpoint(data: Any) -> tuple[Module, dict[str, np.ndarray]]:
    """Reads a published checkpoint without running anything in it.

    Args:
        data: Bytes of a pickle of `{"ema": module}`, or a view of them.

    Returns:
        The module and its parameters and buffers: views of the data, by their
        published names (`model.blocks.0.attn.qkv.weight`).

    Raises:
        ValueError: If the data are not such a pickle or are damaged.
    """
    if data[:1] != _FIRST_BYTE:
        raise ValueError("it is not a pickle (of protocol 2 or later)")
    content = read_pickle(Buffer(data), _is_allowed)
    if not isinstance(content, dict) or "ema" not in content:
        raise ValueError("the pickle is not a dictionary with 'ema'")
    module = as_module(content["ema"])
    weights = {}
    _collect(module, "", weights, {}, 0)
    if sum(weight.nbytes for weight in weights.values()) > 2 * len(data):
        raise ValueError("the weights are more than the file holds")
    return module, weights


def map_file(path: pathlib.Path) -> mmap.mmap:
    """A file's bytes, which the system reads when they are asked for.

    Raises:
        ValueError: If the file is empty.
    """
    with open(path, "rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def as_module(value: Any) -> Module:
    """The module that a pickled object stands for.

    Raises:
        ValueError: If it stands for something else.
    """
    if isinstance(value, Call) and value.target == _PERSISTENT:
        (meta,) = value.arguments if len(value.arguments) == 1 else (None,)
        name = meta.get("class_name") if isinstance(meta, dict) else None
        if _is_scalar(name) and name and isinstance(meta.get("state"), dict):
            return Module(name, meta["state"])
    is_module = isinstance(value, Call) and _is_module_class(value.target)
    if is_module and isinstance(value.state, dict):
        return Module(value.target.name, value.state)
    raise ValueError("the pickle has something else in the place of a module")


def _is_allowed(name: Name) -> bool:
    return name in _NAMES or _is_module_class(name)


def _is_module_class(name: Name) -> bool:
    return name.module.startswith(_MODULE_PACKAGES) and name.name.isidentifier()


def _section(module: Module, name: str) -> dict[str, Any]:
    section = module.state.get(name, {})
    if isinstance(section, dict) and len(section) > _MOST_ENTRIES:
        raise ValueError(f"{name} of a module has more than {_MOST_ENTRIES:,} entries")
    if not isinstance(section, dict) or not all(
        isinstance(key, str) and len(key) <= _LONGEST_NAME for key in section
    ):
        raise ValueError(
            f"{name} of a {module.class_name} is not a dictionary of names"
        )
    return section


def _collect(
    module: Module, prefix: str, weights: dict, seen: dict[int, Any], depth: int
) -> None:
    """Adds the parameters and buffers of a module and of the modules in it.

    `seen` holds the modules and storages that were met, by their `id`.
    """
    if depth > _DEEPEST:
        raise ValueError(f"modules are nested more than {_DEEPEST} deep")
    if id(module.state) in seen:
        raise ValueError(f"module {prefix[:200]!r} is in two places")
    seen[id(module.state)] = module
    for name in ("_parameters", "_buffers", "_modules"):
        section = _section(module, name)
        if section and id(section) in seen:
            raise ValueError(f"{name} of {prefix[:200]!r} is in two places")
        seen[id(section)] = section
    for section in ("_parameters", "_buffers"):
        for name, value in _section(module, section).items():
            if value is None:
                continue
            if len(weights) == _MOST_WEIGHTS:
                raise ValueError(f"there are more than {_MOST_WEIGHTS:,} weights")
            weights[prefix + name] = _tensor(prefix + name, value, seen)
    for name, child in module.children().items():
        _collect(child, f"{prefix}{name}.", weights, seen, depth + 1)


def _tensor(name: str, value: Any, seen: dict[int, Any]) -> np.ndarray:
    try:
        if isinstance(value, Call) and value.target == _PARAMETER:
            value = value.arguments[0]
        if not isinstance(value, Call) or value.target != _TENSOR:
            raise ValueError("it is not a tensor")
        storage, offset, shape, strides = value.arguments[:4]
        if not isinstance(storage, Call) or storage.target != _STORAGE:
            raise ValueError("it has no storage")
        (data,) = storage.arguments
        if not isinstance(data, (bytes, memoryview)):
            raise ValueError("its storage is not bytes")
        if id(data) not in seen:
            seen[id(data)] = read_storage(data)
        return view(seen[id(data)], offset, shape, strides)
    except (ValueError, IndexError) as error:
        raise ValueError(f"weight {name!r} cannot be read: {error}") from error


def _plain_data(values: dict) -> dict:
    """Of a dictionary what is plain data: nothing whose text or size is unbounded."""
    plain = {}
    for name, value in values.items():
        value = _number(value)
        if isinstance(value, dict) and len(value) <= _LONGEST_LIST:
            value = {k: _number(v) for k, v in value.items() if _is_scalar(_number(v))}
        elif isinstance(value, (list, tuple)):
            value = [_number(element) for element in value[: _LONGEST_LIST + 1]]
            if len(value) > _LONGEST_LIST or not all(map(_is_scalar, value)):
                continue
        elif not _is_scalar(value):
            continue
        plain[name] = value
    return plain


def _is_scalar(value: Any) -> bool:
    if isinstance(value, str):
        return len(value) <= _LONGEST_NAME
    return value is None or isinstance(value, (bool, int, float))


def _number(value: Any) -> Any:
    """A pickled NumPy scalar as a Python number; anything else as it is."""
    if not isinstance(value, Call) or value.target not in _SCALARS:
        return value
    dtype, data = value.arguments if len(value.arguments) == 2 else (None, None)
    if not isinstance(dtype, Call) or dtype.target != _DTYPE or not dtype.arguments:
        raise ValueError("a number has no type")
    kind = dtype.arguments[0]
    kinds = ("f2", "f4", "f8", "i4", "i8", "u1", "b1")
    if not isinstance(kind, str) or kind not in kinds or not isinstance(data, bytes):
        raise ValueError(f"a number must be one of {', '.join(kinds)}")
    if len(data) != int(kind[1]):
        raise ValueError("a number has too many or too few bytes")
    return np.frombuffer(data, np.dtype(f"<{kind}")).item()
