"""Peak memory of a training step, with and without the target pass's activations.

    python benchmarks/target_memory.py

Each figure is `ru_maxrss` of a process of its own, or the device's on a GPU. "outside"
is the library's step; "inside" differentiates through both passes, so that the target's
activations are kept; "no step" builds the same model and stops, and is subtracted for
the last column.
"""

import json
import os
import pathlib
import platform
import subprocess
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from absl import app, flags

FLAGS = flags.FLAGS
flags.DEFINE_list("backends", "tensorflow,jax,torch", "Backends to measure.")
flags.DEFINE_integer("hidden_size", 256, "Width of the DiT.")
flags.DEFINE_integer("depth", 8, "Blocks of the DiT.")
flags.DEFINE_integer("batch_size", 32, "Batch size, on 32x32x4 data.")
flags.DEFINE_string("out", None, "JSON file for the results.")

VARIANTS = ("no step", "outside", "inside")
flags.DEFINE_enum("variant", None, VARIANTS, "Measure this one in this process.")


def measure(variant):
    """Peak memory of this process after two steps, in MiB."""
    import keras_imm

    class TargetInside(keras_imm.objectives.MomentMatching):
        """Leaves the target to the differentiated part of the step."""

        def target(self, network, particles):
            return None

        def loss(self, network, particles, target):
            target = super().target(network, particles)
            return super().loss(network, particles, target)

    kind = TargetInside if variant == "inside" else keras_imm.objectives.MomentMatching
    model = keras_imm.FlowMapModel(backbone(), objective=kind())
    return peak_after_steps(model, 0 if variant == "no step" else 2)


def backbone(**options):
    import keras_imm

    return keras_imm.backbones.DiT(
        image_shape=(32, 32, 4),
        hidden_size=FLAGS.hidden_size,
        depth=FLAGS.depth,
        num_heads=4,
        **options,
    )


def peak_after_steps(model, steps):
    """Peak memory of this process after training steps, in MiB."""
    import keras
    import measuring
    import numpy as np

    model.compile(keras.optimizers.Adam(1e-4, use_ema=True))
    shape = (FLAGS.batch_size, 32, 32, 4)
    images = np.random.default_rng(0).normal(0, 0.5, shape).astype("float32")
    for _ in range(steps):
        measuring.wait(model.train_on_batch(images))
    return measuring.peak_mib()


def run(backend, variant, script=__file__):
    """What `script` measures of a variant, in a process of its own."""
    command = [
        sys.executable,
        pathlib.Path(script).resolve(),
        f"--variant={variant}",
        f"--hidden_size={FLAGS.hidden_size}",
        f"--depth={FLAGS.depth}",
        f"--batch_size={FLAGS.batch_size}",
    ]
    environment = os.environ | {"KERAS_BACKEND": backend}
    output = subprocess.run(
        command, env=environment, check=True, capture_output=True, text=True
    ).stdout
    return float(output.split()[-1])


def setting():
    """What was measured, and where."""
    return (
        f"DiT, hidden {FLAGS.hidden_size}, depth {FLAGS.depth}, patch 2, 32x32x4, "
        f"batch {FLAGS.batch_size}; {platform.processor() or platform.machine()}, "
        f"{os.cpu_count()} cores. Peak MiB:\n"
    )


def main(_):
    if FLAGS.variant:
        print(measure(FLAGS.variant))
        return
    print(setting())
    print("| backend | no step | target outside | target inside | saved |")
    print("|---|---|---|---|---|", flush=True)
    results = {}
    for backend in FLAGS.backends:
        peaks = {variant: run(backend, variant) for variant in VARIANTS}
        results[backend] = peaks
        none, outside, inside = peaks.values()
        saved = 1 - (outside - none) / (inside - none)
        print(
            f"| {backend} | {none:.0f} | {outside:.0f} | {inside:.0f} | {saved:.0%} |",
            flush=True,
        )
    if FLAGS.out:
        pathlib.Path(FLAGS.out).write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    app.run(main)
