"""The client's code of docs/serving.md."""

import re

import numpy as np
import pytest
from running_server import RunningServer
from scripts import ROOT

import keras_imm
from keras_imm.serving.server.keras_servable import KerasServable
from keras_imm.serving.server.row_noise import row_normal

pytestmark = pytest.mark.slow("samples digits")


def test_tritons_client_gets_digits():
    pytest.importorskip("tritonclient.http", reason="needs tritonclient")
    page = (ROOT / "docs" / "serving.md").read_text()
    (code,) = re.findall(r"^```python\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    model = keras_imm.FlowMapModel.from_preset("imm_digits")
    names = {}
    with RunningServer(KerasServable(model), name="imm_digits") as server:
        assert '"127.0.0.1:8501"' in code
        exec(code.replace("127.0.0.1:8501", f"127.0.0.1:{server.port}"), names)
        names["client"].close()
    plan = model.sampling_plan
    noise = row_normal(np.array([1, 2]), 64, 0).reshape(2, 8, 8, 1)
    expected = model.generate(
        [3, 7], noise=noise, num_steps=4, guidance_scale=plan.guidance_scale, verbose=0
    )
    found = names["images"]
    assert found.shape == (2, 8, 8, 1) and found.dtype == np.uint8
    difference = np.abs(np.int64(found) - np.int64(model.to_uint8(expected)))
    assert difference.max() <= 1
