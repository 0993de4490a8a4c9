"""TF Serving's gRPC, by the messages and stubs of tensorflow-serving-api."""

import asyncio

import numpy as np
import pytest

pytestmark = pytest.mark.one_backend("NumPy alone")

X = np.array([[1.5, -2.0], [0.25, 3.0]], "float32")
N = np.array([4, 2**63 - 2], "int64")


@pytest.fixture(scope="module")
def apis():
    pytest.importorskip("tensorflow")
    return pytest.importorskip("tensorflow_serving.apis")


@pytest.fixture(scope="module")
def stub(apis, server):
    import grpc
    from tensorflow_serving.apis import prediction_service_pb2_grpc

    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        yield prediction_service_pb2_grpc.PredictionServiceStub(channel)


def request_of(signature_name="", name="tiny", version=None, outputs=(), **inputs):
    import tensorflow as tf
    from tensorflow_serving.apis import predict_pb2

    request = predict_pb2.PredictRequest()
    request.model_spec.name = name
    request.model_spec.signature_name = signature_name
    if version is not None:
        request.model_spec.version.value = version
    request.output_filter.extend(outputs)
    for key, value in inputs.items():
        request.inputs[key].CopyFrom(tf.make_tensor_proto(value))
    return request


def outputs_of(response):
    import tensorflow as tf

    return {name: tf.make_ndarray(one) for name, one in response.outputs.items()}


@pytest.mark.parametrize("rows", [1, 2])  # sent as values, and as bytes
def test_predict(stub, rows):
    x, n = X[:rows], N[:rows]
    response = stub.Predict(request_of(x=x, n=n, version=3))
    outputs = outputs_of(response)
    assert {name: one.dtype.name for name, one in outputs.items()} == {
        "y": "float32",
        "m": "int64",
    }
    np.testing.assert_array_equal(outputs["y"], 2 * x)
    np.testing.assert_array_equal(outputs["m"], n + 1)
    spec = response.model_spec
    assert (spec.name, spec.version.value) == ("tiny", 3)
    assert spec.signature_name == "serving_default"


def test_signatures_outputs_and_strings(stub):
    outputs = outputs_of(stub.Predict(request_of("text", n=N)))
    assert outputs["t_bytes"].tolist() == [b"<4>", f"<{2**63 - 2}>".encode()]
    assert [*outputs_of(stub.Predict(request_of(x=X, n=N, outputs=["m"])))] == ["m"]


def test_metadata(stub):
    from tensorflow_serving.apis import get_model_metadata_pb2

    request = get_model_metadata_pb2.GetModelMetadataRequest()
    request.model_spec.name = "tiny"
    request.metadata_field.append("signature_def")
    response = stub.GetModelMetadata(request)
    assert response.model_spec.version.value == 3
    found = get_model_metadata_pb2.SignatureDefMap()
    assert response.metadata["signature_def"].Unpack(found)
    assert set(found.signature_def) == {"serving_default", "one", "text"}
    one = found.signature_def["serving_default"]
    assert one.method_name == "tensorflow/serving/predict"
    assert [dim.size for dim in one.inputs["x"].tensor_shape.dim] == [-1, 2]
    kinds = {key: info.dtype for key, info in [*one.inputs.items()]}
    assert kinds == {"x": 1, "n": 9}  # DT_FLOAT and DT_INT64


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        ({"name": "foo"}, "NOT_FOUND", "Servable not found"),
        ({"version": 9}, "NOT_FOUND", "Servable not found"),
        ({"signature_name": "foo"}, "INVALID_ARGUMENT", "Serving signature name"),
        ({"outputs": ["z"]}, "INVALID_ARGUMENT", "`output_filter` must be some of"),
        ({"n": np.array([4, 5], "int32")}, "INVALID_ARGUMENT", "`n` must be int64"),
        ({"n": np.array([4, 5], "int16")}, "INVALID_ARGUMENT", "`n` must be of a type"),
        ({"n": np.array([-1, 1])}, "INVALID_ARGUMENT", "`n` must not be -1"),
        ({"x": X * np.float32("nan")}, "INVALID_ARGUMENT", "`x` must be of finite"),
        ({"n": np.array([-2, 1])}, "INTERNAL", "The server failed"),
    ],
)
def test_what_it_refuses(stub, options, code, message):
    import grpc

    with pytest.raises(grpc.RpcError) as refused:
        stub.Predict(request_of(**{"x": X, "n": N} | options))
    assert refused.value.code().name == code
    assert refused.value.details().startswith(message)


def test_sizes_that_are_not_those_of_the_values(stub):
    import grpc

    for change in (
        lambda proto: proto.tensor_shape.dim.add(size=2**40),
        lambda proto: proto.tensor_shape.dim.add(size=-2),
        lambda proto: proto.tensor_shape.dim.add(size=3),
        lambda proto: proto.ClearField("tensor_content"),
    ):
        request = request_of("one", n=N)
        change(request.inputs["n"])
        with pytest.raises(grpc.RpcError, match="as many values as its shape"):
            stub.Predict(request)


def test_one_value_for_all_as_tensorflow_writes_it(stub):
    request = request_of("one", n=N)
    proto = request.inputs["n"]
    for values, expected in (([7], [8, 8, 8, 8]), ([1, 2], [2, 3, 3, 3])):
        proto.Clear()
        proto.dtype = 9  # DT_INT64
        proto.tensor_shape.dim.add(size=4)
        proto.int64_val.extend(values)
        answer = stub.Predict(request).outputs["m"]
        assert np.frombuffer(answer.tensor_content, "<i8").tolist() == expected


def test_one_value_for_more_than_a_body_may_have(stub):
    import grpc

    request = request_of("one", n=N)
    proto = request.inputs["n"]
    proto.Clear()
    proto.dtype = 9
    proto.tensor_shape.dim.add(size=2**30)
    proto.int64_val.append(7)
    with pytest.raises(grpc.RpcError, match="as many values as its shape"):
        stub.Predict(request)


def test_what_is_no_message(server):
    import grpc

    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        predict = channel.unary_unary("/tensorflow.serving.PredictionService/Predict")
        with pytest.raises(grpc.RpcError) as refused:
            predict(b"\xff\xff")
    assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT


def test_nothing_new_once_the_server_stops(server, stub, monkeypatch):
    monkeypatch.setattr(server.service, "is_stopping", True)
    with pytest.raises(Exception, match="UNAVAILABLE"):
        stub.Predict(request_of("one", n=N))


def test_answers_are_counted(server, stub):
    def count(status):
        labels = f'route="grpc Predict",status="{status}"'
        name = f"keras_imm_requests_total{{{labels}}}"
        return server.figures().get(name, 0.0)

    before = count("OK"), count("NOT_FOUND")
    stub.Predict(request_of(x=X, n=N))
    with pytest.raises(Exception, match="NOT_FOUND"):
        stub.Predict(request_of(x=X, n=N, name="foo"))
    assert (count("OK"), count("NOT_FOUND")) == (before[0] + 1, before[1] + 1)


def test_a_port_in_use(server):
    from keras_imm.serving.server import grpc_service

    async def listen():
        grpc_service.server(server.service, f"127.0.0.1:{server.grpc_port}")

    with pytest.raises(OSError, match=str(server.grpc_port)):
        asyncio.run(listen())
