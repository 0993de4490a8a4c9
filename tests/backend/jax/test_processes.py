"""Two JAX processes of two devices each, against this one."""

import concurrent.futures
import socket

import keras
import numpy as np
import pytest
from backend.several_devices.children import seen_by
from xla_flags import xla_flags

pytestmark = [
    pytest.mark.slow("child processes"),
    pytest.mark.skipif(keras.backend.backend() != "jax", reason="Processes of JAX"),
]


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("hosts")


@pytest.fixture(scope="module")
def seen(folder):
    address = f"127.0.0.1:{free_port()}"

    def run(index):
        return seen_by(
            "jax",
            "jax/process_child.py",
            folder,
            arguments=(address, str(index)),
            seen=f"{index}/seen.json",
            XLA_FLAGS=xla_flags(devices=2),
            JAX_ENABLE_X64="1",
        )

    with concurrent.futures.ThreadPoolExecutor() as threads:
        return list(threads.map(run, range(2)))


def test_processes_know_each_other(seen):
    assert [one["process"] for one in seen] == [[0, 2, 4, True], [1, 2, 4, False]]


def test_processes_end_alike(seen):
    first, second = seen
    assert first["losses"] == second["losses"]
    assert first["evaluate"] == second["evaluate"]
    assert first["state"] == second["state"]
    assert first["samples"] == second["samples"]


def test_the_update_is_that_of_one_device(seen, golden):
    np.testing.assert_allclose(seen[0]["losses"], golden["losses"], rtol=1e-5)
    np.testing.assert_allclose(seen[0]["state"], golden["state"], rtol=0, atol=1e-12)


@pytest.fixture(scope="module")
def golden(tmp_path_factory):
    folder = tmp_path_factory.mktemp("one")
    return seen_by("jax", "several_devices/one_device.py", folder, JAX_ENABLE_X64="1")


def test_the_first_process_saves_without_the_other(seen, folder):
    assert (folder / "model.keras").stat().st_size > 0
    assert all(one["restored"] for one in seen)
