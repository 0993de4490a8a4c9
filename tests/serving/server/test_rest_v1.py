"""TF Serving's REST, as its documentation says: paths, forms and refusals."""

import base64
import gzip
import json

import numpy as np
import pytest

pytestmark = pytest.mark.one_backend("NumPy alone")

PREDICT = "/v1/models/tiny:predict"
ROW = {"x": [1.5, -2.0], "n": 4}


def test_rows_and_columns(server):
    rows = {"instances": [ROW, {"n": 2**62, "x": [0.1, 3]}]}
    expected = [
        {"m": 5, "y": [3.0, -4.0]},
        {"m": 2**62 + 1, "y": pytest.approx([0.2, 6.0])},
    ]
    assert server.ask(PREDICT, rows) == (200, {"predictions": expected})
    columns = {"inputs": {"x": [[1.5, -2.0], [0.1, 3]], "n": [4, 2**62]}}
    status, answer = server.ask(PREDICT, columns)
    assert status == 200
    assert answer["outputs"]["m"] == [row["m"] for row in expected]
    assert answer["outputs"]["y"] == [row["y"] for row in expected]


def test_the_signature_is_chosen(server):
    for body in (
        {"instances": [{"n": 1}, {"n": -7}]},
        {"instances": [1, -7]},
        {"inputs": {"n": [1, -7]}},
        {"inputs": [1, -7]},
    ):
        status, answer = server.ask(PREDICT, {"signature_name": "one", **body})
        kind = "predictions" if "instances" in body else "outputs"
        assert (status, answer) == (200, {kind: [2, -6]})


def test_bytes_are_base64(server):
    body = {"signature_name": "text", "inputs": [1, 22]}
    answer = server.ask(PREDICT, body)[1]["outputs"]
    assert [base64.b64decode(one["b64"], validate=True) for one in answer] == [
        b"<1>",
        b"<22>",
    ]


def test_numbers_are_float32(server):
    x = np.random.default_rng(0).standard_normal((9, 2), "float32")
    body = {"inputs": {"x": x.tolist(), "n": [0] * 9}}
    answer = server.ask(PREDICT, body)[1]["outputs"]["y"]
    np.testing.assert_array_equal(np.float32(answer), 2 * x)
    # With no more digits than a float32 has.
    assert all(np.float32(y).astype(str) == str(y) for y in np.ravel(answer))


def one(n):
    return {"signature_name": "one", "inputs": n}


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("", "JSON Parse error: "),
        ("instances = [1]", "JSON Parse error: "),
        ('{"instances": ', "JSON Parse error: "),
        ('{"signature_name": "one", "inputs": [NaN]}', "JSON Parse error: "),
        (b'{"signature_name": "\xff"}', "JSON Parse error: "),
        ("[" * 100_000, "JSON Parse error: "),
        ("[1]", "The body must be a JSON object"),
        ("{}", "A request must have one of 'inputs' and 'instances'"),
        ({"inputs": [1], "instances": [1]}, "A request must have one of"),
        ({"instances": []}, "'instances' must be a list"),
        ({"instances": {"n": 1}}, "'instances' must be a list"),
        ({"instances": [ROW, {"n": 1}]}, "All 'instances' must have the same names"),
        ({"instances": [ROW, 1]}, "All 'instances' must have the same names"),
        ({"instances": [1, ROW]}, "All 'instances' must have the same names"),
        ({"inputs": [1]}, "A value must be given for each of x, n by its name"),
        ({"instances": [ROW], "signature_name": "foo"}, "Serving signature name"),
        ({"instances": [ROW], "signature_name": 1}, "`signature_name` must be"),
        ({"inputs": {"n": [1]}}, "Missing named input: x"),
        ({"inputs": {"n": [1], "x": [[1, 2]], "z": 1}}, "`z` is no input"),
        (one([1.5]), "`n` must be of int64 values"),
        (one(["1"]), "`n` must be of int64 values"),
        (one([None]), "`n` must be of int64 values"),
        (one([True]), "`n` must be of int64 values"),
        (one([1, True]), "`n` must be of int64 values"),
        (one(["x" * 2**19, *range(2**16)]), "`n` must be of int64 values"),
        (one([2**63]), "`n` must be of int64 values"),
        (one([2**70]), "`n` must be of int64 values"),
        (one([{"b64": "eA=="}]), "`n` must be of int64 values"),
        (one([[1], [1, 2]]), "`n` must be lists of one length each"),
        (one(1), "`n` must be int64 of shape [rows]"),
        (one([[1]]), "`n` must be int64 of shape [rows]"),
        (one([]), "A request must have at least one row"),
        ({"inputs": {"n": [1], "x": [[1, 1e39]]}}, "`x` must be of float32 values"),
        ({"inputs": {"n": [1], "x": [[1]]}}, "`x` must be float32 of shape [rows, 2]"),
        ({"inputs": {"n": [1, 2], "x": [[1, 2]]}}, "All inputs must have as many rows"),
        (one([0] * 501), "A request may have 500 rows. Received: 501"),
        (one([1, -1]), "`n` must not be -1."),  # what only the model knows
    ],
)
def test_what_it_refuses(server, body, message):
    status, answer = server.ask(PREDICT, body)
    assert status == 400
    assert [*answer] == ["error"]
    assert answer["error"].startswith(message)


