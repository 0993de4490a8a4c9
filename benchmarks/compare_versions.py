"""Times two versions of the library in turn: training steps and samples of each.

    git worktree add ../before 92b4285
    KERAS_BACKEND=torch python benchmarks/compare_versions.py --old=../before

Each version runs in a process of its own, which makes the model of `make digits` and
compiles; then the two take turns, in an order that changes from pair to pair, so that
both see the same machine. The table has the median over the pairs of the new time over
the old one, and its quartiles: a ratio differs from 1 where they exclude it.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("OMP_NUM_THREADS", str(os.cpu_count()))

import json
import pathlib
import subprocess
import sys

import numpy as np
from absl import app, flags

FLAGS = flags.FLAGS
ROOT = pathlib.Path(__file__).resolve().parents[1]
flags.DEFINE_string("old", None, "Checkout of the old version.")
flags.DEFINE_string("new", str(ROOT), "Checkout of the new version.")
flags.DEFINE_integer("pairs", 15, "Turns of each.", lower_bound=4)
flags.DEFINE_integer("steps", 20, "Training steps of a turn.", lower_bound=1)
flags.DEFINE_bool("jit_compile", False, "Whether to have PyTorch compile.")
flags.DEFINE_string("out", None, "JSON file for the ratios.")
flags.DEFINE_bool("worker", False, "Used by this script: take orders from stdin.")

# Images, steps, whether guided, and calls of one turn.
SAMPLES = {
    "generate, 1 image, 1 step": (1, 1, False, 40),
    "generate, 1 image, 8 steps": (1, 8, False, 20),
    "generate, 16 images, 2 steps": (16, 2, False, 20),
    "generate, 256 images, 2 steps": (256, 2, False, 2),
    "generate, 256 images, 8 steps": (256, 8, False, 1),
    "generate, 256 images, 2 steps, guided": (256, 2, True, 1),
    "restart, 16 images, 4 steps": (16, 4, "restart", 10),
}


def work():
    """Makes the model and times what is asked for, until stdin ends."""
    import keras
    import measuring

    import keras_imm

    keras.utils.set_random_seed(0)
    backbone = keras_imm.backbones.DiT(
        image_shape=(8, 8, 1),
        patch_size=2,
        hidden_size=64,
        depth=3,
        num_heads=4,
        num_classes=10,
    )
    mapping = keras_imm.time_mappings.EtaDecrement(k=12, min_gap=0.005)
    model = keras_imm.IMM(backbone, time_mapping=mapping)
    optimizer = keras.optimizers.Adam(
        1e-3, epsilon=1e-8, use_ema=True, ema_momentum=0.995
    )
    model.compile(optimizer, jit_compile=FLAGS.jit_compile or "auto")
    rng = np.random.default_rng(0)
    count = 128 * FLAGS.steps
    images = 0.5 * rng.standard_normal((count, 8, 8, 1)).astype("float32")
    labels = rng.integers(0, 10, count).astype("int32")

    def run(case):
        if case == "fit":
            fitted = model.fit(images, labels, batch_size=128, verbose=0, shuffle=False)
            return fitted.history["loss"]
        num_images, num_steps, kind, calls = SAMPLES[case]
        noise = 2.0 * images[:num_images]
        options = {"guidance_scale": 1.5} if kind is True else {}
        if kind == "restart":
            options = {"sampler": "restart", "seed": 0}
        for _ in range(calls):
            samples = model.generate(
                labels[:num_images],
                num_steps=num_steps,
                noise=noise,
                verbose=0,
                **options,
            )
        return samples

    for line in sys.stdin:
        print(f"seconds {measuring.seconds(run, line.strip())}", flush=True)


class Worker:
    """A version in a process of its own."""

    def __init__(self, checkout):
        arguments = [f"--steps={FLAGS.steps}", f"--jit_compile={FLAGS.jit_compile}"]
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--worker", *arguments],
            env={**os.environ, "PYTHONPATH": str(pathlib.Path(checkout).resolve())},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def seconds(self, case):
        self.process.stdin.write(case + "\n")
        self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith("seconds "):
                return float(line.split()[1])
        raise RuntimeError(f"The process ended during {case!r}")


def main(_):
    if FLAGS.worker:
        work()
        return
    if FLAGS.old is None:
        raise app.UsageError("--old must be a checkout of the old version")
    workers = Worker(FLAGS.old), Worker(FLAGS.new)
    print("| | old, ms | new, ms | new / old | quartiles |\n|---|---|---|---|---|")
    rows = []
    for case in ("fit", *SAMPLES):
        for worker in workers:
            worker.seconds(case)  # compiles
        times = []
        for pair in range(FLAGS.pairs):
            order = (0, 1) if pair % 2 else (1, 0)
            seconds = {i: workers[i].seconds(case) for i in order}
            times.append((seconds[0], seconds[1]))
        old, new = np.array(times).T
        low, median, high = np.quantile(new / old, (0.25, 0.5, 0.75))
        calls = FLAGS.steps if case == "fit" else SAMPLES[case][3]
        row = {
            "case": case,
            "old_ms": 1000 * float(np.median(old)) / calls,
            "new_ms": 1000 * float(np.median(new)) / calls,
            "ratio": float(median),
            "quartiles": [float(low), float(high)],
        }
        rows.append(row)
        print(
            f"| {case} | {row['old_ms']:.2f} | {row['new_ms']:.2f} | {median:.3f} "
            f"| {low:.3f} to {high:.3f} |",
            flush=True,
        )
    if FLAGS.out:
        path = pathlib.Path(FLAGS.out)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    app.run(main)
