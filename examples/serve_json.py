"""TF Serving's JSON: predict requests to arrays, arrays to answers.

What is accepted, and the message where something is not, are those of TF Serving's
tensorflow_serving/util/json_tensor.cc; the parser is the one that it uses, RapidJSON.
"""

import base64
import binascii
from collections.abc import Mapping
from typing import Any

import numpy as np
import rapidjson

DEFAULT_SIGNATURE = "serving_default"

# Arrays of strings are NumPy arrays of objects.
_STRING = np.dtype(object)
_TYPE_NAMES = {"float32": "float", "float64": "double", "object": "string"}
_MOST_DIMENSIONS = 32


class RequestError(Exception):
    """A request that TF Serving refuses.

    Args:
        message: What it says.
        code: Its status code, as TensorFlow names it.
    """

    def __init__(self, message: str, code: str = "INVALID_ARGUMENT"):
        super().__init__(message)
        self.code = code


def parse(body: bytes) -> dict[str, Any]:
    """The object that the body of a predict request holds."""
    try:
        document = rapidjson.loads(body.decode(errors="replace"))
    except RecursionError as error:  # TF Serving has no such limit
        raise RequestError(f"JSON Parse error: {error}") from error
    except rapidjson.JSONDecodeError as error:
        # "Parse error at offset 0: Invalid value."
        place, _, reason = str(error).partition(": ")
        offset = place.rpartition(" ")[2]
        raise RequestError(f"JSON Parse error: {reason} at offset: {offset}") from error
    if not isinstance(document, dict):
        raise RequestError(f"JSON Value: {_text(document)} Is not object")
    return document


def signature_name(document: dict[str, Any]) -> str:
    """The name of the signature that a request is for."""
    name = document.get("signature_name", "")
    if not isinstance(name, str):
        raise RequestError(
            f"JSON Value: {_text(document)} not formatted correctly. "
            "'signature_name' key must be a string value."
        )
    return name or DEFAULT_SIGNATURE


def arrays(
    document: dict[str, Any], dtypes: Mapping[str, np.dtype]
) -> tuple[dict[str, np.ndarray], bool]:
    """The inputs of a request, and whether it is in the row format.

    Args:
        document: The request.
        dtypes: Types of the signature's inputs, by their names.
    """
    rows, columns = "instances" in document, "inputs" in document
    if rows and columns:
        raise RequestError(
            f"JSON Value: {_text(document)} Not formatted correctly expecting only "
            "one of 'inputs' or 'instances' keys to exist "
        )
    if columns:
        return _from_columns(document["inputs"], dtypes), False
    if not rows:
        raise RequestError("Missing 'inputs' or 'instances' key")
    instances = document["instances"]
    if not isinstance(instances, list):
        raise RequestError(
            f"JSON Value: {_text(document)} Excepting 'instances' to be an list/array"
        )
    if not instances:
        raise RequestError(
            f"JSON Value: {_text(document)} No values in 'instances' array"
        )
    return _from_rows(instances, dtypes), True


def answer(outputs: Mapping[str, np.ndarray], row_format: bool) -> str:
    """The body of the answer to a predict request."""
    values = {name: _listed(name, outputs[name]) for name in sorted(outputs)}
    if len(values) == 1:
        [values] = values.values()
    elif row_format:
        rows = zip(*values.values(), strict=True)
        values = [dict(zip(values, row, strict=True)) for row in rows]
    document = {"predictions" if row_format else "outputs": values}
    return pretty(document)


def pretty(document: Any) -> str:
    """JSON as TF Serving sets it, with an array to a line."""
    return rapidjson.dumps(
        document, write_mode=rapidjson.WM_PRETTY | rapidjson.WM_SINGLE_LINE_ARRAY
    )


def _from_columns(inputs: Any, dtypes: Mapping[str, np.dtype]) -> dict:
    if isinstance(inputs, dict) and not _is_base64(inputs):
        for name in dtypes:
            if name not in inputs:
                raise RequestError(f"Missing named input: {name} in 'inputs' object.")
        return {name: _array(inputs[name], dtype) for name, dtype in dtypes.items()}
    if len(dtypes) > 1:
        raise RequestError(
            "inputs is a plain value/list, but expecting an object as multiple "
            "input tensors required as per tensorinfo_map"
        )
    return {name: _array(inputs, dtype) for name, dtype in dtypes.items()}


def _from_rows(instances: list, dtypes: Mapping[str, np.dtype]) -> dict:
    named = _is_object(instances[0])
    if not named and len(dtypes) > 1:
        raise RequestError(
            "instances is a plain list, but expecting list of objects as multiple "
            "input tensors required as per tensorinfo_map"
        )
    rows = {name: [] for name in dtypes}
    for index, instance in enumerate(instances):
        if named and not _is_object(instance):
            raise RequestError(
                f"Expecting object but got list at item {index} of input list"
            )
        if not named and _is_object(instance):
            raise RequestError(
                f"Expecting value/list but got object at item {index} of input list"
            )
        for name, value in instance.items() if named else [(*dtypes, instance)]:
            try:
                _add_row(rows, name, value, dtypes)
            except RequestError as error:
                key = f" key: {name}" if named else ""
                raise RequestError(
                    f"Failed to process element: {index}{key} of 'instances' list. "
                    f"Error: {error.code}: {error}"
                ) from error
        if named and instance.keys() != dtypes.keys():
            raise RequestError(
                f"Failed to process element: {index} of 'instances' list. JSON object: "
                f"{_text(instance)} keys must be equal to: {','.join(sorted(dtypes))}"
            )
    return {name: np.stack(values) for name, values in rows.items()}


