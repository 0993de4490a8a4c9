"""Scripts of the checkout, run in a process of their own on the current backend."""

import functools
import os
import pathlib
import subprocess
import sys

import keras
from fork_server import ForkServer

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
    server, imported_with = _fork_server()
    if _read_at_import(environment) == imported_with:
        run = server.start(*arguments, environment=environment)
        return subprocess.CompletedProcess(
            arguments, run.wait(), run.stdout, run.stderr
        )
    return subprocess.run(
        [sys.executable, *arguments],
        env=environment,
        capture_output=True,
        text=True,
    )


@functools.cache
def _fork_server():
    return ForkServer(), _read_at_import(os.environ)


def _read_at_import(environment):
    """What frameworks read of an environment when they are imported."""
    names = ("CUDA_", "JAX_", "KERAS_", "OMP_", "TF_", "XLA_")
    return {k: v for k, v in environment.items() if k.startswith(names)}
