"""docs/serving.md: its commands and calls are those of the library."""

import inspect
import json
import re

import numpy as np
import pytest
from running_server import RunningServer
from scripts import ROOT

from keras_imm import serving
from keras_imm.serving.server import loading

pytestmark = pytest.mark.one_backend("a page, and what it says")

PAGE = (ROOT / "docs" / "serving.md").read_text()


@pytest.fixture(scope="module")
def server():
    servable = loading.load("imm_digits", max_batch_size=4)
    with RunningServer(servable, "imm_digits") as server:
        yield server


def test_every_export_is_called_as_it_can_be():
    calls = re.findall(r"^\|[^|]*\| `(export_\w+)\((.*?)\)`", PAGE, re.MULTILINE)
    assert {name for name, _ in calls} == set(serving.__all__)
    for name, arguments in calls:
        signature = inspect.signature(getattr(serving, name))
        eval(f"bind({arguments})", {"bind": signature.bind, "model": None})


@pytest.mark.slow("exports, two of them in another process")
def test_what_was_written_is_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ((block),) = re.findall(r"```python\n(import jax.*?)```", PAGE, re.DOTALL)
    names = {}
    exec(block, names)
    inputs = {"labels": names["label"], "noise": names["noise"], "verbose": 0}
    images = names["model"].generate(**inputs)
    # OpenVINO computes in bfloat16 where the processor has it.
    errors = {"onnx": 1e-4, "torch": 1e-4, "jax": 1e-4, "openvino": 0.2}
    assert {f"from_{name}" for name in errors} == {n for n in names if "from_" in n}
    for name, error in errors.items():
        np.testing.assert_allclose(names[f"from_{name}"], images, atol=error)
    assert names["pictures"].shape == (2, 8, 8, 1)


def test_the_request_of_curl(server):
    ((body, path),) = re.findall(r"curl -d '(.*)' 127\.0\.0\.1:8501(\S+)", PAGE)
    status, answer = server.ask(path, body)
    assert status == 200
    assert np.shape(answer["predictions"]) == (1, 8, 8, 1)
    (instance,) = json.loads(body)["instances"]
    assert instance.keys() == {"seed", "label"}


def test_tritons_client(server):
    pytest.importorskip("tritonclient.http")
    ((block),) = re.findall(r"```python\n(import numpy.*?)```", PAGE, re.DOTALL)
    assert "127.0.0.1:8501" in block
    names = {}
    exec(block.replace(":8501", f":{server.port}"), names)
    names["client"].close()
    assert names["images"].shape == (2, 8, 8, 1)
    assert names["images"].dtype == np.uint8
    body = {
        "signature_name": "generate_4_steps",
        "inputs": {"seed": [1, 2], "label": [3, 7]},
    }
    found = server.ask("/v1/models/imm_digits:predict", body)[1]["outputs"]
    np.testing.assert_array_equal(names["images"], found)
