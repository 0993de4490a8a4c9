"""What `import keras_imm` costs beyond `import keras`, in fresh processes.

    python benchmarks/import_time.py

The two imports take turns, so that a machine that slows down slows both down.
"""

import statistics
import subprocess
import sys

from absl import app, flags

FLAGS = flags.FLAGS
flags.DEFINE_integer("processes", 7, "Fresh processes for each.", lower_bound=1)

SCRIPT = """
import time
start = time.perf_counter()
import {module}
print(time.perf_counter() - start)
"""


def seconds(module):
    command = [sys.executable, "-c", SCRIPT.format(module=module)]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return float(output.splitlines()[-1])


def extra_seconds(processes=7):
    """Median seconds of `import keras_imm` beyond `import keras`, and of that one."""
    times = [(seconds("keras"), seconds("keras_imm")) for _ in range(processes)]
    keras, keras_imm = (
        statistics.median(column) for column in zip(*times, strict=True)
    )
    return keras_imm - keras, keras


def main(_):
    extra, keras = extra_seconds(FLAGS.processes)
    print(f"import keras: {keras:.3f} s; keras_imm on top of it: {extra:+.3f} s")


if __name__ == "__main__":
    app.run(main)
