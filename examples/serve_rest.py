"""TF Serving's REST interface to one SavedModel, and a page on it.

Paths, status codes and messages are those of TF Serving's
tensorflow_serving/model_servers/http_rest_api_handler.cc and what it calls.
"""

import asyncio
import json
import pathlib
import re
import urllib.parse
from collections.abc import Sequence

import serve_json
import tensorflow as tf
from aiohttp import web
from serve_json import RequestError
from serve_model import Batches, SavedModel

_VERSION = r"(?:/versions/(?P<version>\d+)|/labels/(?P<label>[^/:]+))?"
_POST = re.compile(
    rf"(?i)/v1/models/(?P<name>[^/:]+){_VERSION}:(?P<method>classify|regress|predict)"
)
_GET = re.compile(
    rf"(?i)/v1/models(?:/(?P<name>[^/:]+))?{_VERSION}(?:/(?P<metadata>metadata))?"
)
# What TF Serving makes of the codes that a graph raises and that it raises itself.
_STATUSES = {
    "CANCELLED": 499,
    "INVALID_ARGUMENT": 400,
    "DEADLINE_EXCEEDED": 504,
    "NOT_FOUND": 404,
    "ALREADY_EXISTS": 409,
    "PERMISSION_DENIED": 403,
    "UNAUTHENTICATED": 401,
    "RESOURCE_EXHAUSTED": 429,
    "FAILED_PRECONDITION": 400,
    "ABORTED": 409,
    "OUT_OF_RANGE": 400,
    "UNIMPLEMENTED": 501,
    "UNAVAILABLE": 503,
}
_STATUSES_OF_CODES = {
    getattr(tf.errors, name): status for name, status in _STATUSES.items()
}
_KINDS = {"classify": "classification", "regress": "regression"}
_PREDICT = "tensorflow/serving/predict"
_LARGEST_VERSION = 2**63 - 1


def application(
    name: str, model: SavedModel, class_names: Sequence[str]
) -> web.Application:
    """The web application of one model.

    Args:
        name: Its name in paths.
        model: The model.
        class_names: Names of the labels that the page offers, from 0.
    """
    rest = _Rest(name, model)
    settings = json.dumps({"name": name, "classNames": [*class_names]})
    settings = settings.replace("<", r"\u003c")  # names end no element of the page
    page = pathlib.Path(__file__).with_name("serve_page.html").read_text("utf-8")
    page = page.replace("{{settings}}", settings)

    async def show_page(_: web.Request) -> web.Response:
        return web.Response(text=page, content_type="text/html")

    async def close(_: web.Application) -> None:
        rest.batches.close()

    served = web.Application(client_max_size=0)  # any size, as in TF Serving
    served.router.add_get("/", show_page)
    served.router.add_route("*", "/{path:(?i:v1)/.*}", rest.handle)
    served.on_cleanup.append(close)
    return served


class _Rest:
    def __init__(self, name: str, model: SavedModel):
        self._name = name
        self._model = model
        self.batches = Batches(model.run)

    async def handle(self, request: web.Request) -> web.Response:
        """Answers any request, errors included, as TF Serving does."""
        try:
            text, status = await self._answer(request), 200
        except RequestError as error:
            text, status = _error(str(error)), _STATUSES[error.code]
        except RecursionError as error:
            text, status = _error(f"JSON Parse error: {error}"), 400
        except tf.errors.OpError as error:
            message = error.message.removeprefix("Graph execution error:\n\n")
            text = _error(message)
            status = _STATUSES_OF_CODES.get(error.error_code, 500)
        return web.Response(text=text, status=status, content_type="application/json")

    async def _answer(self, request: web.Request) -> str:
        path = request.raw_path
        if request.method == "POST" and (match := _POST.fullmatch(path)):
            return await self._post(match, await request.read())
        if request.method == "GET" and (match := _GET.fullmatch(path)):
            return self._get(match)
        raise RequestError(f"Malformed request: {request.method} {path}")

    async def _post(self, match: re.Match, body: bytes) -> str:
        _check_version(match)
        document = await asyncio.to_thread(serve_json.parse, body)
        signature_name = serve_json.signature_name(document)
        self._check_served(match)
        method = match["method"].lower()
        dtypes = self._model.inputs(signature_name)
        if method in _KINDS:
            raise _not_of_method(method, signature_name, dtypes is not None)
        if dtypes is None:
            raise RequestError(
                f'Serving signature name: "{signature_name}" not found in signature def'
            )
        if not dtypes:
            raise RequestError(
                f"Failed to get input map for signature: {signature_name}"
            )
        inputs, row_format = await asyncio.to_thread(
            serve_json.arrays, document, dtypes
        )
        outputs = await self.batches(signature_name, inputs)
        return await asyncio.to_thread(serve_json.answer, outputs, row_format)

    def _get(self, match: re.Match) -> str:
        _check_version(match)
        if match["name"] is None:
            raise RequestError("Missing model name in request.")
        return self._metadata(match) if match["metadata"] else self._status(match)

    def _metadata(self, match: re.Match) -> str:
        self._check_served(match)
        version = str(self._model.version)
        spec = {"name": self._name, "signature_name": "", "version": version}
        signatures = {"signature_def": self._model.signatures()}
        return serve_json.pretty(
            {"model_spec": spec, "metadata": {"signature_def": signatures}}
        )

    def _status(self, match: re.Match) -> str:
        name = urllib.parse.unquote(match["name"])
        version = self._model.version
        if name != self._name and match["version"] is None:
            raise RequestError(
                f"Could not find any versions of model {name}", "NOT_FOUND"
            )
        if name != self._name or int(match["version"] or version) != version:
            raise RequestError(
                f"Could not find version {match['version']} of model {name}",
                "NOT_FOUND",
            )
        status = {"error_code": "OK", "error_message": ""}
        state = {"version": str(version), "state": "AVAILABLE", "status": status}
        return serve_json.pretty({"model_version_status": [state]})

    def _check_served(self, match: re.Match) -> None:
        name = urllib.parse.unquote(match["name"])
        if match["label"] is not None:
            raise RequestError(
                "Unrecognized servable version label: "
                f"{urllib.parse.unquote(match['label'])}"
            )
        version = match["version"]
        if name != self._name or int(version or self._model.version) != (
            self._model.version
        ):
            wanted = f"Specific({name}, {version})" if version else f"Latest({name})"
            raise RequestError(f"Servable not found for request: {wanted}", "NOT_FOUND")


def _check_version(match: re.Match) -> None:
    if match["version"] and int(match["version"]) > _LARGEST_VERSION:
        raise RequestError(f"Failed to convert version: {match['version']} to numeric.")


def _not_of_method(method: str, signature_name: str, known: bool) -> RequestError:
    if not known:
        return RequestError(f"No signature was found with the name: {signature_name}")
    return RequestError(
        f"Expected {_KINDS[method]} signature method_name to be "
        f"tensorflow/serving/{method}. Was: {_PREDICT}"
    )


def _error(message: str) -> str:
    return serve_json.pretty({"error": message})
