"""KServe's and Triton's REST, version 2: /v2, health, models, infer; binary data too.

The parameter "signature_name" of a request chooses a signature other than
"serving_default", which the metadata describe.

https://kserve.github.io/website/docs/concepts/architecture/data-plane/v2-protocol
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from aiohttp import web

from keras_imm.files.presets import library_version
from keras_imm.serving.server import tensor_json
from keras_imm.serving.server.errors import RequestError
from keras_imm.serving.server.responses import json_response
from keras_imm.serving.server.servable import DEFAULT_SIGNATURE, Arrays, Tensor
from keras_imm.serving.server.service import Service

HEADER_LENGTH = "Inference-Header-Content-Length"
_MODEL = r"/v2/models/{name:[^/]+}"
_VERSION = r"/versions/{version:\d+}"
_TYPES = {
    "bool": "BOOL",
    "float16": "FP16",
    "float32": "FP32",
    "float64": "FP64",
    "int32": "INT32",
    "int64": "INT64",
    "object": "BYTES",
    "uint8": "UINT8",
}


def routes(service: Service, read: Callable) -> list[web.RouteDef]:
    """The routes of the protocol.

    Args:
        service: Who answers.
        read: Coroutine function from a request to its body.
    """
    servable = service.servable

    async def server(_: web.Request) -> web.Response:
        return json_response(
            {
                "name": "keras_imm",
                "version": library_version() or "unknown",
                "extensions": ["binary_tensor_data"],
            }
        )

    async def live(_: web.Request) -> web.Response:
        return json_response({"live": True})

    async def ready(request: web.Request) -> web.Response:
        if "name" in request.match_info:
            service.check_served(**request.match_info)
        service.check_running()
        return json_response({"name": service.name, "ready": True})

    async def model(request: web.Request) -> web.Response:
        service.check_served(**request.match_info)
        signature = servable.signature(_default_signature(service))
        return json_response(
            {
                "name": service.name,
                "versions": [str(servable.version)],
                "platform": servable.platform,
                "inputs": _described(signature.inputs),
                "outputs": _described(signature.outputs),
            }
        )

    async def infer(request: web.Request) -> web.Response:
        service.check_served(**request.match_info)
        body = await read(request)
        header, data = _parts(body, request.headers.get(HEADER_LENGTH))
        document = tensor_json.parse(header)
        options = _parameters(document)
        name = options.get("signature_name", _default_signature(service))
        if not isinstance(name, str):
            raise RequestError("`signature_name` must be a string.")
        signature = servable.signature(name)
        inputs = _inputs(document, data, signature.inputs)
        wanted = _wanted(document, options, signature.outputs)
        outputs = await service.predict(name, inputs)
        answer = {
            "model_name": service.name,
            "model_version": str(servable.version),
            **({"id": document["id"]} if "id" in document else {}),
        }
        return _answer(answer, outputs, wanted)

    return [
        web.get("/v2", server),
        web.get("/v2/health/live", live),
        web.get("/v2/health/ready", ready),
        *(
            one
            for path in (_MODEL, _MODEL + _VERSION)
            for one in (
                web.get(path, model),
                web.get(f"{path}/ready", ready),
                web.post(f"{path}/infer", infer),
            )
        ),
    ]


def _default_signature(service: Service) -> str:
    signatures = service.servable.signatures
    return DEFAULT_SIGNATURE if DEFAULT_SIGNATURE in signatures else min(signatures)


def _described(tensors: Mapping[str, Tensor]) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "datatype": _TYPES[tensor.dtype.name],
            "shape": [-1 if size is None else size for size in tensor.shape],
        }
        for name, tensor in tensors.items()
    ]


def _parts(body: bytes, length: str | None) -> tuple[memoryview, memoryview]:
    """The JSON of a body, and the binary data after it."""
    view = memoryview(body)
    if length is None:
        return view, view[len(view) :]
    if not re.fullmatch("[0-9]{1,18}", length) or int(length) > len(view):
        raise RequestError(
            f"`{HEADER_LENGTH}` must be a number up to the body's {len(view)} bytes."
        )
    return view[: int(length)], view[int(length) :]


def _parameters(document: Mapping[str, Any]) -> dict[str, Any]:
    options = document.get("parameters", {})
    if not isinstance(options, dict):
        raise RequestError("`parameters` must be an object.")
    return options


def _inputs(
    document: Mapping[str, Any], data: memoryview, wanted: Mapping[str, Tensor]
) -> Arrays:
    inputs = {}
    for one in _objects(document.get("inputs"), "inputs"):
        name = one["name"]
        if name not in wanted or name in inputs:
            raise RequestError(
                f"`inputs` must be each of {', '.join(wanted)} once. Received: {name}"
            )
        size = _parameters(one).get("binary_data_size")
        if size is not None and not _is_size(size, len(data)):
            raise RequestError(
                f"`binary_data_size` of {name} must be a number up to the {len(data)} "
                "bytes that are left."
            )
        binary, data = (None, data) if size is None else (data[:size], data[size:])
        inputs[name] = _array(one, binary, wanted[name].dtype)
    if len(data):
        raise RequestError(f"There are {len(data)} bytes more than inputs have.")
    return inputs


def _objects(values: Any, key: str) -> list[dict[str, Any]]:
    """A list of objects with names."""
    if not isinstance(values, list) or not all(
        isinstance(one, dict) and isinstance(one.get("name"), str) for one in values
    ):
        raise RequestError(f"`{key}` must be a list of objects, each with a name.")
    return values


def _is_size(value: Any, largest: int = 2**31) -> bool:
    return type(value) is int and 0 <= value <= largest


def _array(
    one: Mapping[str, Any], binary: memoryview | None, dtype: np.dtype
) -> np.ndarray:
    """The array of an input, in JSON or in bytes."""
    name, shape = one["name"], one.get("shape")
    if one.get("datatype") != _TYPES[dtype.name] or dtype.kind == "O":
        raise RequestError(
            f"`datatype` of {name} must be {_TYPES[dtype.name]}. "
            f"Received: {one.get('datatype')}"
        )
    if not isinstance(shape, list) or not all(map(_is_size, shape)):
        raise RequestError(f"`shape` of {name} must be a list of sizes.")
    if binary is None:
        flat = tensor_json.array_of(name, one.get("data"), dtype).ravel()
    elif len(binary) % dtype.itemsize:
        raise RequestError(f"The data of {name} must be whole {dtype} values.")
    else:
        flat = np.frombuffer(binary, dtype.newbyteorder("<")).astype(dtype)
    try:
        return flat.reshape(shape)
    except ValueError:
        raise RequestError(
            f"`shape` of {name} must be that of its {flat.size} values. "
            f"Received: {shape}"
        ) from None


def _wanted(
    document: Mapping[str, Any],
    options: Mapping[str, Any],
    known: Mapping[str, Tensor],
) -> dict[str, bool]:
    """The outputs to return, and whether each as bytes."""
    default = options.get("binary_data_output", False) is True
    if not document.get("outputs"):
        return dict.fromkeys(known, default)
    wanted = {}
    for one in _objects(document["outputs"], "outputs"):
        if one["name"] not in known:
            raise RequestError(
                f"`outputs` must be some of {', '.join(known)}. Received: {one['name']}"
            )
        wanted[one["name"]] = _parameters(one).get("binary_data", default) is True
    return wanted


def _answer(
    answer: dict[str, Any], outputs: Arrays, wanted: Mapping[str, bool]
) -> web.Response:
    described, buffers = [], []
    for name, is_binary in wanted.items():
        array = outputs[name]
        one = {
            "name": name,
            "datatype": _TYPES[array.dtype.name],
            "shape": list(array.shape),
        }
        if is_binary:
            buffers.append(_bytes(array))
            one["parameters"] = {"binary_data_size": len(buffers[-1])}
        elif array.dtype == object:
            raise RequestError(f"{name} is of bytes: it takes binary data.")
        else:
            one["data"] = np.ascontiguousarray(array).ravel()
        described.append(one)
    header = tensor_json.text(answer | {"outputs": described})
    if not buffers:
        return web.Response(body=header, content_type="application/json")
    return web.Response(
        body=b"".join([header, *buffers]),
        content_type="application/octet-stream",
        headers={HEADER_LENGTH: str(len(header))},
    )


def _bytes(array: np.ndarray) -> bytes:
    """Values one after the other, little end first; before a string its length."""
    if array.dtype != object:
        return array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
    return b"".join(len(value).to_bytes(4, "little") + value for value in array.ravel())
