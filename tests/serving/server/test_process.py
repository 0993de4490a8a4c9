"""`python -m keras_imm.serving run`: what it listens to, how it begins and ends."""

import argparse
import dataclasses
import http.client
import json
import os
import pathlib
import re
import signal
import socket
import sys
import threading
import urllib.request

import numpy as np
import pytest
from scripts import ROOT
from server_process import ServerProcess, assert_same_images

import keras_imm
from keras_imm.serving import server as package
from keras_imm.serving.__main__ import main
from keras_imm.serving.server import command, loading, running
from keras_imm.serving.server.limits import Limits

pytestmark = pytest.mark.one_backend("a process of a server, and its flags")


def ask(url, body=None):
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(urllib.request.Request(url, data)) as response:
        return response.read()


def images(seeds, labels, **more):
    return {"inputs": {"seed": seeds, "label": labels}, **more}


def test_it_serves_and_ends(tiny_model, tmp_path):
    """With a request under way when it is told to end."""
    model = type(tiny_model).from_config(tiny_model.get_config())
    model.set_weights(tiny_model.get_weights())
    model.class_names = ("Bag", "Boot", "Shirt")
    model.save(tmp_path / "small.keras")
    count = 10_000
    server = ServerProcess(
        str(tmp_path / "small.keras"),
        *("--num_steps=1,3", "--value_range=-3,3", "--host=127.0.0.2"),
        *("--grpc_port=0", f"--max_rows={count}", f"--max_queue={count}"),
    )
    assert server.host == "127.0.0.2"
    # All of 127.0.0.0/8 is this machine, but only one address of it was asked for.
    with socket.socket() as other:
        assert other.connect_ex(("127.0.0.1", server.port)) != 0
    assert '"classNames":["Bag","Boot","Shirt"]' in ask(server.url + "/").decode()
    predict = server.url + "/v1/models/small:predict"
    seeds, labels = [1, 2**40, 3], [0, 1, 3]
    body = images(seeds, labels, signature_name="generate_3_steps")
    found = json.loads(ask(predict, body))["outputs"]
    servable = loading.load(
        tmp_path / "small.keras", value_range=(-3, 3), num_steps=[3]
    )
    inputs = {"seed": np.array(seeds), "label": np.array(labels, "int32")}
    assert_same_images(found, servable.run("generate_3_steps", inputs)["image"])

    answers = []
    large = threading.Thread(
        target=lambda: answers.append(ask(predict, images([7] * count, [0] * count)))
    )
    large.start()
    while (
        f"keras_imm_queue_rows {count:.1f}" not in ask(f"{server.url}/metrics").decode()
    ):
        assert large.is_alive()
    code, output, errors = server.stop(signal.SIGTERM)
    large.join()
    assert code == 0, errors
    assert "Traceback" not in errors
    assert re.search(r"gRPC is at 127.0.0.2:\d+\n", "".join(server.lines))
    assert output.endswith("Stopped.\n")
    assert len(json.loads(answers[0])["outputs"]) == count
    with socket.socket() as other:
        assert other.connect_ex((server.host, server.port)) != 0


@pytest.mark.parametrize(("patience", "signals"), [(0.5, 1), (3600, 2)])
def test_it_ends_within_a_pass(patience, signals):
    """When its patience ends, or a second signal comes."""
    script = pathlib.Path(__file__).with_name("endless_server.py")
    server = ServerProcess(
        f"--timeout_s={patience}",
        command=[sys.executable, script],
        PYTHONPATH=os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
    )
    predict = server.url + "/v1/models/endless:predict"
    body = {"signature_name": "one", "inputs": [1]}

    def fail():
        with pytest.raises((OSError, http.client.HTTPException)):
            ask(predict, body)

    client = threading.Thread(target=fail)
    client.start()
    while "keras_imm_batch_rows_count 1.0" not in ask(server.url + "/metrics").decode():
        assert server.process.poll() is None
    for _ in range(signals - 1):
        server.process.send_signal(signal.SIGTERM)
        while True:  # until it takes nothing new
            with socket.socket() as other:
                if other.connect_ex((server.host, server.port)):
                    break
    code, output, errors = server.stop(signal.SIGTERM)
    client.join()
    assert code == 0, errors
    assert "Traceback" not in errors
    assert output.endswith("Stopped.\n") or signals == 2


def test_it_says_what_is_missing(capsys, tmp_path):
    (tmp_path / "notes.txt").write_text("")
    for model, message in (
        (tmp_path / "nowhere.keras", "There is no model file at"),
        ("imm_digitz", "or a preset: one of imm_digits, "),
        (tmp_path / "nowhere", "must be a .keras file, a SavedModel"),
        (tmp_path, "or the folder of its versions"),
        (tmp_path / "notes.txt", "`model` must be a .keras file, a SavedModel"),
    ):
        assert main(["run", str(model), "--port=0"]) == 1
        assert message in capsys.readouterr().err


