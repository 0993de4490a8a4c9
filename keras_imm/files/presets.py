"""Presets: folders that a model is made from, on the disk, in the wheel, on the hub.

A preset has a config, which names the class that it makes, the weights that sample, and
a description. The form is KerasHub's: config.json, model.weights.h5, metadata.json and
README.md.
"""

import contextlib
import datetime
import json
import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_imm.files.atomic import (
    made_folder,
    remove_unfinished,
    replaced_directory,
    write_json,
    write_text,
)
from keras_imm.files.checksum import sha256
from keras_imm.files.downloads import fetch_folder_from_hub, upload_folder_to_hub
from keras_imm.files.paths import replaceable_folder, user_path
from keras_imm.files.weights_file import is_weights_file, narrow
from keras_imm.validation import check_choice, shortened

CONFIG = "config.json"
WEIGHTS = "model.weights.h5"
METADATA = "metadata.json"
_CHECKSUM = "weights_sha256"  # of metadata.json
MODEL_CARD = "README.md"
FILENAMES = (CONFIG, WEIGHTS, METADATA, MODEL_CARD)

BUILT_IN = pathlib.Path(__file__).parents[1] / "presets"
DTYPES = ("float16", "float32")
_HUB = "hf://"
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+", re.ASCII)
_EXTRA = "hub"
_LONGEST_REASON = 500  # characters
# Errors of Python and NumPy, PyTorch's devices, TensorFlow, and what a RuntimeError
# says, JAX's and that of PyTorch's CPU.
_OF_MEMORY = {"MemoryError", "OutOfMemoryError", "ResourceExhaustedError"}
_SAID_OF_MEMORY = ("RESOURCE_EXHAUSTED", "can't allocate memory")


def names() -> list[str]:
    """Names of the trained models that come with the library."""
    if not BUILT_IN.is_dir():
        return []
    return sorted(f.name for f in BUILT_IN.iterdir() if (f / CONFIG).is_file())


def metadata(preset: str | os.PathLike[str]) -> dict[str, Any]:
    """What is known of a preset, without making its model.

    Args:
        preset: As in `FlowMapModel.from_preset`.

    Returns:
        The content of its metadata.json.

    Raises:
        ValueError: If it is no preset.
        OSError: If it cannot be fetched.
    """
    return _read_json(_find(preset, (METADATA,)) / METADATA, preset)


def load(
    preset: str | os.PathLike[str], kind: type[keras.Model], load_weights: bool = True
) -> keras.Model:
    """Makes the model of a preset.

    Args:
        preset: As in `FlowMapModel.from_preset`.
        kind: The class that the model must be of, itself or a subclass.
        load_weights: Whether to load the weights, or to leave new ones.

    Returns:
        The model, not compiled.

    Raises:
        ValueError: If it is no preset, makes something else, or has no weights while
            they are asked for, or others than were saved.
        OSError: If it cannot be fetched.
    """
    filenames = (CONFIG, METADATA, WEIGHTS) if load_weights else (CONFIG, METADATA)
    folder = _find(preset, filenames)
    config = _read_json(folder / CONFIG, preset)
    if load_weights and not (folder / WEIGHTS).is_file():
        raise ValueError(
            f"Preset {_name(preset)!r} has no weights, no {WEIGHTS}. "
            "load_weights=False makes the model with new ones."
        )
    model = make(config, kind, f"Preset {_name(preset)!r}")
    if load_weights:
        _check_checksum(folder, preset)
        model.load_weights(folder / WEIGHTS)
    return model


def _check_checksum(folder: pathlib.Path, preset: Any) -> None:
    """Raises ValueError if the weights are not those that were saved."""
    expected = _read_json(folder / METADATA, preset).get(_CHECKSUM)
    if expected is not None and sha256(folder / WEIGHTS) != expected:
        raise ValueError(
            f"Preset {_name(preset)!r} is damaged: {WEIGHTS} has another SHA-256 than "
            f"{METADATA} says."
        )


