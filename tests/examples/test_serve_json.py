"""TF Serving's JSON, against what its sources say."""

import base64
import importlib
import json
import sys

import keras
import numpy as np
import pytest
from scripts import ROOT

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow",
    reason="the server has no Keras in it: one backend tests it",
)

sys.path.append(str(ROOT / "examples"))
serve_json = importlib.import_module("serve_json")

STRING = np.dtype(object)
TWO = {"a": np.dtype("float32"), "b": np.dtype("int64")}


def read(document, **dtypes):
    document = serve_json.parse(json.dumps(document).encode())
    dtypes = {name: np.dtype(dtype) for name, dtype in dtypes.items()}
    return serve_json.arrays(document, dtypes)


def refusal(document, **dtypes):
    with pytest.raises(serve_json.RequestError) as refused:
        read(document, **dtypes)
    assert refused.value.code == "INVALID_ARGUMENT"
    return str(refused.value)


def test_arrays_have_the_shapes_of_the_lists():
    inputs, row_format = read(
        {"instances": [{"a": [[1, 2.5]], "b": 2**53 + 1}] * 3}, **TWO
    )
    assert row_format
    assert inputs["a"].dtype == "float32"
    assert inputs["b"].dtype == "int64"
    np.testing.assert_array_equal(inputs["a"], [[[1, 2.5]]] * 3)
    np.testing.assert_array_equal(inputs["b"], [2**53 + 1] * 3)
    inputs, row_format = read({"inputs": {"a": [[1, 2.5]], "b": 7}}, **TWO)
    assert not row_format
    np.testing.assert_array_equal(inputs["a"], [[1, 2.5]])
    assert inputs["b"].shape == ()


def test_the_only_input_needs_no_name():
    for document in ({"instances": [[1], [2]]}, {"inputs": [[1], [2]]}):
        np.testing.assert_array_equal(read(document, a="int32")[0]["a"], [[1], [2]])
    document = {"instances": [{"a": [1]}, {"a": [2]}]}
    np.testing.assert_array_equal(read(document, a="int32")[0]["a"], [[1], [2]])


def test_strings_may_be_base64():
    encoded = {"b64": base64.b64encode(b"\xff\x00").decode()}
    for document in ({"instances": [encoded, "é"]}, {"inputs": [encoded, "é"]}):
        assert read(document, a=STRING)[0]["a"].tolist() == [b"\xff\x00", "é".encode()]
    assert read({"inputs": encoded}, a=STRING)[0]["a"].tolist() == b"\xff\x00"
    assert refusal({"inputs": [{"b64": "="}]}, a=STRING) == "Unable to base64 decode"
    assert refusal({"inputs": [{"b65": ""}]}, a=STRING) == (
        'JSON Value: {\n    "b65": ""\n} not formatted correctly for base64 data'
    )


@pytest.mark.parametrize(
    ("value", "dtype", "message"),
    [
        (1.0, "int32", "JSON Value: 1.0 Type: Number is not of expected type: int32"),
        (2**31, "int32", "JSON Value: 2147483648 Type: Number is not of expected"),
        (2**63, "int64", "JSON Value: 9223372036854775808 Type: Number is not of"),
        (10**20, "int64", "JSON Value: 1e+20 Type: Number is not of expected type"),
        (True, "int32", "JSON Value: true Type: True is not of expected type: int32"),
        (None, "float32", "JSON Value: null Type: Null is not of expected type: float"),
        (
            "1",
            "float64",
            'JSON Value: "1" Type: String is not of expected type: double',
        ),
        ({}, "int64", "JSON Value: {} Type: Object is not of expected type: int64"),
        (1, "bool", "JSON Value: 1 Type: Number is not of expected type: bool"),
        (1, STRING, "JSON Value: 1 Type: Number is not of expected type: string"),
        (
            2**24,
            "float32",
            "Cannot convert JSON value: 16777216 to float without loss of precision.",
        ),
        (
            1e39,
            "float32",
            "Cannot convert JSON value: 1e+39 to float without loss of precision.",
        ),
    ],
)
def test_values_of_another_type(value, dtype, message):
    assert refusal({"inputs": [value]}, a=dtype).startswith(message)


