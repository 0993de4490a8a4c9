"""Scripts of the checkout, run in a process of their own on the current backend."""

import functools
import os
import pathlib
import subprocess
import sys

import keras
from warm_python import WarmPython, read_at_import

ROOT = pathlib.Path(__file__).resolve().parents[1]
# For processes with several virtual devices, or of another framework: an accelerator is
# taken by the process that tests.
ON_THE_CPU = {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""}


def run_script(
    script: str, *flags: str, **environment: str
) -> subprocess.CompletedProcess:
    """`python script flags`, with the output as text."""
    return _run(str(ROOT / script), *flags, **environment)


def run_code(code: str, folder: str, **environment: str) -> subprocess.CompletedProcess:
    """`python -c code`, where the scripts of `folder` can be imported."""
    code = f"import sys; sys.path.insert(0, {str(ROOT / folder)!r})\n{code}"
    return _run("-c", code, **environment)


def _run(*arguments, **changes):
    environment = {
        **os.environ,
        "KERAS_BACKEND": keras.backend.backend(),
        "PYTHONPATH": str(ROOT),
        **changes,
    }
    warm = _warm_python()
    if read_at_import(environment) == warm.read_at_import:
        return warm.run(arguments, environment)
    return subprocess.run(
        [sys.executable, *arguments],
        env=environment,
        capture_output=True,
        text=True,
    )


_warm_python = functools.cache(WarmPython)
