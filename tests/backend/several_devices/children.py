"""Runs a script of tests/backend in processes of its own and reads what it saw."""

import json
import os
import pathlib
import subprocess
import sys

from scripts import ON_THE_CPU

HERE = pathlib.Path(__file__).parent
TESTS = HERE.parents[1]
PATHS = (TESTS.parent, TESTS, HERE)


def seen_by(
    backend,
    script,
    folder,
    launcher=(),
    arguments=(),
    seen="seen.json",
    **environment,
):
    """The JSON that a script writes into the folder it is given."""
    result = subprocess.run(
        [sys.executable, *launcher, HERE.parent / script, folder, *arguments],
        env={
            **os.environ,
            "KERAS_BACKEND": backend,
            "OMP_NUM_THREADS": "1",
            **ON_THE_CPU,
            "PYTHONPATH": os.pathsep.join(map(str, PATHS)),
            **environment,
        },
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr[-4000:]
    return json.loads((pathlib.Path(folder) / seen).read_text())
