"""From what the command line names to what is served."""

import os
import pathlib
import re
from collections.abc import Sequence
from typing import Any

from keras_imm.files import presets
from keras_imm.files.paths import user_path
from keras_imm.model import FlowMapModel
from keras_imm.serving.checks import checked_model
from keras_imm.serving.server.keras_servable import KerasServable
from keras_imm.serving.server.saved_model_servable import (
    SavedModelServable,
    newest_version,
)
from keras_imm.serving.server.servable import Servable

NAME = r"\w[\w.-]*"


def name_of(model: str) -> str:
    """A name for paths: that of a model's folder, file or preset."""
    path = pathlib.PurePath(model)
    if path.name.isdecimal():  # the folder of a version
        path = path.parent
    stem = path.stem if path.suffix == ".keras" else path.name
    return stem if re.fullmatch(NAME, stem) else "model"


def load(
    model: str | os.PathLike[str],
    max_batch_size: int = 64,
    num_steps: Sequence[int] | None = None,
    guidance_scale: float | None = None,
    value_range: tuple[float, float] | None = None,
) -> Servable:
    """What serves a model.

    Args:
        model: A `.keras` file, the folder of a SavedModel or of its versions, or what
            `FlowMapModel.from_preset` takes.
        max_batch_size: As in `KerasServable`.
        num_steps: As in `KerasServable`; like the next two not for SavedModels, which
            have theirs.
        guidance_scale: As in `KerasServable`.
        value_range: As in `KerasServable`.

    Raises:
        ImportError: If the model takes a library that is not installed.
        ValueError: If there is no such model, or an argument is out of its range.
    """
    options: dict[str, Any] = {
        "num_steps": num_steps,
        "guidance_scale": guidance_scale,
        "value_range": value_range,
    }
    folder = newest_version(model)
    if folder is not None:
        given = [name for name, value in options.items() if value is not None]
        if given:
            raise ValueError(
                f"`{given[0]}` is for models of Keras: a SavedModel has its own. "
                f"Received: {given[0]}={options[given[0]]!r}, model={str(model)!r}"
            )
        return SavedModelServable(folder)
    if os.fspath(model).endswith(".keras"):
        loaded = checked_model(model)
    elif not _may_be_preset(os.fspath(model)):
        raise ValueError(
            "`model` must be a .keras file, a SavedModel or the folder of its "
            f"versions, or a preset: one of {', '.join(presets.names())}, the folder "
            f"of one, or hf://user/name. Received: model={str(model)!r}"
        )
    else:
        loaded = FlowMapModel.from_preset(model)
    return KerasServable(loaded, **options, max_batch_size=max_batch_size)


def _may_be_preset(model: str) -> bool:
    is_folder = (user_path(model, "model") / presets.CONFIG).is_file()
    return is_folder or model in presets.names() or model.startswith("hf://")
