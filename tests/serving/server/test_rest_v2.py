"""KServe's protocol, by the client of Triton and by hand."""

import json

import numpy as np
import pytest

pytestmark = pytest.mark.one_backend("NumPy alone")

INFER = "/v2/models/tiny/infer"
X = np.array([[1.5, -2.0], [0.25, 3.0], [1e-30, 7.0]], "float32")
N = np.array([4, -(2**63), 2**63 - 2], "int64")


@pytest.fixture(scope="module")
def triton():
    return pytest.importorskip("tritonclient.http")


@pytest.fixture(scope="module")
def client(triton, server):
    client = triton.InferenceServerClient(f"127.0.0.1:{server.port}")
    yield client
    client.close()


def inputs_of(triton, binary, **arrays):
    types = {"float32": "FP32", "int64": "INT64"}
    inputs = []
    for name, array in arrays.items():
        kind = types[array.dtype.name]
        inputs.append(triton.InferInput(name, list(array.shape), kind))
        inputs[-1].set_data_from_numpy(array, binary_data=binary)
    return inputs


def test_tritons_client_sees_server_and_model(client):
    assert client.is_server_live() and client.is_server_ready()
    assert client.is_model_ready("tiny") and client.is_model_ready("tiny", "3")
    assert not client.is_model_ready("other") and not client.is_model_ready("tiny", "2")
    about = client.get_server_metadata()
    assert about["name"] == "keras_imm"
    assert about["extensions"] == ["binary_tensor_data"]
    assert client.get_model_metadata("tiny") == {
        "name": "tiny",
        "versions": ["3"],
        "platform": "doubling",
        "inputs": [
            {"name": "x", "datatype": "FP32", "shape": [-1, 2]},
            {"name": "n", "datatype": "INT64", "shape": [-1]},
        ],
        "outputs": [
            {"name": "y", "datatype": "FP32", "shape": [-1, 2]},
            {"name": "m", "datatype": "INT64", "shape": [-1]},
        ],
    }
    assert client.get_model_metadata("tiny", "3")["name"] == "tiny"


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("outputs", ["default", "binary", "json"])
def test_tritons_client_gets_what_is_right(client, triton, binary_in, outputs):
    wanted = None
    if outputs != "default":
        wanted = [
            triton.InferRequestedOutput(name, binary_data=outputs == "binary")
            for name in ("m", "y")
        ]
    answer = client.infer(
        "tiny", inputs_of(triton, binary_in, n=N, x=X), "3", wanted, request_id="7"
    )
    for name, expected in (("m", N + 1), ("y", 2 * X)):
        found = answer.as_numpy(name)
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected)
    about = answer.get_response()
    assert (about["model_name"], about["model_version"]) == ("tiny", "3")
    assert about["id"] == "7"


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_tritons_client_may_compress(client, triton, algorithm):
    answer = client.infer(
        "tiny",
        inputs_of(triton, True, n=N, x=X),
        request_compression_algorithm=algorithm,
        response_compression_algorithm=algorithm,
    )
    np.testing.assert_array_equal(answer.as_numpy("m"), N + 1)


def test_a_parameter_chooses_the_signature(client, triton):
    answer = client.infer(
        "tiny",
        inputs_of(triton, True, n=N),
        parameters={"signature_name": "text"},
    )
    texts = [f"<{n}>".encode() for n in N]
    assert answer.as_numpy("t_bytes").tolist() == texts


def test_tritons_client_is_told_what_is_wrong(client, triton):
    with pytest.raises(triton.InferenceServerException, match="Servable not found"):
        client.infer("other", inputs_of(triton, True, n=N, x=X))
    with pytest.raises(triton.InferenceServerException, match="Missing named input: x"):
        client.infer("tiny", inputs_of(triton, True, n=N))


def body(n=None, **more):
    one = {"name": "n", "datatype": "INT64", "shape": [1], "data": [3]}
    parameters = {"signature_name": "one"}
    return {"inputs": [one | (n or {})], "parameters": parameters} | more


