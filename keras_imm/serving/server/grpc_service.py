"""TF Serving's gRPC: Predict and GetModelMetadata of its PredictionService."""

import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from keras_imm.serving.server import grpc_messages as messages
from keras_imm.serving.server.errors import RequestError
from keras_imm.serving.server.servable import DEFAULT_SIGNATURE, Tensor
from keras_imm.serving.server.service import Service

_LOG = logging.getLogger(__name__)
_SERVICE = "tensorflow.serving.PredictionService"
_SIGNATURES = "signature_def"
_PREDICT = "tensorflow/serving/predict"


def server(service: Service, address: str) -> tuple[Any, int]:
    """A server of gRPC, which the running loop starts and stops, and its port.

    Args:
        service: Who answers.
        address: Host and port; port 0 for any free one.

    Raises:
        OSError: If nobody can listen there.
    """

    async def predict(request: Any) -> Any:
        _check_served(service, request.model_spec)
        inputs = {
            name: messages.array_of(name, proto, service.limits.max_body_bytes)
            for name, proto in request.inputs.items()
        }
        name = request.model_spec.signature_name or DEFAULT_SIGNATURE
        known = service.servable.signature(name).outputs
        wanted = set(request.output_filter) or set(known)
        if not wanted <= set(known):
            raise RequestError(f"`output_filter` must be some of {', '.join(known)}.")
        outputs = await service.predict(name, inputs)
        response = messages.PredictResponse()
        _fill_spec(service, response.model_spec, name)
        for key in sorted(wanted):
            messages.fill(response.outputs[key], outputs[key])
        return response

    async def metadata(request: Any) -> Any:
        _check_served(service, request.model_spec)
        if list(request.metadata_field) != [_SIGNATURES]:
            raise RequestError(f"`metadata_field` must be {_SIGNATURES}.")
        response = messages.GetModelMetadataResponse()
        _fill_spec(service, response.model_spec, "")
        response.metadata[_SIGNATURES].Pack(_signatures(service))
        return response

    handlers = {
        "Predict": _handler(service, "Predict", predict, messages.PredictRequest),
        "GetModelMetadata": _handler(
            service, "GetModelMetadata", metadata, messages.GetModelMetadataRequest
        ),
    }
    made = grpc.aio.server(
        options=[
            ("grpc.max_receive_message_length", service.limits.max_body_bytes),
            ("grpc.max_send_message_length", -1),
            ("grpc.so_reuseport", 0),  # two servers at a port would share requests
        ]
    )
    made.add_generic_rpc_handlers(
        [grpc.method_handlers_generic_handler(_SERVICE, handlers)]
    )
    try:
        port = made.add_insecure_port(address)
    except RuntimeError as error:
        raise OSError(str(error)) from error
    if not port:
        raise OSError(f"{address} is in use or not of this machine")
    return made, port


def _handler(
    service: Service,
    route: str,
    answer: Callable[[Any], Awaitable[Any]],
    request_type: type,
) -> grpc.RpcMethodHandler:
    """A method of the service, whose refusals become gRPC's status, and are counted."""

    async def call(request: bytes, context: Any) -> Any:
        start, status = time.perf_counter(), "CANCELLED"
        try:
            service.check_running()
            response, status = await answer(_parsed(request_type, request)), "OK"
            return response
        except RequestError as error:
            status = error.code
            await context.abort(grpc.StatusCode[status], str(error))
        except Exception:
            status = "INTERNAL"
            _LOG.exception("gRPC %s", route)
            message = "The server failed; its log says why."
            await context.abort(grpc.StatusCode.INTERNAL, message)
        finally:
            seconds = time.perf_counter() - start
            service.metrics.count_request(f"grpc {route}", status, seconds)

    return grpc.unary_unary_rpc_method_handler(
        call, None, lambda response: response.SerializeToString()
    )


def _parsed(request_type: type, content: bytes) -> Any:
    try:
        return request_type.FromString(content)
    except DecodeError as error:
        raise RequestError(str(error)) from None


def _check_served(service: Service, spec: Any) -> None:
    version = spec.version.value if spec.HasField("version") else None
    service.check_served(spec.name, version)


def _fill_spec(service: Service, spec: Any, signature_name: str) -> None:
    spec.name, spec.signature_name = service.name, signature_name
    spec.version.value = service.servable.version


def _signatures(service: Service) -> Any:
    found = messages.SignatureDefMap()
    for name, signature in service.servable.signatures.items():
        definition = found.signature_def[name]
        definition.method_name = _PREDICT
        for key, tensor in signature.inputs.items():
            _fill_info(definition.inputs[key], key, tensor)
        for key, tensor in signature.outputs.items():
            _fill_info(definition.outputs[key], key, tensor)
    return found


def _fill_info(info: Any, name: str, tensor: Tensor) -> None:
    info.name, info.dtype = name, messages.type_number(tensor.dtype)
    for size in tensor.shape:
        info.tensor_shape.dim.add(size=-1 if size is None else size)
