"""Quality on digits: IMM beside flow matching given the same wall-clock.

    KERAS_BACKEND=tensorflow python benchmarks/quality_digits.py --seeds=0,1,2
    python benchmarks/quality_digits.py --table

For each seed, one process trains IMM with `examples/digits.py` and the next trains flow
matching for as many seconds as IMM's training took without compilation, on the same
machine. Each leaves `metrics.json` in a folder of its own below --out; a run that is
already there is not repeated, whatever its flags were. --table prints all of them as
Markdown.
"""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
from absl import app, flags

FLAGS = flags.FLAGS
flags.DEFINE_list("seeds", "0,1,2", "Seeds to run.")
flags.DEFINE_integer("threads", 2, "CPU cores that a run may use.", lower_bound=1)
flags.DEFINE_list("sampling_steps", "1,2,4,8,32", "Numbers of sampling steps.")
flags.DEFINE_string("out", "runs/quality_digits", "Folder for the results.")
flags.DEFINE_bool("baseline", True, "Whether to run flow matching too.")
flags.DEFINE_bool("table", False, "Print the table of the results; run nothing.")

ROOT = pathlib.Path(__file__).resolve().parents[1]
NAMES = {"imm": "IMM", "flow_matching": "flow matching"}


def run(script, out, seed, *arguments):
    """Runs a script in a process of its own and returns what it measured."""
    metrics = out / "metrics.json"
    if metrics.exists():
        print(f"{metrics} is there already", flush=True)
    else:
        environment = {**os.environ, "OMP_NUM_THREADS": str(FLAGS.threads)}
        command = [
            sys.executable,
            str(ROOT / script),
            f"--seed={seed}",
            f"--out={out}",
            f"--sampling_steps={','.join(FLAGS.sampling_steps)}",
            *arguments,
        ]
        print(f"{script}, seed {seed}", flush=True)
        subprocess.run(command, env=environment, check=True)
    return json.loads(metrics.read_text())


def table(runs):
    """Markdown: a row per run, and the means over the seeds of each backend."""
    steps = sorted({row["steps"] for one in runs for row in one["results"]})
    lines = [
        "| backend | seed | method | ms / step | training steps | "
        + " | ".join(f"{n} step{'s' if n > 1 else ''}" for n in steps)
        + " |",
        "|---" * (5 + len(steps)) + "|",
    ]
    groups = {}
    for one in sorted(runs, key=lambda one: (one["backend"], one["method"], seed(one))):
        groups.setdefault((one["backend"], one["method"]), []).append(one)
    for (backend, method), group in groups.items():
        measured = np.array([quality(one, steps) for one in group])
        for one, values in zip(group, measured, strict=True):
            lines.append(
                f"| {backend} | {seed(one)} | {NAMES[method]} "
                f"| {1000 * per_step(one):.1f} | {training_steps(one)} "
                f"| {cells(values)} |"
            )
        if len(group) > 1:
            means = cells(measured.mean(axis=0))
            lines.append(f"| {backend} | mean | {NAMES[method]} | | | {means} |")
    return "\n".join(lines)


def seed(one):
    return one["flags"]["seed"]


def training_steps(one):
    return one.get("training_steps", one["flags"]["steps"])


def per_step(one):
    return one["seconds"]["training_without_compilation"] / training_steps(one)


def quality(one, steps):
    """Both measures for each number of steps, NaN where a run did not measure it."""
    rows = {row["steps"]: (row["frechet"], row["agreement"]) for row in one["results"]}
    return [rows.get(n, (np.nan, np.nan)) for n in steps]


def cells(values):
    return " | ".join(
        "" if np.isnan(frechet) else f"{frechet:.3f} / {agreement:.3f}"
        for frechet, agreement in values
    )


def main(_):
    out = pathlib.Path(FLAGS.out).resolve()
    if FLAGS.table:
        runs = [json.loads(p.read_text()) for p in sorted(out.glob("*/metrics.json"))]
        if not runs:
            raise app.UsageError(f"no results in {out}")
        print("Fréchet distance / label agreement:\n")
        print(table(runs))
        return
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, cores[: FLAGS.threads])  # the children inherit it
    backend = os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    for number in FLAGS.seeds:
        imm = run("examples/digits.py", out / f"imm_{backend}_{number}", number)
        if FLAGS.baseline:
            run(
                "benchmarks/flow_matching_digits.py",
                out / f"flow_matching_{backend}_{number}",
                number,
                f"--seconds={imm['seconds']['training_without_compilation']}",
            )


if __name__ == "__main__":
    app.run(main)