def test_plain_json(server):
    status, answer = server.ask(INFER, body({"shape": [2], "data": [3, 5]}))
    assert status == 200
    output = {"name": "m", "datatype": "INT64", "shape": [2], "data": [4, 6]}
    assert answer["outputs"] == [output]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "JSON Parse error"),
        ({}, "`inputs` must be a list of objects"),
        ({"inputs": [1]}, "`inputs` must be a list of objects"),
        (body(parameters=[]), "`parameters` must be an object"),
        (body(parameters={"signature_name": "foo"}), "Serving signature name"),
        (body(parameters={"signature_name": 1}), "`signature_name` must be"),
        (body({"name": "z"}), "`inputs` must be each of n once. Received: z"),
        (body(inputs=2 * body()["inputs"]), "`inputs` must be each of n once"),
        (body({"datatype": "INT32"}), "`datatype` of n must be INT64"),
        (body({"shape": "1"}), "`shape` of n must be a list of sizes"),
        (body({"shape": [-1]}), "`shape` of n must be a list of sizes"),
        (body({"shape": [2**40]}), "`shape` of n must be a list of sizes"),
        (body({"shape": [2]}), "`shape` of n must be that of its 1 values"),
        (body({"shape": [2**30] * 5}), "`shape` of n must be that of its 1 values"),
        (body({"shape": [1, 1]}), "`n` must be int64 of shape [rows]"),
        (body({"data": [1.5]}), "`n` must be of int64 values"),
        (body({"data": None}), "`n` must be of int64 values"),
        (body({"parameters": {"binary_data_size": 8}}), "`binary_data_size` of n"),
        (body({"parameters": {"binary_data_size": -1}}), "`binary_data_size` of n"),
        (body(outputs=[{"name": "z"}]), "`outputs` must be some of m. Received: z"),
        (body(parameters={"signature_name": "text"}), "t_bytes is of bytes"),
    ],
)
def test_what_it_refuses(server, content, message):
    status, answer = server.ask(INFER, content)
    assert status == 400
    assert answer["error"].startswith(message)


@pytest.mark.parametrize(
    ("size", "data", "length", "message"),
    [
        (8, b"12345678", "x", "`Inference-Header-Content-Length` must be a number"),
        (8, b"12345678", "9" * 5000, "`Inference-Header-Content-Length` must be"),
        (8, b"12345678", "9999", "`Inference-Header-Content-Length` must be a number"),
        (8, b"1234567", None, "`binary_data_size` of n must be a number up to the 7"),
        (8, b"123456789", None, "There are 1 bytes more than inputs have"),
        (7, b"1234567", None, "The data of n must be whole int64 values"),
        (16, b"1" * 16, None, "`shape` of n must be that of its 2 values"),
    ],
)
def test_bytes_that_it_refuses(server, size, data, length, message):
    head = json.dumps(body({"parameters": {"binary_data_size": size}})).encode()
    length = str(len(head)) if length is None else length
    status, answer = server.ask(
        INFER, head + data, Inference_Header_Content_Length=length
    )
    assert status == 400
    assert answer["error"].startswith(message)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_numbers_in_bytes_are_finite_as_those_in_json(server, value):
    x, n = np.array([[1, value]], "<f4").tobytes(), np.array([1], "<i8").tobytes()
    inputs = [
        {"name": name, "datatype": datatype, "shape": shape, "parameters": size}
        for name, datatype, shape in (("x", "FP32", [1, 2]), ("n", "INT64", [1]))
        for size in ({"binary_data_size": 8},)
    ]
    head = json.dumps({"inputs": inputs}).encode()
    status, answer = server.ask(
        INFER, head + x + n, Inference_Header_Content_Length=str(len(head))
    )
    assert (status, answer["error"]) == (400, "`x` must be of finite values.")
