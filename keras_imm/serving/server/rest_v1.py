"""TF Serving's REST: /v1/models/NAME[/versions/V], /metadata and :predict.

https://www.tensorflow.org/tfx/serving/api_rest
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from aiohttp import web

from keras_imm.serving.server import tensor_json
from keras_imm.serving.server.errors import RequestError
from keras_imm.serving.server.responses import json_response
from keras_imm.serving.server.servable import (
    DEFAULT_SIGNATURE,
    Arrays,
    Signature,
    Tensor,
)
from keras_imm.serving.server.service import Service

_MODEL = r"/v1/models/{name:[^/:]+}"
_VERSION = r"/versions/{version:\d+}"
_TYPES = {
    "bool": "DT_BOOL",
    "float32": "DT_FLOAT",
    "float64": "DT_DOUBLE",
    "int32": "DT_INT32",
    "int64": "DT_INT64",
    "object": "DT_STRING",
    "uint8": "DT_UINT8",
}


def routes(service: Service, read: Callable) -> list[web.RouteDef]:
    """The routes of the protocol.

    Args:
        service: Who answers.
        read: Coroutine function from a request to its body.
    """

    async def status(request: web.Request) -> web.Response:
        service.check_served(**request.match_info)
        state = {
            "version": str(service.servable.version),
            "state": "AVAILABLE",
            "status": {"error_code": "OK", "error_message": ""},
        }
        return json_response({"model_version_status": [state]})

    async def metadata(request: web.Request) -> web.Response:
        service.check_served(**request.match_info)
        signatures = service.servable.signatures
        definitions = {name: _described(one) for name, one in signatures.items()}
        return json_response(
            {
                "model_spec": {
                    "name": service.name,
                    "signature_name": "",
                    "version": str(service.servable.version),
                },
                "metadata": {"signature_def": {"signature_def": definitions}},
            }
        )

    async def predict(request: web.Request) -> web.Response:
        service.check_served(**request.match_info)
        document = tensor_json.parse(await read(request))
        name = document.get("signature_name") or DEFAULT_SIGNATURE
        if not isinstance(name, str):
            raise RequestError("`signature_name` must be a string.")
        wanted = service.servable.signature(name).inputs
        inputs, row_format = _inputs(document, wanted)
        return json_response(_answer(await service.predict(name, inputs), row_format))

    return [
        one
        for path in (_MODEL, _MODEL + _VERSION)
        for one in (
            web.get(path, status),
            web.get(f"{path}/metadata", metadata),
            web.post(f"{path}:predict", predict),
        )
    ]


def _inputs(
    document: Mapping[str, Any], wanted: Mapping[str, Tensor]
) -> tuple[Arrays, bool]:
    """The inputs of a request, and whether they came row by row."""
    if ("instances" in document) == ("inputs" in document):
        raise RequestError("A request must have one of 'inputs' and 'instances'.")
    row_format = "instances" in document
    columns = _columns(document["instances"]) if row_format else document["inputs"]
    if not isinstance(columns, dict):
        if len(wanted) > 1:
            raise RequestError(
                f"A value must be given for each of {', '.join(wanted)} by its name."
            )
        columns = {next(iter(wanted)): columns}
    return {
        name: tensor_json.array_of(name, value, wanted[name].dtype)
        if name in wanted
        else np.empty(0)  # refused by its name
        for name, value in columns.items()
    }, row_format


def _columns(instances: Any) -> Any:
    """Rows by name as columns; other rows as they are."""
    if not isinstance(instances, list) or not instances:
        raise RequestError("'instances' must be a list of one row or more.")
    if not any(isinstance(row, dict) for row in instances):
        return instances
    names = instances[0].keys() if isinstance(instances[0], dict) else set()
    for index, row in enumerate(instances):
        if not isinstance(row, dict) or row.keys() != names:
            raise RequestError(
                f"All 'instances' must have the same names. Row {index} has others."
            )
    return {name: [row[name] for row in instances] for name in names}


def _answer(outputs: Arrays, row_format: bool) -> dict[str, Any]:
    values = {name: tensor_json.listed(outputs[name]) for name in sorted(outputs)}
    if len(values) == 1:
        [values] = values.values()
    elif row_format:
        rows = zip(*values.values(), strict=True)
        values = [dict(zip(values, row, strict=True)) for row in rows]
    return {"predictions" if row_format else "outputs": values}


def _described(signature: Signature) -> dict[str, Any]:
    """A signature as protobuf prints a SignatureDef in JSON."""
    return {
        "inputs": {name: _info(name, one) for name, one in signature.inputs.items()},
        "outputs": {name: _info(name, one) for name, one in signature.outputs.items()},
        "method_name": "tensorflow/serving/predict",
    }


def _info(name: str, tensor: Tensor) -> dict[str, Any]:
    sizes = [-1 if size is None else size for size in tensor.shape]
    dims = [{"size": str(size), "name": ""} for size in sizes]
    return {
        "name": name,
        "dtype": _TYPES.get(tensor.dtype.name, "DT_INVALID"),
        "tensor_shape": {"dim": dims, "unknown_rank": False},
    }
