"""Scripts of the checkout, run in a process of their own on the current backend."""

import os
import pathlib
import subprocess
import sys

import keras
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def run_script():
    def run(script, *flags):
        return subprocess.run(
            [sys.executable, str(ROOT / script), *flags],
            env={
                **os.environ,
                "KERAS_BACKEND": keras.backend.backend(),
                "PYTHONPATH": str(ROOT),
            },
            capture_output=True,
            text=True,
        )

    return run
