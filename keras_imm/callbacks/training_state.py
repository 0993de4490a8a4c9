"""All that training changes in a model, as one file.

Written with Python's own files and not by HDF5, which ends the process on a full disk.
"""

import os
import zipfile
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_imm.backend.random_streams import assign_state, random_states


def save(path: str | os.PathLike[str], model: keras.Model) -> None:
    """Writes weights, random states and the optimizer's variables as an `.npz` file.

    Args:
        path: The file to write.
        model: A compiled and built model.

    Raises:
        FloatingPointError: If a trainable weight or its average is not finite.
        OSError: If the file cannot be written.
    """
    finite = {id(v) for v in model.trainable_variables}
    with zipfile.ZipFile(path, "w") as archive:
        for name, variable in _variables(model).items():
            value = ops.convert_to_numpy(variable)
            if value.dtype.name == "bfloat16":  # of which NumPy's files know nothing
                value = value.astype("float32")
            if id(variable) in finite and not np.all(np.isfinite(value)):
                raise FloatingPointError(f"The weight {variable.path} is not finite")
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, np.asarray(value, order="C"))


def load(path: str | os.PathLike[str], model: keras.Model) -> None:
    """Puts back what `save` wrote; a file that does not fit changes nothing.

    Raises:
        ValueError: If the file is damaged or does not fit the model; the message names
            the first variable that does not.
    """
    variables = _variables(model)
    try:
        with np.load(path, allow_pickle=False) as file:
            values = {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise ValueError(f"{os.fspath(path)!r} is damaged: {error}") from error
    for name in sorted(variables.keys() | values.keys()):
        shapes = [
            None if name not in of else tuple(of[name].shape)
            for of in (variables, values)
        ]
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"{os.fspath(path)!r} does not fit: {name} has the shape {shapes[0]} "
                f"in the model and {shapes[1]} in the file"
            )
    streams = {id(state) for state in random_states(model)}
    for name, variable in variables.items():
        if id(variable) in streams:
            assign_state(variable, values[name])
        else:
            variable.assign(ops.convert_to_tensor(values[name], variable.dtype))


def _variables(model: keras.Model) -> dict[str, Any]:
    """The variables by names that do not depend on what else the process has made."""
    known = {id(v) for v in model.trainable_variables}
    groups = {
        "weights": model.trainable_variables,
        "states": [v for v in model.variables if id(v) not in known],
        "optimizer": model.optimizer.variables,
    }
    return {
        f"{group}/{i:05d}": variable
        for group, variables in groups.items()
        for i, variable in enumerate(variables)
    }
