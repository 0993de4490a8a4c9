"""What a process without Keras gets from an exported sampler."""

import os
import pathlib
import subprocess
import sys
import tempfile

import numpy as np

PROCESS = pathlib.Path(__file__).parent / "serving" / "without_keras.py"


def answers(framework, path, groups):
    """The images for each group of inputs, by its name, and what was printed.

    Args:
        framework: One that `without_keras.py` knows.
        path: What was exported.
        groups: Lists of arrays in the order of the inputs, by any name.
    """
    arrays = {
        f"{name}/{i}": array
        for name, inputs in groups.items()
        for i, array in enumerate(inputs)
    }
    with tempfile.TemporaryDirectory() as folder:
        given, found = (os.path.join(folder, f"{name}.npz") for name in "ab")
        np.savez(given, **arrays)
        result = subprocess.run(
            [sys.executable, PROCESS, framework, path, given, found],
            env={k: v for k, v in os.environ.items() if not k.startswith("PYTHON")},
            cwd=folder,
            capture_output=True,
            text=True,
        )
        assert result.returncode == 0, result.stderr
        with np.load(found) as file:
            images = {name: file[str(name)] for name in groups}
    return images, result.stdout.split()
