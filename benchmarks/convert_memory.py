"""Time and peak memory of converting a checkpoint of published size.

    python benchmarks/convert_memory.py

Writes random weights in the layout of the published files, then runs
`python -m keras_imm.checkpoints convert IN OUT.keras` in a process of its own for each
backend. "peak" is how far `ru_maxrss` of that process rises above that of a process
that only imports, and "ratio" is the peak over the bytes of the weights.
"""

import os
import pathlib
import platform
import subprocess
import sys
import tempfile
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
from absl import app, flags

ROOT = pathlib.Path(__file__).resolve().parents[1]
FLAGS = flags.FLAGS
flags.DEFINE_list("backends", "tensorflow,jax,torch", "Backends to measure.")
flags.DEFINE_string("preset", "dit_xl_2", "Preset of the DiT.")
flags.DEFINE_string("write", None, "Write the checkpoint to this file and stop.")

# Prints its own peak in MiB after the arguments it was given.
MEASURED = """
import resource, sys
from keras_imm.checkpoints.__main__ import main
code = main(sys.argv[1:]) if sys.argv[1:] else 0
print("peak", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
sys.exit(code)
"""


def write(path):
    """Random weights of the preset, 32x32x4 and 1000 classes, as they are published."""
    sys.path.insert(0, str(ROOT / "tests"))
    from published_files import write_checkpoint

    from keras_imm.backbones.dit import PRESETS, DiT
    from keras_imm.checkpoints.published_weights import _dit_weights

    preset = PRESETS[FLAGS.preset]
    backbone = DiT(image_shape=(32, 32, 4), num_classes=1000, **preset)
    backbone.build()
    rng = np.random.default_rng(0)
    weights = {
        f"model.{weight.name}": rng.standard_normal(weight.shape, "float32")
        for weight in _dit_weights(backbone)
    }
    table = np.asarray(backbone.position_embedding.table)[None]
    arguments = {
        "img_resolution": 32,
        "img_channels": 4,
        "label_dim": 1000,
        "num_classes": 1000,
        "model_type": "DiT",
        "s_embed": True,
        "noise_schedule": "fm",
        "f_type": "euler_fm",
        "temb_type": "stride",
        "sigma_data": 0.5,
        "eps": 0.0,
        "T": 0.994,
        "time_scale": 1000.0,
        **preset,
    }
    write_checkpoint(path, arguments, {"model.pos_embed": table, **weights})
    print(sum(weight.nbytes for weight in weights.values()) / 2**20)


def run(backend, *arguments):
    """The last number that a process prints, and the seconds it took."""
    start = time.perf_counter()
    output = subprocess.run(
        [sys.executable, *arguments],
        env=os.environ | {"KERAS_BACKEND": backend},
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    return float(output.split()[-1]), time.perf_counter() - start


def main(_):
    if FLAGS.write:
        write(FLAGS.write)
        return
    with tempfile.TemporaryDirectory() as folder:
        source = os.path.join(folder, "model.pkl")
        target = os.path.join(folder, "model.keras")
        weights, _ = run(
            "torch", __file__, f"--write={source}", f"--preset={FLAGS.preset}"
        )
        machine = platform.processor() or platform.machine()
        print(f"{FLAGS.preset}; {machine}, {os.cpu_count()} cores.\n")
        print("| backend | seconds | weights, MiB | peak, MiB | ratio |")
        print("|---|---|---|---|---|", flush=True)
        for backend in FLAGS.backends:
            imports, _ = run(backend, "-c", MEASURED)
            peak, seconds = run(backend, "-c", MEASURED, "convert", source, target)
            rise = peak - imports
            print(
                f"| {backend} | {seconds:.0f} | {weights:.0f} | {rise:.0f} "
                f"| {rise / weights:.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    app.run(main)
