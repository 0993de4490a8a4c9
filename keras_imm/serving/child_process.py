"""Exporting in a child process, whose Keras computes with another framework."""

import importlib.util
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterable
from typing import Any

import keras

from keras_imm.backend import keras_private
from keras_imm.files.hdf5_file import hdf5_file
from keras_imm.flow_map import FlowMap
from keras_imm.serving import flow_map_file
from keras_imm.serving.settings import Settings

_FAILED = "keras_imm export failed: "
_WARNED = "keras_imm export warned: "
_NAMES = {"tensorflow": "TensorFlow", "jax": "JAX", "torch": "PyTorch"}
_KINDS = {
    "ValueError": ValueError,
    "ImportError": ImportError,
    "ModuleNotFoundError": ImportError,
    "OSError": OSError,
}


def run(
    task: str,
    flow: FlowMap,
    values: list,
    path: pathlib.Path,
    settings: Settings,
    vae: Any = None,
    framework: str = "tensorflow",
    **options: Any,
) -> None:
    """Runs a task of `keras_imm.serving.child` on a copy of a flow map.

    Args:
        task: "saved_model", "onnx", "torch", "stablehlo", "openvino" or
            "litert".
        flow: Built flow map.
        values: Values of its variables.
        path: What to write.
        settings: Completed `Settings`.
        vae: Autoencoder whose decoder it takes, or None.
        framework: The backend of the child.
        **options: What else the task's `write` takes, as JSON can hold it.

    Raises:
        Exception: If it fails, with its own message: a ValueError, ImportError or
            OSError where it raised one, otherwise a RuntimeError.
    """
    if importlib.util.find_spec(framework) is None:
        raise ImportError(
            f"{_NAMES[framework]} writes this export and is not installed: "
            f"`pip install {framework}`"
        )
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary)
        flow_map_file.save(folder, flow, values)
        request = {
            "task": task,
            "flow_map": temporary,
            "path": str(path.absolute()),
            "settings": settings.get_config(),
            "options": options,
            **_modules(flow, settings),
        }
        if vae is not None:
            request["decoder"] = os.path.join(temporary, "decoder.weights.h5")
            request["sigma_data"] = vae.sigma_data
            with hdf5_file(request["decoder"]) as file:
                vae.decoder.save_weights(file)
        (folder / "request.json").write_text(json.dumps(request))
        result = subprocess.run(
            [
                *(sys.executable, "-P", "-m", "keras_imm.serving.child"),
                str(folder / "request.json"),
            ],
            env=_environment(framework),
            capture_output=True,
            text=True,
        )
    if result.returncode:
        raise _error(result, framework)
    for line in result.stdout.splitlines():
        if line.startswith(_WARNED):
            for message in json.loads(line.removeprefix(_WARNED)):
                warnings.warn(message, stacklevel=4)


def _modules(flow: FlowMap, settings: Settings) -> dict[str, list[str]]:
    """Modules of a user's own classes, which the child must import to know them.

    Other registered classes and functions may be those that a layer names.

    Raises:
        ValueError: If the flow map or the sampler has a class of the main script.
    """
    pieces = [flow.schedule, flow.parameterization, settings.plan.sampler]
    pieces += keras_private.all_layers(flow.backbone)
    needed = {type(piece) for piece in pieces}
    for one in needed:
        if one.__module__ == "__main__":
            raise ValueError(
                f"The class {one.__name__} of the model is one of the main script, "
                "which the exporting process cannot import: put it into a module."
            )
    names = _foreign_modules(needed)
    others = _foreign_modules(keras.saving.get_custom_objects().values())
    return {"modules": names, "other_modules": sorted({*others} - {*names})}


def _foreign_modules(objects: Iterable) -> list[str]:
    names = {getattr(one, "__module__", None) or "builtins" for one in objects}
    known = ("keras", "keras_imm", "builtins", "__main__", "numpy", "torch", "jax")
    return sorted(name for name in names if name.split(".")[0] not in known)


def _environment(framework: str) -> dict[str, str]:
    paths = [path or os.getcwd() for path in sys.path]
    return {
        **os.environ,
        "KERAS_BACKEND": framework,
        "TF_CPP_MIN_LOG_LEVEL": os.environ.get("TF_CPP_MIN_LOG_LEVEL", "3"),
        "PYTHONPATH": os.pathsep.join(paths),
        "CUDA_VISIBLE_DEVICES": "",  # its memory may be this process's
    }


def _error(
    result: subprocess.CompletedProcess, framework: str = "tensorflow"
) -> Exception:
    """What the child said, or the end of what it printed."""
    for line in reversed(result.stdout.splitlines()):
        if line.startswith(_FAILED):
            name, message = json.loads(line.removeprefix(_FAILED))
            kind = _KINDS.get(name)
            if kind is not None:
                return kind(message)
            through = _NAMES[framework]
            return RuntimeError(
                f"The export through {through} failed: {name}: {message}"
            )
    lines = result.stderr.strip().splitlines()[-15:]
    return RuntimeError(
        "\n".join(
            [f"The export's process ended with status {result.returncode}:", *lines]
        )
    )


def failed(error: BaseException) -> str:
    """The line by which the child says what went wrong."""
    # Keras shows whole configurations around the cause.
    message = str(error).rpartition("Exception encountered: ")[2]
    message = message.partition(" Full object config:")[0]
    kind = "OSError" if isinstance(error, OSError) else type(error).__name__
    return _FAILED + json.dumps([kind, message])


def warned(caught: list) -> str:
    """The line by which the child passes on its warnings to the user."""
    messages = [str(one.message) for one in caught if one.category is UserWarning]
    return _WARNED + json.dumps(messages)
