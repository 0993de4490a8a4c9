"""Answers of HTTP in JSON."""

from collections.abc import Mapping
from typing import Any

from aiohttp import web

from keras_imm.serving.server import tensor_json


def json_response(
    document: Any, status: int = 200, headers: Mapping[str, str] | None = None
) -> web.Response:
    """An answer in JSON, in which arrays of numbers may stand."""
    return web.Response(
        body=tensor_json.text(document),
        status=status,
        headers=headers,
        content_type="application/json",
    )
