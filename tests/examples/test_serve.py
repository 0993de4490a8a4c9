"""The server's REST interface, against TensorFlow and what TF Serving's sources say."""

import asyncio
import base64
import io
import json

import aiohttp
import keras
import numpy as np
import pytest
from PIL import Image
from server_process import assert_same_images, images

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow",
    reason="the server has no Keras in it: one backend tests it",
)

SEED_OF_A_FLOAT = '{"instances": [{"seed": 1.5, "label": 0}]}'
ROW = {"seed": 1, "label": 0}
NOT_ALL = (
    "of 'instances' list. JSON object: {\n    \"seed\": 1\n} keys must be equal to: "
)


def test_rows_and_columns(server, reference):
    seeds, labels = [1, 2**32 + 1, 2**63 - 1, -(2**63)], [0, 0, 2, 3]
    expected = reference(seed=seeds, label=labels)["image"]
    assert np.abs(np.int64(expected[0]) - np.int64(expected[1])).max() > 20
    status, answer = server.predict(images(seeds, labels))
    assert (status, [*answer]) == (200, ["outputs"])
    assert_same_images(answer["outputs"], expected)
    rows = [{"seed": s, "label": n} for s, n in zip(seeds, labels, strict=True)]
    status, answer = server.predict({"instances": rows})
    assert (status, [*answer]) == (200, ["predictions"])
    assert_same_images(answer["predictions"], expected)


def test_the_signature_is_chosen(server, reference):
    expected = {
        n: reference(f"generate_{n}_steps", seed=[5], label=[1])["image"]
        for n in (1, 2)
    }
    assert np.abs(np.int64(expected[1]) - np.int64(expected[2])).max() > 2
    for n, image in expected.items():
        body = images([5], [1], signature_name=f"generate_{n}_steps")
        assert_same_images(server.predict(body)[1]["outputs"], image)


def test_bytes_are_base64(server, reference):
    body = {"signature_name": "serving_png", "instances": [ROW, {**ROW, "label": 2}]}
    answer = server.predict(body)[1]["predictions"]
    decoded = [base64.b64decode(row["b64"], validate=True) for row in answer]
    pictures = [np.asarray(Image.open(io.BytesIO(png))) for png in decoded]
    expected = reference(seed=[1, 1], label=[0, 2])["image"][..., 0]
    assert_same_images(pictures, expected)


def test_numbers_are_float32(server, reference):
    noise = np.random.default_rng(0).standard_normal((2, 4, 4, 1), "float32")
    body = {
        "signature_name": "generate_from_noise",
        "inputs": {"noise": noise.tolist(), "label": [0, 1]},
    }
    answer = server.predict(body)[1]["outputs"]
    expected = reference("generate_from_noise", noise=noise, label=[0, 1])["image"]
    np.testing.assert_allclose(answer, expected, rtol=1e-4, atol=1e-5)
    # With no more digits than a float32 has.
    assert all(np.float32(x).astype(str) == str(x) for x in np.ravel(answer))


def test_a_request_may_be_larger_than_a_pass(server, reference):
    seeds, labels = list(range(300)), [i % 4 for i in range(300)]
    expected = reference(seed=seeds, label=labels)["image"]
    assert_same_images(server.predict(images(seeds, labels))[1]["outputs"], expected)


def test_200_concurrent_requests(server, reference):
    rng = np.random.default_rng(1)
    bodies = [
        images(
            rng.integers(-(2**63), 2**63, 1 + i % 3).tolist(),
            rng.integers(0, 4, 1 + i % 3).tolist(),
            signature_name=f"generate_{1 + i % 2}_steps",
        )
        for i in range(200)
    ]
    for i in range(0, 200, 20):
        bodies[i]["inputs"]["label"] = [4] * (1 + i % 3)

    async def ask(session, body):
        url = f"{server.url}/v1/models/tiny:predict"
        async with session.post(url, json=body) as response:
            return response.status, await response.json()

    async def ask_all():
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(connector=connector) as session:
            return await asyncio.gather(*(ask(session, body) for body in bodies))

    answers = asyncio.run(ask_all())
    assert [i for i, (status, _) in enumerate(answers) if status != 200] == [
        *range(0, 200, 20)
    ]
    for i, (body, (_, answer)) in enumerate(zip(bodies, answers, strict=True)):
        if i % 20:
            expected = reference(body["signature_name"], **body["inputs"])["image"]
            assert_same_images(answer["outputs"], expected)
        else:
            assert "must be in [0, 3]" in answer["error"]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("", "JSON Parse error: The document is empty. at offset: 0"),
        ("instances = [1]", "JSON Parse error: Invalid value. at offset: 0"),
        ('{"instances": ', "JSON Parse error: Invalid value. at offset: 14"),
        ("[1]", "JSON Value: [\n    1\n] Is not object"),
        ("{}", "Missing 'inputs' or 'instances' key"),
        (
            SEED_OF_A_FLOAT,
            "Failed to process element: 0 key: seed of 'instances' list. Error: "
            "INVALID_ARGUMENT: JSON Value: 1.5 Type: Number is not of expected type: "
            "int64",
        ),
        (
            images([1], ["0"]),
            'JSON Value: "0" Type: String is not of expected type: int32',
        ),
        (images([2**63], [0]), "JSON Value: 9223372036854775808 Type: Number is not"),
        ({"inputs": {"seed": [1]}}, "Missing named input: label in 'inputs' object."),
        (
            {"instances": [{"seed": 1}]},
            f"Failed to process element: 0 {NOT_ALL}label,seed",
        ),
        (
            {"instances": [ROW], "signature_name": "foo"},
            'Serving signature name: "foo" not found in signature def',
        ),
        # What only the graph knows.
        (images([1], [4]), "assertion failed: [`label` must be in [0, 3]"),
        (images([1, 2], [0, 0, 0]), ""),
        (images([1], 0), ""),
        (
            {
                "signature_name": "generate_from_noise",
                "inputs": {"noise": [[[[0]]]], "label": [0]},
            },
            "",
        ),
    ],
)
def test_what_it_refuses(server, body, message):
    status, answer = server.predict(body)
    assert status == 400
    assert [*answer] == ["error"]
    assert answer["error"].startswith(message)


