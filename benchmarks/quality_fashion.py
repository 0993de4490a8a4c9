"""Quality on Fashion-MNIST: one process of examples/fashion_mnist.py per run and seed.

    KERAS_BACKEND=tensorflow python benchmarks/quality_fashion.py --seeds=0,1,2
    python benchmarks/quality_fashion.py --run=flow_matching --run=unet --seeds=0,1
    python benchmarks/quality_fashion.py --table

Each leaves its folder below --out. A run that is finished is not repeated, and one that
was cut short goes on. --keep adds the finished ones to --file, which is committed.

The steps of a run are --steps times a factor that makes the runs cost alike: flow
matching, which has no target, makes 4/3 as many as `dit`, which is no less wall-clock;
those of U-Nets are by the cost that was measured. --table prints the results as
Markdown, --curves the quality at two steps while they were trained.
"""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
from absl import app, flags

from keras_imm.files.atomic import write_json

FLAGS = flags.FLAGS
flags.DEFINE_multi_string("run", [], "A run of those below. Default: dit.")
flags.DEFINE_list("seeds", "0,1,2", "Seeds to run.")
flags.DEFINE_integer("steps", 10_000, "Training steps of `dit`.", lower_bound=1)
flags.DEFINE_integer("threads", 2, "CPU cores that a run may use.", lower_bound=1)
flags.DEFINE_multi_string("flag", [], "Flag of every run: --flag=batch_size=64.")
flags.DEFINE_string("out", "runs/quality_fashion", "Folder for the results.")
flags.DEFINE_bool("keep", False, "Add the finished runs to --file; run nothing.")
flags.DEFINE_string(
    "machine", "2 cores", "Where the runs that --keep adds were made, for the table."
)
flags.DEFINE_string(
    "file", "benchmarks/data/quality_fashion.json", "Where --keep and --table look."
)
flags.DEFINE_bool("table", False, "Print the table of the results; run nothing.")
flags.DEFINE_bool("curves", False, "Print the quality in training; run nothing.")

ROOT = pathlib.Path(__file__).resolve().parents[1]
EPOCH = 200
SIMPLE_EDM = {"parameterization": "simple_edm", "recipe": "published"}
# Flags of a run, and its steps relative to those of `dit`.
RUNS = {
    "dit": ({}, 1.0),
    "published": ({"recipe": "published"}, 1.0),
    "flow_matching": (
        {"method": "flow_matching", "sampling_steps": "1,2,4,8,32"},
        4 / 3,
    ),
    "unet": ({"network": "unet"}, 1 / 3),
    # The paper's CIFAR-10 experiment at reduced width (Table 5).
    "cifar10": (
        {
            **SIMPLE_EDM,
            **{"network": "unet", "padding": 2, "optimizer": "radam", "dropout": 0.2},
            **{"augmentation": True, "k": 15, "a": 1, "b": 5, "min_time": 0.006},
            **{"min_gap": 0.0, "attention_resolutions": 16, "label_dropout": 0.0},
            "guidance": 0,  # its null label is not trained
        },
        1 / 4,
    ),
    "cosine": ({**SIMPLE_EDM, "schedule": "cosine", "max_time": 0.996}, 1.0),
    "cosine_small_budget": (
        {"parameterization": "simple_edm", "schedule": "cosine", "max_time": 0.996},
        1.0,
    ),
    "identity": (
        {"parameterization": "identity", "recipe": "published", "min_time": 0.006},
        1.0,
    ),
}


def folder(name, backend, seed):
    return pathlib.Path(FLAGS.out) / f"{name}_{backend}_{seed}"