def _add_row(rows: dict, name: str, value: Any, dtypes: Mapping[str, np.dtype]) -> None:
    if name not in dtypes:
        raise RequestError(f"JSON object: does not have named input: {name}")
    row = _array(value, dtypes[name])
    first = rows[name][0] if rows[name] else row
    if row.size != first.size:
        raise RequestError(f"Expecting tensor size: {first.size} but got: {row.size}")
    if row.shape != first.shape:
        raise RequestError(
            f"Expecting shape {_shape_text(first)} but got: {_shape_text(row)}"
        )
    rows[name].append(row)


def _array(value: Any, dtype: np.dtype) -> np.ndarray:
    """A value or nested lists of values as an array, whose shape the first ones set."""
    shape, first = [], value
    while isinstance(first, list):
        shape.append(len(first))
        first = first[0] if first else None
    if len(shape) > _MOST_DIMENSIONS:
        raise RequestError(f"Encountered list at unexpected level: {len(shape)}")
    flat = []
    _fill(flat, value, 0, shape, dtype)
    array = np.empty(len(flat), dtype)
    array[:] = flat
    return array.reshape(shape)


def _fill(flat: list, value: Any, level: int, shape: list, dtype: np.dtype) -> None:
    if not isinstance(value, list):
        if level != len(shape):
            raise RequestError(
                f"JSON Value: {_text(value)} found at incorrect level: {level + 1} "
                f"in the JSON DOM. Expected at level: {len(shape)}"
            )
        flat.append(_converted(value, dtype))
        return
    if level >= len(shape):
        raise RequestError(
            f"Encountered list at unexpected level: {level} expected < {len(shape)}"
        )
    if len(value) != shape[level]:
        raise RequestError(
            f"Encountered list at unexpected size: {len(value)} at level: {level} "
            f"expected size: {shape[level]}"
        )
    for item in value:
        _fill(flat, item, level + 1, shape, dtype)


def _converted(value: Any, dtype: np.dtype) -> Any:
    """A value of JSON, once it is known to be one of the type."""
    if dtype == _STRING and isinstance(value, dict):
        return _decoded(value)
    if dtype == _STRING and isinstance(value, str):
        return value.encode()
    if dtype.kind == "b" and isinstance(value, bool):
        return value
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if dtype.kind == "f" and number:
        return _checked_float(value, dtype)
    if dtype.kind in "iu" and number and isinstance(value, int):
        limits = np.iinfo(dtype)
        if limits.min <= value <= limits.max:
            return value
    raise RequestError(
        f"JSON Value: {_text(value)} Type: {_type_text(value)} is not of expected "
        f"type: {_type_name(dtype)}"
    )


def _checked_float(value: float, dtype: np.dtype) -> float:
    limits = np.finfo(dtype)
    whole = isinstance(value, int)
    if not whole and not np.isfinite(value):
        return value
    if abs(value) > (2 ** (limits.nmant + 1) - 1 if whole else float(limits.max)):
        raise RequestError(
            f"Cannot convert JSON value: {_text(value)} to {_type_name(dtype)} "
            "without loss of precision."
        )
    return value


def _decoded(value: dict) -> bytes:
    if not _is_base64(value):
        raise RequestError(
            f"JSON Value: {_text(value)} not formatted correctly for base64 data"
        )
    try:
        return base64.b64decode(value["b64"], validate=True)
    except (binascii.Error, ValueError) as error:
        raise RequestError("Unable to base64 decode") from error


def _is_base64(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and value.keys() == {"b64"}
        and isinstance(value["b64"], str)
    )


def _is_object(value: Any) -> bool:
    return isinstance(value, dict) and not _is_base64(value)


def _listed(name: str, array: np.ndarray) -> list:
    """An output as lists; bytes as {"b64": ...} where its name ends in _bytes."""
    if array.dtype == _STRING:
        encode = _base64 if name.endswith("_bytes") else bytes.decode
        flat = np.empty(array.size, object)
        flat[:] = [encode(value) for value in array.ravel()]
        return flat.reshape(array.shape).tolist()
    if array.dtype.kind == "f":  # with no more digits than tell it from its neighbours
        return array.astype(str).astype("float64").tolist()
    return array.tolist()


def _base64(value: bytes) -> dict[str, str]:
    return {"b64": base64.b64encode(value).decode()}


def _type_name(dtype: np.dtype) -> str:
    return _TYPE_NAMES.get(dtype.name, dtype.name)


def _type_text(value: Any) -> str:
    names = {dict: "Object", list: "Array", str: "String"}
    if value is None or isinstance(value, bool):
        return {None: "Null", True: "True", False: "False"}[value]
    return names.get(type(value), "Number")


def _shape_text(array: np.ndarray) -> str:
    return f"[{','.join(map(str, array.shape))}]"


def _text(value: Any) -> str:
    """A value in an error message."""
    huge = isinstance(value, int) and not -(2**63) <= value < 2**64
    if not isinstance(value, float) and not huge:
        return rapidjson.dumps(value, indent=4)
    text = f"{value:g}"
    return text if {".", "e", "n"} & set(text) else f"{text}.0"
