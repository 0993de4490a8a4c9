"""The web application of a served model: protocols, health, figures and a page."""

import asyncio
import logging
import pathlib
import time
from collections.abc import Awaitable, Callable

from aiohttp import web

from keras_imm.serving.server import rest_v1, rest_v2, tensor_json
from keras_imm.serving.server.errors import RequestError
from keras_imm.serving.server.responses import json_response
from keras_imm.serving.server.service import Service

_LOG = logging.getLogger(__name__)
_RETRY_AFTER = {"Retry-After": "1"}  # seconds
_CLIENT_HAS_GONE = 499


def application(service: Service, class_names: list[str]) -> web.Application:
    """The web application of one model.

    Args:
        service: Who answers.
        class_names: Names of the labels that the page offers, from 0.
    """
    page = _page(service.name, class_names)

    async def show_page(_: web.Request) -> web.Response:
        return web.Response(text=page, content_type="text/html")

    async def live(_: web.Request) -> web.Response:
        return web.Response(text="ok")

    async def ready(_: web.Request) -> web.Response:
        service.check_running()
        return web.Response(text="ok")

    async def figures(_: web.Request) -> web.Response:
        return web.Response(
            body=service.metrics.text(),
            headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"},
        )

    async def read(request: web.Request) -> bytes:
        try:
            async with asyncio.timeout(service.limits.timeout_s):
                return await request.read()
        except TimeoutError:
            raise web.HTTPRequestTimeout from None
        except web.RequestPayloadError as error:
            raise RequestError(f"The body cannot be read: {error}") from None

    served = web.Application(
        client_max_size=service.limits.max_body_bytes, middlewares=[_answers(service)]
    )
    served.add_routes(
        [
            web.get("/", show_page),
            web.get("/healthz", live),
            web.get("/readyz", ready),
            web.get("/metrics", figures),
            *rest_v1.routes(service, read),
            *rest_v2.routes(service, read),
        ]
    )
    return served


def _page(name: str, class_names: list[str]) -> str:
    settings = tensor_json.text({"name": name, "classNames": class_names}).decode()
    settings = settings.replace("<", r"\u003c")  # names end no element of the page
    page = pathlib.Path(__file__).with_name("page.html").read_text("utf-8")
    return page.replace("{{settings}}", settings)


def _answers(service: Service) -> Callable:
    """A middleware that makes JSON of every error, and counts answers."""

    @web.middleware
    async def middleware(
        request: web.Request, handler: Callable[[web.Request], Awaitable]
    ) -> web.StreamResponse:
        start, status = time.perf_counter(), _CLIENT_HAS_GONE
        try:
            response = await _answer(service, request, handler)
            status = response.status
            return response
        finally:
            seconds = time.perf_counter() - start
            service.metrics.count_request(_route(request), status, seconds)

    return middleware


async def _answer(
    service: Service, request: web.Request, handler: Callable
) -> web.StreamResponse:
    try:
        if request.method == "POST":
            service.check_running()
        return await handler(request)
    except RequestError as error:
        headers = _RETRY_AFTER if error.status == 503 else None
        return _error(str(error), error.status, headers)
    except web.HTTPException as error:
        headers = {"Allow": error.headers["Allow"]} if error.status == 405 else None
        message = f"{error.reason}: {request.method} {request.path}"
        return _error(message, error.status, headers)
    except Exception:
        _LOG.exception("%s %s", request.method, request.path)
        return _error("The server failed; its log says why.", 500)


def _error(message: str, status: int, headers: dict | None = None) -> web.Response:
    return json_response({"error": message}, status, headers)


def _route(request: web.Request) -> str:
    """The path's pattern, of which there are few, whatever is asked for."""
    resource = request.match_info.route.resource
    return f"{request.method} {resource.canonical}" if resource else "unknown"
