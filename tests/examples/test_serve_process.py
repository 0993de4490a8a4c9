"""The server as a process: what it listens to, how it begins and ends."""

import json
import re
import socket
import subprocess
import sys
import threading
import time
import urllib.request

import keras
import numpy as np
import pytest
from keras import ops
from scripts import ROOT
from server_process import Server, assert_same_images, images
from sklearn.datasets import load_digits

import keras_imm
from keras_imm.samplers import SamplingPlan

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow",
    reason="the server has no Keras in it: one backend tests it",
)


def test_it_listens_to_this_machine_alone(server):
    assert server.host == "127.0.0.1"
    # All of 127.0.0.0/8 is this machine, but only one address of it was asked for.
    with socket.socket() as other:
        assert other.connect_ex(("127.0.0.2", server.port)) != 0


def in_range_of_digits(pixels):
    """Bytes of values in [-3, 3] as those of scikit-learn's digits, 0 to 16."""
    digits = load_digits().data
    values = (pixels + 0.5) / 255 * 6 - 3
    low, high = ((x - digits.mean()) / digits.std() * 0.5 for x in (0, 16))
    return np.clip((values - low) / (high - low) * 255, 0, 255)


def test_it_exports_serves_and_ends(tiny_model, reference, tmp_path):
    """With a request under way when it is told to end."""
    tiny_model.save(tmp_path / "model.keras")
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    server = Server(
        f"--model={tmp_path / 'model.keras'}",
        "--num_steps=1,3",
        "--guidance_scale=1.5",
        "--host=127.0.0.2",
        TMPDIR=str(temporary),
    )
    assert server.host == "127.0.0.2"
    assert any(temporary.iterdir())
    path = "/v1/models/model"
    signatures = server.ask(f"{path}/metadata")[1]["metadata"]["signature_def"]
    assert "guidance_scale" in signatures["signature_def"]["generate_3_steps"]["inputs"]
    seeds, labels = list(range(8)), [i % 4 for i in range(8)]
    body = images(seeds, labels, signature_name="generate_1_steps")
    body["inputs"]["guidance_scale"] = [1] * 8
    answer = server.predict(body, f"{path}:predict")[1]["outputs"]
    expected = reference("generate_1_steps", seed=seeds, label=labels)["image"]
    assert np.abs(np.array(answer) - in_range_of_digits(expected)).max() <= 6
    count = 20_000
    answers = []
    large = threading.Thread(
        target=lambda: answers.append(
            server.predict(images(list(range(count)), [0] * count), f"{path}:predict")
        )
    )
    large.start()
    time.sleep(0.3)
    code, output, errors = server.stop()
    large.join()
    assert code == 0, errors
    assert "Traceback" not in errors
    assert output.endswith("Stopped.\n")
    [(status, answer)] = answers
    assert (status, len(answer["outputs"])) == (200, count)
    assert not any(temporary.iterdir())
    with socket.socket() as other:
        assert other.connect_ex((server.host, server.port)) != 0


@pytest.mark.slow("starts a server")
def test_a_model_brings_its_plan_pixels_and_class_names(tiny_model, tmp_path):
    from keras_imm.serving.row_noise import row_normal

    names = ("Bag", "Boot", "</script>")
    pixels = keras_imm.Pixels(scale=30.0, offset=110.0)
    model = type(tiny_model).from_config(tiny_model.get_config())
    model.set_weights(tiny_model.get_weights())
    model.pixels, model.class_names = pixels, names
    model.sampling_plan = SamplingPlan(num_steps=3, guidance_scale=1.5)
    model.save(tmp_path / "model.keras")
    server = Server(f"--model={tmp_path / 'model.keras'}", "--num_steps=1,3")
    seeds, labels = list(range(4)), [0, 1, 2, 3]
    try:
        with urllib.request.urlopen(server.url) as response:
            page = response.read().decode()
        path = "/v1/models/model:predict"
        found = server.predict(images(seeds, labels), path)[1]["outputs"]
    finally:
        server.stop()
    (settings,) = re.findall(r'<script id="settings"[^>]*>(.*?)</script>', page)
    assert json.loads(settings)["classNames"] == [*names]
    noise = ops.convert_to_numpy(row_normal(ops.convert_to_tensor(seeds, "int64"), 16))
    samples = model.generate(labels, noise=noise.reshape(4, 4, 4, 1), verbose=0)
    assert_same_images(found, model.to_uint8(samples))


@pytest.mark.parametrize("flag", ["--model=nowhere.keras", "--port={port}"])
def test_it_says_what_is_missing(server, flag, tmp_path):
    result = subprocess.run(
        [
            sys.executable,
            str(ROOT / "examples" / "serve.py"),
            "--port=0",
            flag.format(port=server.port),
        ],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    if "model" in flag:
        assert "make digits" in result.stderr
        assert "nowhere.keras" in result.stderr
    else:
        assert f"port {server.port}" in result.stderr
        assert "in use" in result.stderr
