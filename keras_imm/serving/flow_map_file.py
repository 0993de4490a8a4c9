"""A flow map with the weights to sample with, as a folder for the exporting process."""

import json
import pathlib
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_imm.backend.random_streams import assign_state, random_states
from keras_imm.flow_map import FlowMap


def save(folder: pathlib.Path, flow: FlowMap, values: list) -> None:
    """Writes a flow map.

    Args:
        folder: An existing folder.
        flow: Built flow map.
        values: Values of its variables, in their order.
    """
    config = {
        "flow_map": keras.saving.serialize_keras_object(flow),
        "data_shape": flow.data_shape,
    }
    (folder / "flow_map.json").write_text(json.dumps(config))
    arrays = {f"{i:05d}": _portable(value) for i, value in enumerate(values)}
    np.savez(folder / "values.npz", **arrays)


def load(folder: pathlib.Path) -> FlowMap:
    """The flow map that `save` wrote, with those values.

    It may run code of the layers that it names: the folder must be one's own.
    """
    config = json.loads((folder / "flow_map.json").read_text())
    flow = keras.saving.deserialize_keras_object(config["flow_map"], safe_mode=False)
    flow.build(config["data_shape"])
    states = {id(state) for state in random_states(flow.backbone)}
    with np.load(folder / "values.npz") as file:
        for i, variable in enumerate(flow.variables):
            if id(variable) in states:
                assign_state(variable, file[f"{i:05d}"])
            else:
                variable.assign(file[f"{i:05d}"])
    return flow


def _portable(value: Any) -> np.ndarray:
    value = ops.convert_to_numpy(value)
    if value.dtype.name == "bfloat16":  # of which NumPy's files know nothing
        return value.astype("float32")
    return value
