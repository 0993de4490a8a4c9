"""Exporting in a child process, whose Keras computes with TensorFlow."""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import tempfile
from typing import Any

from keras_imm.imm import IMM

_FAILED = "keras_imm export failed: "


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
        RuntimeError: If it fails; the message is its own.
    """
    with tempfile.TemporaryDirectory() as temporary:
        request = {"task": task, "arguments": arguments, "modules": []}
        if isinstance(model, IMM):
            request["model"] = os.path.join(temporary, "model.keras")
            request["modules"] = _modules(model)
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
            [sys.executable, "-m", "keras_imm.serving.child", str(path)],
            env=_environment(),
            capture_output=True,
            text=True,
        )
    if result.returncode:
        raise RuntimeError(_reason(result))


def export(
    model: IMM | str | os.PathLike, folder: pathlib.Path, settings: Any, vae: Any
) -> None:
    """Writes a SavedModel into a folder, as `tensorflow_export.write` does."""
    arguments = {"folder": str(folder), "settings": dataclasses.asdict(settings)}
    run("saved_model", model, arguments, vae)


def _modules(model: IMM) -> list[str]:
    """Modules of a user's own classes, which the child must import to know them."""
    pieces = [model.backbone, model.augmentation, model.schedule, model.kernel]
    pieces += [model.parameterization, model.time_mapping, model.weighting]
    names = {type(piece).__module__ for piece in pieces if piece is not None}
    return sorted(
        name
        for name in names
        if name != "__main__" and name.split(".")[0] not in ("keras", "keras_imm")
    )


def _environment() -> dict[str, str]:
    paths = [path for path in sys.path if path] + [os.getcwd()]
    return {
        **os.environ,
        "KERAS_BACKEND": "tensorflow",
        "TF_CPP_MIN_LOG_LEVEL": os.environ.get("TF_CPP_MIN_LOG_LEVEL", "3"),
        "PYTHONPATH": os.pathsep.join(paths),
    }


def _reason(result: subprocess.CompletedProcess) -> str:
    """What the child said, or the end of what it printed."""
    for line in reversed(result.stdout.splitlines()):
        if line.startswith(_FAILED):
            return json.loads(line.removeprefix(_FAILED))
    lines = result.stderr.strip().splitlines()[-15:]
    return "\n".join(
        [f"The export's process ended with exit status {result.returncode}:", *lines]
    )


def failed(error: BaseException) -> str:
    """The line by which the child says what went wrong."""
    name = type(error).__name__
    return _FAILED + json.dumps(
        f"The export through TensorFlow failed: {name}: {error}"
    )
