"""What can be exported."""

import os
from typing import Any

from keras_imm.imm import IMM
from keras_imm.validation import check_instance


def check_model(model: Any) -> None:
    """Raises ValueError unless it is a built model or the path of a file."""
    if isinstance(model, (str, os.PathLike)):
        if not os.path.exists(model):
            raise ValueError(f"There is no model at {os.fspath(model)!r}.")
        return
    check_instance("model", model, IMM)
    if not model.built:
        raise ValueError(
            "`model` must be built: train it, call it on data, or `build` it."
        )