def make(config: Mapping[str, Any], kind: type[keras.Model], what: str) -> keras.Model:
    """Makes a model of a config that may be anybody's, without running anything of it.

    Args:
        config: As `serialized` returns it.
        kind: The class that the model must be of, itself or a subclass.
        what: What the config is of, as the subject of a sentence: "Preset 'digits'".

    Returns:
        The model, with new weights, not compiled.

    Raises:
        ValueError: If the config makes something else, or nothing.
        MemoryError: If the memory does not suffice, or what the backend raises then.
    """
    name = config.get("registered_name")
    made = keras.saving.get_registered_object(name) if isinstance(name, str) else None
    if not isinstance(made, type) or not issubclass(made, kind):
        raise ValueError(
            f"{what} must make a {kind.__name__}, of a class that is registered for "
            f"saving. Received: registered_name={name!r}"
        )
    named = {"module": made.__module__, "class_name": made.__name__}
    parts = {name: config.get(name) for name in ("config", "build_config")}
    try:
        return keras.saving.deserialize_keras_object(
            {**named, "registered_name": name, **parts}, safe_mode=True
        )
    except Exception as error:  # of any class that a config may name
        if _is_of_memory(error):
            raise
        raise ValueError(
            f"{what} makes no {made.__name__}: {_reason(error)}"
        ) from error


def _is_of_memory(error: BaseException) -> bool:
    """Whether it says that the memory does not suffice; by names, without imports."""
    names = {kind.__name__ for kind in type(error).__mro__}
    if "RuntimeError" in names and any(said in str(error) for said in _SAID_OF_MEMORY):
        return True
    return bool(names & _OF_MEMORY)


def _reason(error: BaseException) -> str:
    """What first went wrong; Keras prints whole configs around it."""
    while error.__context__ is not None:
        error = error.__context__
    return f"{type(error).__name__}: {shortened(error, _LONGEST_REASON)}"


def serialized(model: keras.Model) -> dict[str, Any]:
    """A model as JSON holds it, without what it was compiled with."""
    config = keras.saving.serialize_keras_object(model)
    config.pop("compile_config", None)
    return json.loads(json.dumps(config))


def check_place(folder: str | os.PathLike[str]) -> pathlib.Path:
    """The absolute path of a folder that a preset may be saved to.

    Raises:
        ValueError: If it is a file, has something else in it than a preset, or would
            be taken for a preset of the library.
    """
    if isinstance(folder, str) and folder in names():
        raise ValueError(
            f"`folder` must be another one than {folder!r}, by which `from_preset` "
            f"finds the library's preset, or with its path, './{folder}'. Received: "
            f"folder={folder!r}"
        )
    return replaceable_folder(folder, FILENAMES, CONFIG, "a preset")


def save(
    folder: str | os.PathLike[str],
    model: keras.Model,
    description: Mapping[str, Any],
    dtype: str = "float16",
    model_card: str | None = None,
) -> None:
    """Writes a preset: whole or not at all.

    Args:
        folder: The folder to make. A preset that is there is replaced.
        model: The model, with the weights that sample.
        description: What metadata.json says besides versions, size and date.
        dtype: Type of the weights on the disk: "float16" or "float32".
        model_card: Text of README.md, in Markdown.

    Raises:
        ValueError: If the folder is something else, a weight does not fit into
            `dtype`, or the description is not JSON.
        OSError: If the disk is full or read-only, among others.
    """
    check_choice("dtype", dtype, DTYPES)
    folder = check_place(folder)
    _check_weights(model, dtype)
    metadata = {
        "keras_imm_version": library_version(),
        "keras_version": keras.__version__,
        "parameter_count": model.count_params(),
        "date_saved": datetime.datetime.now().strftime("%Y-%m-%d@%H:%M:%S"),
        "weights_dtype": dtype,
        **description,
    }
    _check_json("description", metadata)
    config = serialized(model)
    with made_folder(folder.parent), replaced_directory(folder) as unfinished:
        write_json(unfinished / CONFIG, config)
        model.save_weights(unfinished / WEIGHTS)
        narrow(unfinished / WEIGHTS, dtype)
        metadata[_CHECKSUM] = sha256(unfinished / WEIGHTS)
        write_json(unfinished / METADATA, metadata)
        if model_card is not None:
            write_text(unfinished / MODEL_CARD, model_card)
    # Of processes that were killed while they saved.
    remove_unfinished(folder.parent, ended=True, stem=folder.name.partition(".")[0])