def run(name, seed):
    given, factor = RUNS[name]
    out = folder(name, os.environ.get("KERAS_BACKEND", "tensorflow"), seed)
    if (out / "metrics.json").exists():
        print(f"{out} is there already", flush=True)
        return
    steps = max(1, round(FLAGS.steps * factor / EPOCH)) * EPOCH
    values = {**given, "steps": steps, "seed": seed, "out": out}
    command = [
        *(sys.executable, str(ROOT / "examples" / "fashion_mnist.py")),
        *(f"--{flag}={value}" for flag, value in values.items()),
        *(f"--{flag}" for flag in FLAGS.flag),
    ]
    print(f"{name}, seed {seed}: {steps} steps", flush=True)
    environment = {**os.environ, "OMP_NUM_THREADS": str(FLAGS.threads)}
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)


def finished():
    """(run, backend, seed, metrics) of the finished runs below --out."""
    found = []
    for path in sorted(pathlib.Path(FLAGS.out).glob("*/metrics.json")):
        name, backend, seed = path.parent.name.rsplit("_", 2)
        found.append([name, backend, int(seed), json.loads(path.read_text())])
    return found


def results():
    """Runs that were kept, and the finished ones below --out, each once."""
    path = ROOT / FLAGS.file
    kept = json.loads(path.read_text()) if path.exists() else []
    runs = {(*run[:3], run[3]["steps"]): run for run in finished() + kept}
    return [runs[key] for key in sorted(runs)]


def keep():
    """Writes the runs without what is this machine's alone."""
    runs = results()
    for *_, metrics in runs:
        metrics.pop("command", None)
        metrics.setdefault("machine", FLAGS.machine)
        metrics.get("flags", {}).pop("out", None)
    write_json(ROOT / FLAGS.file, runs)


def cell(row):
    if row is None:
        return ""
    return f"{row['frechet']:.2f} ({row['frechet_ratio']:.0f}) / {row['agreement']:.3f}"


def table(found):
    """Markdown: Fréchet distance (its ratio to the floor) / agreement by steps."""
    counts = sorted({row["steps"] for *_, m in found for row in m["results"]})
    titles = [f"{n} step{'s' if n > 1 else ''}" for n in counts]
    lines = [
        "| run | backend | machine | seed | steps | ms / step "
        f"| {' | '.join(titles)} |",
        "|---" * (6 + len(counts)) + "|",
    ]
    for name, backend, seed, metrics in found:
        rows = {row["steps"]: row for row in metrics["results"]}
        milliseconds = 1000 * metrics["seconds"]["per_step"]
        cells = " | ".join(cell(rows.get(n)) for n in counts)
        lines.append(
            f"| {name} | {backend} | {metrics.get('machine', FLAGS.machine)} | {seed} "
            f"| {metrics['steps']:,} "
            f"| {milliseconds:.0f} | {cells} |"
        )
    return "\n".join(lines)


def curves(found, points=8):
    """Markdown: the Fréchet distance of 1,000 samples in two steps, over training."""
    shares = np.arange(1, points + 1) / points
    lines = [
        f"| run | backend | seed | {' | '.join(f'{share:.0%}' for share in shares)} |",
        "|---" * (3 + points) + "|",
    ]
    for name, backend, seed, metrics in found:
        measured = [e for e in metrics["epochs"] if "frechet_2_steps" in e]
        if not measured:
            continue
        last = metrics["epochs"][-1]["epoch"]
        cells = []
        for share in shares:
            entry = min(measured, key=lambda e: abs(e["epoch"] - share * last))
            cells.append(
                f"{entry['frechet_2_steps']:.1f} / {entry['agreement_2_steps']:.2f}"
            )
        lines.append(f"| {name} | {backend} | {seed} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(_):
    unknown = set(FLAGS.run) - RUNS.keys()
    if unknown:
        raise app.UsageError(f"--run must be one of {', '.join(RUNS)}.")
    if FLAGS.keep:
        keep()
        return
    if FLAGS.table or FLAGS.curves:
        found = results()
        if not found:
            raise app.UsageError(f"no finished run below {FLAGS.out}")
        print(table(found) if FLAGS.table else curves(found))
        return
    for seed in map(int, FLAGS.seeds):
        for name in FLAGS.run or ["dit"]:
            run(name, seed)


if __name__ == "__main__":
    app.run(main)