@pytest.mark.parametrize("flag", ["--port", "--grpc_port"])
def test_it_says_that_a_port_is_in_use_before_it_loads(flag, capsys, monkeypatch):
    monkeypatch.setattr(loading, "load", None)
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        assert main(["run", "imm_digits", "--port=0", f"{flag}={port}"]) == 1
    error = capsys.readouterr().err
    assert f"port {port}" in error and "in use" in error


def test_a_port_is_whose_came_first():
    """Before it listens, after that, and not when connections of it are left."""
    with running.bound_socket("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        with pytest.raises(OSError, match=f"port {port}: .*in use"):
            running.bound_socket("127.0.0.1", port)
        running.listen(first)
        with pytest.raises(OSError, match="in use"):
            running.bound_socket("127.0.0.1", port)
        with socket.create_connection(("127.0.0.1", port)) as client:
            served, _ = first.accept()
            served.close()  # who closes first keeps the port for a minute
            assert client.recv(1) == b""
    with running.bound_socket("127.0.0.1", port) as second:
        with pytest.raises(OSError, match="in use"):
            running.bound_socket("127.0.0.1", port)
        running.listen(second)


def test_interrupted_while_it_loads(monkeypatch):
    def load(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(loading, "load", load)
    assert main(["run", "imm_digits", "--port=0"]) == 130


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--max_batch_size=0", "max_batch_size"),
        ("--max_delay_ms=-1", "`max_delay_ms` must be a finite number, 0 or more"),
        ("--max_queue=7", "`max_queue` must be at least `max_rows`"),
        ("--timeout_s=0", "timeout_s"),
        ("--max_body_mb=nan", "max_body_mb"),
    ],
)
def test_limits_out_of_their_range(flag, message, capsys):
    assert main(["run", "imm_digits", flag]) == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "flag",
    [
        *("--port=65536", "--port=x", "--num_steps=1,x", "--value_range=a,b"),
        *("--name=a/b", "--max_rows=1.5"),
    ],
)
def test_flags_that_are_none(flag, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["run", "imm_digits", flag])
    assert ended.value.code == 2
    assert flag.split("=")[0] in capsys.readouterr().err


@pytest.mark.parametrize("module", ["aiohttp", "orjson", "prometheus_client", "grpc"])
def test_extras_that_are_not_installed(module, capsys, monkeypatch):
    for name in (
        *("application", "grpc_service", "metrics", "rest_v1", "rest_v2"),
        *("running", "service", "tensor_json"),
    ):
        monkeypatch.delitem(sys.modules, f"{package.__name__}.{name}", raising=False)
        monkeypatch.delattr(package, name, raising=False)
    monkeypatch.setitem(sys.modules, module, None)
    assert main(["run", "imm_digits", "--port=0", "--grpc_port=0"]) == 1
    error = capsys.readouterr().err
    assert module in error
    assert 'pip install "keras_imm[serve]"' in error


def test_names_of_models():
    assert loading.name_of("runs/digits/model.keras") == "model"
    assert loading.name_of("imm_digits") == "imm_digits"
    assert loading.name_of("hf://somebody/clothes") == "clothes"
    assert loading.name_of("served/digits/12") == "digits"
    assert loading.name_of("served/v1.5") == "v1.5"
    assert loading.name_of("a b.keras") == "model"


def test_presets_are_loaded():
    servable = loading.load("imm_digits", max_batch_size=4)
    assert servable.num_labels == 10
    inputs = {"seed": np.arange(3), "label": np.array([1, 2, 3], "int32")}
    found = servable.run("serving_default", inputs)["image"]
    model = keras_imm.FlowMapModel.from_preset("imm_digits")
    assert found.shape == (3, *model.data_shape)
    assert found.std() > 30


def test_the_page_lists_the_flags():
    """docs/serving.md, with the defaults of limits."""
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    page = (ROOT / "docs" / "serving.md").read_text()
    (table,) = re.findall(r"^\| flag \|.*?\n\n", page, re.DOTALL | re.MULTILINE)
    defaults = vars(parser.parse_args(["imm_digits"]))
    flags = {f"--{name}" for name in defaults if name != "model"}
    assert set(re.findall(r"`(--\w+)`", table)) == flags
    for field in dataclasses.fields(Limits):
        assert f"| `--{field.name}` | {defaults[field.name]:g} |" in table
