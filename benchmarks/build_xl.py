"""Time and memory of making a network of published size, 32x32x4 and 1000 classes.

    python benchmarks/build_xl.py

Each row is a process of its own. "peak" is how far `ru_maxrss` rises above what it is
after the imports, and "ratio" is the peak over the bytes of the weights.
"""

import os
import pathlib
import platform
import resource
import subprocess
import sys
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from absl import app, flags

FLAGS = flags.FLAGS
flags.DEFINE_list("backends", "tensorflow,jax,torch", "Backends to measure.")
flags.DEFINE_string("preset", "dit_xl_2", "Preset of the DiT.")
flags.DEFINE_boolean("here", False, "Measure the current backend, in this process.")


def peak():
    """Peak memory of this process, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure():
    """Seconds, and MiB of weights and of the peak, of building the network."""
    import measuring

    import keras_imm

    before = peak()
    start = time.perf_counter()
    backbone = keras_imm.backbones.DiT.from_preset(
        FLAGS.preset, image_shape=(32, 32, 4), num_classes=1000
    )
    backbone.build()
    measuring.finish([v.value for v in backbone.weights])
    seconds = time.perf_counter() - start
    measuring.wait(backbone.weights[-1].value)
    weights = 4 * backbone.count_params() / 2**20
    return seconds, weights, peak() - before


def main(_):
    if FLAGS.here:
        print(*measure())
        return
    machine = platform.processor() or platform.machine()
    print(f"{FLAGS.preset}; {machine}, {os.cpu_count()} cores.\n")
    print("| backend | seconds | weights, MiB | peak, MiB | ratio |")
    print("|---|---|---|---|---|", flush=True)
    for backend in FLAGS.backends:
        output = subprocess.run(
            [
                sys.executable,
                pathlib.Path(__file__).resolve(),
                "--here",
                f"--preset={FLAGS.preset}",
            ],
            env=os.environ | {"KERAS_BACKEND": backend},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        seconds, weights, rise = map(float, output.split()[-3:])
        print(
            f"| {backend} | {seconds:.1f} | {weights:.0f} | {rise:.0f} "
            f"| {rise / weights:.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    app.run(main)
