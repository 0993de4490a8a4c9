"""Scripts of the checkout, run in a process of their own on the current backend."""

import os
import pathlib
import subprocess
import sys

import keras

ROOT = pathlib.Path(__file__).resolve().parents[1]
# For processes with several virtual devices, or of another framework: an accelerator is
# taken by the process that tests.
ON_THE_CPU = {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""}


def run_script(
    script: str, *flags: str, **environment: str
) -> subprocess.CompletedProcess:
    """`python script flags`, with the output as text."""
    return _run(str(ROOT / script), *flags, **environment)


def run_code(code: str, folder: str) -> subprocess.CompletedProcess:
    """`python -c code`, where the scripts of `folder` can be imported."""
    return _run("-c", f"import sys; sys.path.insert(0, {str(ROOT / folder)!r})\n{code}")


def _run(*arguments, **environment):
    return subprocess.run(
        [sys.executable, *arguments],
        env={
            **os.environ,
            "KERAS_BACKEND": keras.backend.backend(),
            "PYTHONPATH": str(ROOT),
            **environment,
        },
        capture_output=True,
        text=True,
    )
