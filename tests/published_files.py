"""Writes files in the layout of the published checkpoints.

That is a pickle of `{"ema": module}`, whose modules are rebuilt from source text by a
function of the module `torch_utils.persistence`, and whose storages are written by
PyTorch.
"""

import contextlib
import pickle
import sys
import types
from collections import OrderedDict

import torch


def reconstruct(meta):
    raise AssertionError("the source in a checkpoint was asked for")


class Persistent:
    """Pickled as a module of the published code is."""

    def __init__(self, class_name, state):
        self.meta = {
            "type": "class",
            "version": 6,
            "module_src": "raise AssertionError('the source was executed')",
            "class_name": class_name,
            "state": state,
        }

    def __reduce__(self):
        return reconstruct, (self.meta,)


@contextlib.contextmanager
def importable(function, module, name):
    """Lets a function be pickled under another name."""
    packages = module.split(".")
    names = [".".join(packages[: i + 1]) for i in range(len(packages))]
    before = {name: sys.modules.get(name) for name in names}
    sys.modules.update({name: types.ModuleType(name) for name in names})
    setattr(sys.modules[module], name, function)
    was = function.__module__, function.__qualname__, function.__name__
    function.__module__ = module
    function.__qualname__ = function.__name__ = name
    try:
        yield
    finally:
        function.__module__, function.__qualname__, function.__name__ = was
        for name, value in before.items():
            if value is None:
                del sys.modules[name]
            else:
                sys.modules[name] = value


def module(class_name, weights, **state):
    """A module with parameters by dotted name."""
    own = {n: w for n, w in weights.items() if "." not in n}
    children = OrderedDict()
    for name, value in weights.items():
        if "." in name:
            child, rest = name.split(".", 1)
            children.setdefault(child, {})[rest] = value
    return {
        "class_name": class_name,
        "state": {
            "training": False,
            "_parameters": OrderedDict(
                (name, torch.nn.Parameter(torch.tensor(value), requires_grad=False))
                for name, value in own.items()
            ),
            "_buffers": OrderedDict(),
            "_modules": OrderedDict(
                (name, Persistent(**module("Module", values)))
                for name, values in children.items()
            ),
            **state,
        },
    }


def write_checkpoint(path, arguments, weights, network_arguments=None, **state):
    """Writes weights by published name, made with the given arguments.

    `state` holds other attributes of the outermost module.
    """
    inner = {name.removeprefix("model."): value for name, value in weights.items()}
    network = module(
        arguments["model_type"],
        inner,
        _init_args=(),
        _init_kwargs=arguments if network_arguments is None else network_arguments,
    )
    made_with = {"_init_args": (), "_init_kwargs": arguments}
    outer = module("IMMPrecond", {}, **made_with | state)
    outer["state"]["_modules"]["model"] = Persistent(**network)
    with (
        importable(
            reconstruct, "torch_utils.persistence", "_reconstruct_persistent_obj"
        ),
        open(path, "wb") as file,
    ):
        pickle.dump({"ema": Persistent(**outer)}, file, protocol=4)
