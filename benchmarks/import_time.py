"""What `import keras_imm` costs beyond `import keras`, in fresh processes.

    python benchmarks/import_time.py

Each process imports Keras first and keras_imm after it, and times the two apart: what
slows the machine down from one process to the next slows both, and is not taken for a
cost of keras_imm.
"""

import statistics
import subprocess
import sys

from absl import app, flags

FLAGS = flags.FLAGS
flags.DEFINE_integer("processes", 7, "Fresh processes.", lower_bound=1)

SCRIPT = """
import time
start = time.perf_counter()
import keras
middle = time.perf_counter()
import keras_imm
print(middle - start, time.perf_counter() - middle)
"""


def seconds():
    """Seconds of `import keras` and of `import keras_imm` after it."""
    command = [sys.executable, "-c", SCRIPT]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return [float(number) for number in output.splitlines()[-1].split()]


def medians(processes=7):
    """Medians of both over fresh processes."""
    times = [seconds() for _ in range(processes)]
    return [statistics.median(column) for column in zip(*times, strict=True)]


def main(_):
    keras, keras_imm = medians(FLAGS.processes)
    print(f"import keras: {keras:.3f} s; keras_imm on top of it: {keras_imm:.3f} s")


if __name__ == "__main__":
    app.run(main)
