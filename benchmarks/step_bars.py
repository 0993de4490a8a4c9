"""The bars of a training step on a CPU: medians over several runs of train_step.py.

    python benchmarks/step_bars.py --out=runs/step_bars

Each run is a process of its own of benchmarks/train_step.py, and the frameworks take
turns. A run whose file is in --out is not repeated.
"""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
from absl import app, flags

FLAGS = flags.FLAGS
flags.DEFINE_integer("runs", 5, "Runs of each framework.", lower_bound=1)
flags.DEFINE_integer("epochs", 10, "Epochs of each that are timed.", lower_bound=1)
flags.DEFINE_list("backends", "torch,jax,tensorflow", "Frameworks.")
flags.DEFINE_string("out", "runs/step_bars", "Folder for the results of the runs.")

# (framework, way to `fit`, loop written by hand) -> most that the ratio may be.
BARS = {
    ("torch", "fit", "eager"): 1.0,
    ("torch", "fit jit_compile=True", "torch.compile"): 1.05,
    ("jax", "fit", "jit"): 0.78,
    ("tensorflow", "fit", "tf.function"): 0.85,
    ("tensorflow", "fit jit_compile=True", "tf.function XLA"): 1.0,
}
ROOT = pathlib.Path(__file__).resolve().parents[1]


def run(backend, path):
    """Rows of one run, by the way to `fit` and the loop it is compared with."""
    if not path.exists():
        fits = ",".join(sorted({fit for one, fit, _ in BARS if one == backend}))
        command = [
            *(sys.executable, str(ROOT / "benchmarks" / "train_step.py"), "--nofresh"),
            *(f"--epochs={FLAGS.epochs}", f"--fits={fits}", f"--out={path}"),
        ]
        environment = {**os.environ, "KERAS_BACKEND": backend}
        subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
    ours, found = None, {}
    for row in json.loads(path.read_text())["rows"]:
        if "ratio" in row:
            found[backend, ours["name"], row["name"]] = (ours, row)
        else:
            ours = row
    return found


def table(runs):
    """Markdown: a row per bar, with the medians over the runs."""
    lines = [
        "| backend | | ms / step | by hand | ms / step | ratio of each run | median "
        "| at most | |",
        "|---" * 9 + "|",
    ]
    for bar, most in BARS.items():
        pairs = [one[bar] for one in runs if bar in one]
        if not pairs:
            continue
        ratios = [by_hand["ratio"] for _, by_hand in pairs]
        ours, hand = (np.median([p[i]["median_ms"] for p in pairs]) for i in (0, 1))
        each = ", ".join(f"{ratio:.3f}" for ratio in ratios)
        met = "met" if np.median(ratios) <= most else "missed"
        lines.append(
            f"| {bar[0]} | {bar[1]} | {ours:.2f} | {bar[2]} | {hand:.2f} | {each} "
            f"| {np.median(ratios):.3f} | {most} | {met} |"
        )
    return "\n".join(lines)


def main(_):
    out = pathlib.Path(FLAGS.out)
    out.mkdir(parents=True, exist_ok=True)
    runs = [
        run(backend, out / f"{backend}-{number}.json")
        for number in range(FLAGS.runs)
        for backend in FLAGS.backends
    ]
    print(table(runs))


if __name__ == "__main__":
    app.run(main)