@pytest.mark.parametrize(
    ("method", "path", "status", "message"),
    [
        ("POST", "foo:predict", 404, "Servable not found for request: Latest(foo)"),
        ("POST", "tiny/versions/9:predict", 404, "Servable not found for request: "),
        ("POST", f"tiny/versions/{'9' * 5000}:predict", 404, "Servable not found"),
        ("GET", "foo/metadata", 404, "Servable not found for request: Latest(foo)"),
        ("GET", "foo", 404, "Servable not found for request: Latest(foo)"),
        ("POST", "tiny:classify", 404, "Not Found"),
        ("GET", "tiny:predict", 405, "Method Not Allowed"),
        ("PUT", "tiny", 405, "Method Not Allowed"),
        ("GET", "", 404, "Not Found"),
    ],
)
def test_paths_that_it_refuses(server, method, path, status, message):
    body = one([1]) if method == "POST" else None
    found, answer = server.ask(f"/v1/models/{path}", body, method)
    assert found == status
    assert answer["error"].startswith(message)


def test_status(server):
    state = {
        "version": "3",
        "state": "AVAILABLE",
        "status": {"error_code": "OK", "error_message": ""},
    }
    for path in ("tiny", "tiny/versions/3"):
        answer = server.ask(f"/v1/models/{path}")
        assert answer == (200, {"model_version_status": [state]})
    path = "/v1/models/tiny/versions/3:predict"
    assert server.ask(path, one([1])) == (200, {"outputs": [2]})


def test_metadata(server):
    status, answer = server.ask("/v1/models/tiny/metadata")
    assert status == 200
    spec = {"name": "tiny", "signature_name": "", "version": "3"}
    assert answer["model_spec"] == spec
    signature = answer["metadata"]["signature_def"]["signature_def"]["serving_default"]
    assert signature["method_name"] == "tensorflow/serving/predict"
    assert {name: one["dtype"] for name, one in signature["inputs"].items()} == {
        "x": "DT_FLOAT",
        "n": "DT_INT64",
    }
    assert signature["outputs"]["y"]["tensor_shape"] == {
        "dim": [{"size": "-1", "name": ""}, {"size": "2", "name": ""}],
        "unknown_rank": False,
    }


def test_bodies_that_are_not_compressed_as_they_say(server):
    status, answer = server.ask(PREDICT, b"{}" * 99, Content_Encoding="gzip")
    assert status == 400
    assert answer["error"].startswith("The body cannot be read")
    assert server.fetch(PREDICT, b"{}" * 99, Content_Encoding="deflate")[0] == 400


def test_compressed_bodies_are_as_large_as_what_they_hold(server):
    body = gzip.compress(b" " * 2**22 + json.dumps(one([3])).encode())
    assert len(body) < 2**20
    assert server.ask(PREDICT, body, Content_Encoding="gzip")[0] == 413
    body = gzip.compress(b" " * 2**19 + json.dumps(one([3])).encode())
    answer = server.ask(PREDICT, body, Content_Encoding="gzip")
    assert answer == (200, {"outputs": [4]})


def test_bodies_up_to_the_limit(server):
    body = json.dumps(one([3]))
    assert server.ask(PREDICT, body + " " * 900_000) == (200, {"outputs": [4]})
    status, answer = server.ask(PREDICT, body + " " * 2**20)
    assert status == 413
    assert answer["error"].startswith("Request Entity Too Large")


def test_text_of_the_limits(server):
    """A body of the size of the limit that is one list in another."""
    status, answer = server.ask(PREDICT, '{"inputs": ' + "[" * 1_000_000)
    assert status == 400
    assert answer["error"].startswith("JSON Parse error: ")
