"""Exporting in a child process, whose Keras computes with TensorFlow."""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import warnings
from typing import Any

import keras

from keras_imm.imm import IMM

_FAILED = "keras_imm export failed: "
_WARNED = "keras_imm export warned: "
_KINDS = {
    "ValueError": ValueError,
    "ImportError": ImportError,
    "ModuleNotFoundError": ImportError,
    "OSError": OSError,
}


def run(
    task: str,
    model: IMM | str | os.PathLike,
    arguments: dict[str, Any],
    vae: Any = None,
) -> None:
    """Runs a task of `keras_imm.serving.child` on a saved copy of the model.

    Args:
        task: Its name.
        model: Built model, or the path of a saved one.
        arguments: What it takes besides, as JSON can hold it.
        vae: Autoencoder whose decoder it takes, or None.

    Raises:
        Exception: If it fails, with its own message: a ValueError, ImportError or
            OSError where it raised one, otherwise a RuntimeError.
    """
    with tempfile.TemporaryDirectory() as temporary:
        own = isinstance(model, IMM)
        request = {"task": task, "arguments": arguments, "own": own}
        request["modules"] = _modules(model if own else None)
        if own:
            request["model"] = os.path.join(temporary, "model.keras")
            model.save(request["model"])
        else:
            request["model"] = os.path.abspath(model)
        if vae is not None:
            request["decoder"] = os.path.join(temporary, "decoder.weights.h5")
            request["sigma_data"] = vae.sigma_data
            vae.decoder.save_weights(request["decoder"])
        path = pathlib.Path(temporary, "request.json")
        path.write_text(json.dumps(request))
        result = subprocess.run(
            [sys.executable, "-P", "-m", "keras_imm.serving.child", str(path)],
            env=_environment(),
            capture_output=True,
            text=True,
        )
    if result.returncode:
        raise _error(result)
    for line in result.stdout.splitlines():
        if line.startswith(_WARNED):
            for message in json.loads(line.removeprefix(_WARNED)):
                warnings.warn(message, stacklevel=4)


def export(
    model: IMM | str | os.PathLike, folder: pathlib.Path, settings: Any, vae: Any
) -> None:
    """Writes a SavedModel into a folder, as `tensorflow_export.write` does."""
    arguments = {"folder": str(folder), "settings": dataclasses.asdict(settings)}
    run("saved_model", model, arguments, vae)


def _modules(model: IMM | None) -> list[str]:
    """Modules of a user's own classes, which the child must import to know them.

    Raises:
        ValueError: If the model has a class of the main script.
    """
    classes = [*keras.saving.get_custom_objects().values()]
    if model is not None:
        pieces = [model.schedule, model.kernel, model.parameterization]
        pieces += [model.time_mapping, model.weighting, *model._flatten_layers()]
        optimizer = getattr(model, "optimizer", None)
        pieces += [optimizer, getattr(optimizer, "_learning_rate", None)]
        own = [type(piece) for piece in pieces]
        for one in own:
            if one.__module__ == "__main__":
                raise ValueError(
                    f"The class {one.__name__} of the model is one of the main script, "
                    "which the exporting process cannot import: put it into a module."
                )
        classes += own
    names = {getattr(one, "__module__", None) or "builtins" for one in classes}
    known = ("keras", "keras_imm", "builtins", "__main__", "numpy", "torch", "jax")
    return sorted(name for name in names if name.split(".")[0] not in known)


def _environment() -> dict[str, str]:
    paths = [path or os.getcwd() for path in sys.path]
    return {
        **os.environ,
        "KERAS_BACKEND": "tensorflow",
        "TF_CPP_MIN_LOG_LEVEL": os.environ.get("TF_CPP_MIN_LOG_LEVEL", "3"),
        "PYTHONPATH": os.pathsep.join(paths),
        "CUDA_VISIBLE_DEVICES": "",  # its memory may be this process's
    }


def _error(result: subprocess.CompletedProcess) -> Exception:
    """What the child said, or the end of what it printed."""
    for line in reversed(result.stdout.splitlines()):
        if line.startswith(_FAILED):
            name, message = json.loads(line.removeprefix(_FAILED))
            kind = _KINDS.get(name)
            if kind is not None:
                return kind(message)
            return RuntimeError(
                f"The export through TensorFlow failed: {name}: {message}"
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
    return _FAILED + json.dumps([type(error).__name__, message])


def warned(caught: list) -> str:
    """The line by which the child passes on its warnings to the user."""
    messages = [str(one.message) for one in caught if one.category is UserWarning]
    return _WARNED + json.dumps(messages)
