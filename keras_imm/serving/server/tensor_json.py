"""JSON to arrays and back, by orjson.

It refuses NaN, more than 1024 lists in one another, text that is no UTF-8, and whole
numbers of more than 64 bits become fractions, which no input of whole numbers takes.
"""

import base64
from typing import Any

import numpy as np
import orjson

from keras_imm.serving.server.errors import RequestError

_KINDS = {"i": {int}, "u": {int}, "f": {int, float}, "b": {bool}}


def parse(body: bytes | memoryview) -> dict[str, Any]:
    """The object that a body holds.

    Raises:
        RequestError: If it holds something else.
    """
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise RequestError(f"JSON Parse error: {error}") from None
    if not isinstance(document, dict):
        raise RequestError("The body must be a JSON object.")
    return document


def array_of(name: str, value: Any, dtype: np.dtype) -> np.ndarray:
    """A value, or lists of values in one another, as an array of a type.

    Raises:
        RequestError: If lists have different lengths, or a value is not of the type.
    """
    array = np.array(value, object)  # or one long string would widen all values
    kinds = set(map(type, array.ravel().tolist()))
    if list in kinds:
        raise RequestError(f"`{name}` must be lists of one length each.")
    refused = RequestError(f"`{name}` must be of {dtype} values.")
    if not kinds <= _KINDS.get(dtype.kind, set()):
        raise refused
    is_whole = dtype.kind in "iu"
    try:
        array = array.astype("int64" if is_whole else "float64")
    except OverflowError:
        raise refused from None
    with np.errstate(over="ignore", invalid="ignore"):
        converted = array.astype(dtype)
    if is_whole and np.any(converted != array):
        raise refused
    if dtype.kind == "f" and not np.all(np.isfinite(converted)):
        raise refused
    return converted


def text(document: Any) -> bytes:
    """JSON, in which arrays of numbers may stand."""
    return orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)


def listed(array: np.ndarray) -> Any:
    """What `text` takes for an array; bytes become {"b64": ...}."""
    if array.dtype != object:
        return np.ascontiguousarray(array)
    return [{"b64": base64.b64encode(value).decode()} for value in array.ravel()]
