"""Peak memory of a training step, with and without `remat` of the DiT's blocks.

    python benchmarks/remat_memory.py

Each figure is `ru_maxrss` of a process of its own, or the device's on a GPU. "kept"
keeps the activations of all blocks for the backward pass, "remat" computes them again
there; "no step" builds the same model and stops, and is subtracted for the last column.
"""

import json
import pathlib

import target_memory
from absl import app, flags

FLAGS = flags.FLAGS
VARIANTS = ("no step", "kept", "remat")
flags.DEFINE_enum(
    "variant",
    None,
    VARIANTS,
    "Measure this one in this process.",
    allow_override=True,
)
for name, value in {"hidden_size": 384, "depth": 12, "batch_size": 16}.items():
    FLAGS.set_default(name, value)


def measure(variant):
    """Peak memory of this process after two steps, in MiB."""
    import keras_imm

    model = keras_imm.IMM(target_memory.backbone(remat=variant == "remat"))
    return target_memory.peak_after_steps(model, 0 if variant == "no step" else 2)


def main(_):
    if FLAGS.variant:
        print(measure(FLAGS.variant))
        return
    print(target_memory.setting())
    print("| backend | no step | kept | remat | saved |")
    print("|---|---|---|---|---|", flush=True)
    results = {}
    for backend in FLAGS.backends:
        peaks = {v: target_memory.run(backend, v, __file__) for v in VARIANTS}
        results[backend] = peaks
        none, kept, remat = peaks.values()
        saved = 1 - (remat - none) / (kept - none)
        print(
            f"| {backend} | {none:.0f} | {kept:.0f} | {remat:.0f} | {saved:.0%} |",
            flush=True,
        )
    if FLAGS.out:
        pathlib.Path(FLAGS.out).write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    app.run(main)