def upload_preset(uri: str, folder: str | os.PathLike[str]) -> None:
    """Uploads a preset to the Hugging Face hub.

    Args:
        uri: "hf://user/name". The repository is made if there is none.
        folder: A folder that `save_to_preset` wrote.

    Raises:
        ValueError: If `uri` is of another form, or the folder is no preset with
            weights that can be loaded, as is tried first.
        OSError: If it cannot be uploaded.

    Example:

    ```python
    model.save_to_preset("digits")
    keras_imm.upload_preset("hf://user/digits", "digits")
    model = keras_imm.FlowMapModel.from_preset("hf://user/digits")
    ```
    """
    if not isinstance(uri, str) or not uri.startswith(_HUB):
        raise ValueError(f"`uri` must be 'hf://user/name'. Received: uri={uri!r}")
    repository = _repository("uri", uri)
    folder = user_path(folder, "folder")
    for name in (CONFIG, METADATA):
        _read_json(folder / name, folder)
    if not is_weights_file(folder / WEIGHTS):
        raise ValueError(f"Preset {_name(folder)!r} has no weights in {WEIGHTS}.")
    load(folder, keras.Model)
    upload_folder_to_hub(repository, folder, FILENAMES, extra=_EXTRA)


# -- Where a preset is, and what is in it


def _name(preset: Any) -> str:
    return os.fspath(preset)


def _find(preset: Any, filenames: tuple[str, ...]) -> pathlib.Path:
    """The folder of a preset, with those of the files that there are."""
    if not isinstance(preset, str | os.PathLike) or not _name(preset):
        raise _unknown(preset)
    name = _name(preset)
    if isinstance(preset, str) and name in names():
        return BUILT_IN / name
    if name.startswith(_HUB):
        return fetch_folder_from_hub(
            _repository("preset", name),
            filenames,
            what=f"Preset {name!r}",
            extra=_EXTRA,
            usage="from_preset({})",
        )
    folder = user_path(name)
    if not os.path.isdir(folder):
        raise _unknown(preset)
    return folder


def _unknown(preset: Any) -> ValueError:
    known = ", ".join(map(repr, names())) or "none"
    return ValueError(
        "`preset` must be the name of a trained model that comes with the library "
        f"({known}), the path of a folder that `save_to_preset` wrote, or "
        f"'hf://user/name'. Received: preset={preset!r}"
    )


def _repository(argument: str, uri: str) -> str:
    repository = uri.removeprefix(_HUB)
    if not _REPOSITORY.fullmatch(repository):
        raise ValueError(
            f"`{argument}` must be of the form 'hf://user/name'. "
            f"Received: {argument}={uri!r}"
        )
    return repository


def _read_json(path: pathlib.Path, preset: Any) -> dict[str, Any]:
    content = None
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        content = path.read_bytes()
    if content is None:
        raise ValueError(f"{_name(preset)!r} is no preset: it has no {path.name}.")
    try:
        content = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{path.name} of preset {_name(preset)!r} is not JSON: {error}"
        ) from error
    if not isinstance(content, dict):
        raise ValueError(
            f"{path.name} of preset {_name(preset)!r} is not a JSON object."
        )
    return content


def _check_json(argument: str, content: Any) -> None:
    try:
        json.dumps(content, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"`{argument}` must be what JSON can hold: {error}") from error


def _check_weights(model: keras.Model, dtype: str) -> None:
    """Raises ValueError if a weight would not be finite in `dtype`."""
    for variable in model.weights:
        if "float" not in str(keras.backend.standardize_dtype(variable.dtype)):
            continue
        values = ops.convert_to_numpy(ops.cast(variable.value, "float32"))
        with np.errstate(over="ignore"):
            fits = np.all(np.isfinite(values.astype(dtype)))
        if not fits:
            raise ValueError(
                f"Weight {variable.path!r} does not fit into dtype={dtype!r}, which "
                f"ends at {np.finfo(dtype).max:.5g}: its largest value is "
                f"{np.max(np.abs(values)):.5g}"
            )


def library_version() -> str | None:
    """Version of the library, or None where it was not installed but put on a path."""
    from importlib import metadata

    try:
        return metadata.version("keras_imm")
    except metadata.PackageNotFoundError:
        return None
