"""Processes that read start from any program, and end with it."""

import os
import signal
import subprocess
import sys
import time

import pytest
from scripts import ROOT

pytestmark = pytest.mark.one_backend("NumPy code")

SCRIPT = """
import multiprocessing, os, signal
from absl import app, flags
import numpy as np
from keras_imm.datasets import load

number = flags.DEFINE_integer("number", 3, "A flag of the program.")
dataset = load(np.zeros((8, 2, 2, 1), "uint8"), 4, num_workers=1)
print(dataset[0].mean(), __name__)
try:
    number.value
except flags.UnparsedFlagAccessError:
    print("unparsed")

def main(argv):
    print(number.value, dataset[1].mean())
    print(*(child.pid for child in multiprocessing.active_children()), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)

app.run(main, ["program", "--number=7"])
"""


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def ended(pid, seconds=20):
    deadline = time.monotonic() + seconds
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not alive(pid)


@pytest.mark.slow("child processes")
def test_a_script_from_the_standard_input_without_a_guard():
    """As a notebook, it has no file; it parses its flags later, and is killed."""
    result = subprocess.run(
        [sys.executable, "-"],
        input=SCRIPT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,  # a process that does not end keeps the output open
    )
    assert result.returncode == -signal.SIGKILL, result.stderr
    read, unparsed, parsed, process = result.stdout.splitlines()
    assert (read, unparsed, parsed) == ("-1.0 __main__", "unparsed", "7 -1.0")
    assert ended(int(process))