def test_the_largest_values_of_a_type():
    for dtype, value in [
        ("int32", 2**31 - 1),
        ("int64", -(2**63)),
        ("uint64", 2**64 - 1),
        ("float32", 2**24 - 1),
        ("float32", 3e38),
        ("float64", 2**53 - 1),
    ]:
        assert read({"inputs": [value]}, a=dtype)[0]["a"].tolist() == [
            pytest.approx(value, rel=1e-7, abs=0)
        ]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([[1], 2], "JSON Value: 2 found at incorrect level: 2 in the JSON DOM."),
        ([1, [2]], "Encountered list at unexpected level: 1 expected < 1"),
        ([[1], [2, 3]], "Encountered list at unexpected size: 2 at level: 1 expected"),
    ],
)
def test_uneven_lists(value, message):
    assert refusal({"inputs": value}, a="int32").startswith(message)


def test_very_deep_lists():
    deep = json.loads("[" * 500 + "1" + "]" * 500)
    assert refusal({"inputs": deep}, a="int32").startswith("Encountered list at")
    with pytest.raises(serve_json.RequestError, match="JSON Parse error: "):
        serve_json.parse(b"[" * 1_000_000)


@pytest.mark.parametrize(
    ("instances", "message"),
    [
        (
            1,
            "JSON Value: {\n    \"instances\": 1\n} Excepting 'instances' to be",
        ),
        ([], "JSON Value: {\n    \"instances\": []\n} No values in 'instances' array"),
        ([1], "instances is a plain list, but expecting list of objects as multiple"),
        (
            [{"a": 1, "b": 1}, 2],
            "Expecting object but got list at item 1 of input list",
        ),
        (
            [{"a": 1, "c": 1}],
            "Failed to process element: 0 key: c of 'instances' list. Error: "
            "INVALID_ARGUMENT: JSON object: does not have named input: c",
        ),
        (
            [{"a": [1, 2], "b": 1}, {"a": [1], "b": 1}],
            "Failed to process element: 1 key: a of 'instances' list. Error: "
            "INVALID_ARGUMENT: Expecting tensor size: 2 but got: 1",
        ),
        (
            [{"a": [1, 2], "b": 1}, {"a": [[1, 2]], "b": 1}],
            "Failed to process element: 1 key: a of 'instances' list. Error: "
            "INVALID_ARGUMENT: Expecting shape [2] but got: [1,2]",
        ),
    ],
)
def test_rows_that_do_not_fit(instances, message):
    assert refusal({"instances": instances}, **TWO).startswith(message)


def test_a_list_of_values_and_an_object():
    message = "Expecting value/list but got object at item 1 of input list"
    assert refusal({"instances": [1, {"a": 1}]}, a="int32") == message


def test_columns_that_do_not_fit():
    message = "inputs is a plain value/list, but expecting an object as multiple"
    assert refusal({"inputs": [1]}, **TWO).startswith(message)
    assert refusal({"inputs": [1], "instances": [1]}, **TWO).endswith(
        "} Not formatted correctly expecting only one of 'inputs' or 'instances' keys "
        "to exist "
    )


def test_the_name_of_the_signature():
    assert serve_json.signature_name({}) == "serving_default"
    assert serve_json.signature_name({"signature_name": ""}) == "serving_default"
    assert serve_json.signature_name({"signature_name": "x"}) == "x"
    with pytest.raises(serve_json.RequestError) as refused:
        serve_json.signature_name({"signature_name": 1})
    assert str(refused.value) == (
        'JSON Value: {\n    "signature_name": 1\n} not formatted correctly. '
        "'signature_name' key must be a string value."
    )


def test_answers():
    def answer(row_format, **outputs):
        return json.loads(serve_json.answer(outputs, row_format))

    one, two = np.array([[1, 2], [3, 4]], "uint8"), np.array([True, False])
    assert answer(True, a=one) == {"predictions": [[1, 2], [3, 4]]}
    assert answer(False, a=one) == {"outputs": [[1, 2], [3, 4]]}
    assert answer(True, b=two, a=one) == {
        "predictions": [{"a": [1, 2], "b": True}, {"a": [3, 4], "b": False}]
    }
    assert answer(False, b=two, a=one) == {
        "outputs": {"a": [[1, 2], [3, 4]], "b": [True, False]}
    }
    text = np.array([b"\xc3\xa9"], object)
    assert answer(False, a=text) == {"outputs": ["é"]}
    assert answer(False, a_bytes=text) == {"outputs": [{"b64": "w6k="}]}
    floats = np.array([0.1, 1, 1e-30, np.nan, -np.inf], "float32")
    assert serve_json.answer({"a": floats}, False).split("[")[1].split("]")[0] == (
        "0.1, 1.0, 1e-30, NaN, -Infinity"
    )


def test_text_that_is_not_utf8_is_no_error():
    assert "signature_name" in serve_json.parse(b'{"signature_name": "\xff"}')