@pytest.mark.parametrize(
    ("method", "path", "status", "message"),
    [
        ("POST", "foo:predict", 404, "Servable not found for request: Latest(foo)"),
        (
            "POST",
            "tiny/versions/9:predict",
            404,
            "Servable not found for request: Specific(tiny, 9)",
        ),
        (
            "POST",
            "tiny/labels/best:predict",
            400,
            "Unrecognized servable version label: best",
        ),
        (
            "POST",
            f"tiny/versions/{2**64}:predict",
            400,
            f"Failed to convert version: {2**64} to numeric.",
        ),
        (
            "POST",
            "tiny:classify",
            400,
            "Expected classification signature method_name to be "
            "tensorflow/serving/classify. Was: tensorflow/serving/predict",
        ),
        ("GET", "tiny:predict", 400, "Malformed request: GET /v1/models/tiny:predict"),
        ("POST", "tiny", 400, "Malformed request: POST /v1/models/tiny"),
        ("PUT", "tiny", 400, "Malformed request: PUT /v1/models/tiny"),
        ("GET", "", 400, "Malformed request: GET /v1/models/"),
        ("GET", "foo", 404, "Could not find any versions of model foo"),
        ("GET", "tiny/versions/9", 404, "Could not find version 9 of model tiny"),
        ("GET", "foo/metadata", 404, "Servable not found for request: Latest(foo)"),
    ],
)
def test_paths_that_it_refuses(server, method, path, status, message):
    body = {"instances": [ROW]} if method == "POST" else None
    answer = server.ask(f"/v1/models/{path}", body, method)
    assert answer == (status, {"error": message})


def test_status(server):
    state = {
        "version": "10",
        "state": "AVAILABLE",
        "status": {"error_code": "OK", "error_message": ""},
    }
    for path in ("tiny", "tiny/versions/10"):
        assert server.ask(f"/v1/models/{path}") == (
            200,
            {"model_version_status": [state]},
        )
    assert server.predict(images([1], [0]), "/v1/models/tiny/versions/10:predict")[
        0
    ] == (200)


def test_metadata(server):
    status, answer = server.ask("/v1/models/tiny/metadata")
    assert status == 200
    assert answer["model_spec"] == {
        "name": "tiny",
        "signature_name": "",
        "version": "10",
    }
    signature = answer["metadata"]["signature_def"]["signature_def"]["flow_map"]
    assert signature["method_name"] == "tensorflow/serving/predict"
    assert set(signature["inputs"]) == {"x_t", "t", "s", "label"}
    assert signature["inputs"]["x_t"]["dtype"] == "DT_FLOAT"
    assert signature["outputs"]["x_s"]["tensor_shape"] == {
        "dim": [{"size": str(n), "name": ""} for n in (-1, 4, 4, 1)],
        "unknown_rank": False,
    }


def test_a_body_of_10_megabytes(server, reference):
    body = json.dumps(images([3], [1])) + " " * 10_000_000
    status, answer = server.predict(body)
    assert status == 200
    assert_same_images(answer["outputs"], reference(seed=[3], label=[1])["image"])
    status, answer = server.predict("[" * 10_000_000)
    assert status == 400
    assert answer["error"].startswith("JSON Parse error: ")
    status, answer = server.predict('{"inputs": "' + "x" * 10_000_000)
    assert answer["error"].endswith(f"in string. at offset: {10_000_012}")
