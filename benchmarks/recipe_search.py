"""Which settings of IMM suit a small budget: one run per setting and seed.

    KERAS_BACKEND=jax python benchmarks/recipe_search.py --seeds=10,11
    python benchmarks/recipe_search.py --table

Every setting is a set of flags of examples/digits.py or, with --data=fashion_mnist, of
examples/fashion_mnist.py, beside their defaults and each --flag. A run that is in the
file of results is not repeated, so that a search that was stopped goes on.
--table prints the results as Markdown: means over the seeds, sorted by two steps.
"""

import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

import numpy as np
from absl import app, flags

from keras_imm.files.atomic import write_json

FLAGS = flags.FLAGS
flags.DEFINE_enum(
    "data", "digits", ["digits", "fashion_mnist"], "Which example trains."
)
flags.DEFINE_multi_string("flag", [], "Flag of every run: --flag=steps=3000.")
flags.DEFINE_multi_string("setting", [], "A setting to run. Default: all, as listed.")
flags.DEFINE_list("seeds", "10,11", "Seeds, other than those that are reported.")
flags.DEFINE_integer("threads", 1, "CPU cores that a run may use.", lower_bound=1)
flags.DEFINE_float("minutes", 180.0, "No run starts after this many minutes.")
flags.DEFINE_string("out", "", "File of the results. Default: one by the data's name.")
flags.DEFINE_bool("table", False, "Print the table of the results; run nothing.")

ROOT = pathlib.Path(__file__).resolve().parents[1]
PUBLISHED = {"recipe": "published"}
UNSCALED = {**PUBLISHED, "time_scale": 1, "second_time": "stride"}
LOGIT_NORMAL = {**UNSCALED, "times": "logit_normal"}
QUARTER = {**LOGIT_NORMAL, "flow_matching_share": 0.25}
# Fashion-MNIST: steps that take roughly as long as each other on one core.
SMALL = {"batch_size": 32, "learning_rate": 2e-3}
PATCH_4 = {**QUARTER, **SMALL, "hidden_size": 128, "depth": 4, "steps": 2000}
PATCH_7 = {**SMALL, "patch_size": 7, "hidden_size": 192, "depth": 3, "steps": 3000}
ALIKE = {**QUARTER, **PATCH_7}
SETTINGS = {
    "fashion_mnist": {
        "patch 4, DiT 128 x 4": PATCH_4,
        "patch 7, DiT 192 x 4": {**ALIKE, "depth": 4, "steps": 2800},
        "U-Net": {**QUARTER, **SMALL, "network": "unet", "steps": 1000},
        "patch 7, DiT 192 x 3": ALIKE,
        "small budget": ALIKE,
        "published": {**PUBLISHED, **PATCH_7},
        "time scale 1, stride": {**UNSCALED, **PATCH_7},
        "logit-normal": {**LOGIT_NORMAL, **PATCH_7},
        "patch 7, DiT 256 x 3": {**ALIKE, "hidden_size": 256, "steps": 2000},
        "patch 7, DiT 128 x 4": {
            **ALIKE,
            "hidden_size": 128,
            "depth": 4,
            "steps": 4000,
        },
        "patch 14, DiT 256 x 4": {
            **ALIKE,
            "patch_size": 14,
            "hidden_size": 256,
            "depth": 4,
        },
        "batch 16": {**ALIKE, "batch_size": 16, "steps": 3800},
        "batch 64": {**ALIKE, "batch_size": 64, "steps": 1800},
        "rate 1e-3": {**ALIKE, "learning_rate": 1e-3},
        "rate 4e-3": {**ALIKE, "learning_rate": 4e-3},
        "M 2": {**ALIKE, "group_size": 2},
        "M 8": {**ALIKE, "group_size": 8},
        "share 1/2": {**ALIKE, "flow_matching_share": 0.5},
        "uniform times, share 1/4": {**ALIKE, "times": "uniform"},
        "logit-normal 0": {**ALIKE, "times_mean": 0.0},
        "time scale 1000": {**ALIKE, "time_scale": 1000},
        "second time s": {**ALIKE, "second_time": "s"},
        "k 10": {**ALIKE, "k": 10},
        "min_gap 0.01": {**ALIKE, "min_gap": 0.01},
        "min_gap 0.02": {**ALIKE, "min_gap": 0.02},
        "no label dropout": {**ALIKE, "label_dropout": 0.0},
    },
    "digits": {
        "published": PUBLISHED,
        "time scale 1, stride": UNSCALED,
        "logit-normal": LOGIT_NORMAL,
        "logit-normal, share 1/4": QUARTER,
        "share 1/4": {**UNSCALED, "flow_matching_share": 0.25},
        "logit-normal, share 1/2": {**LOGIT_NORMAL, "flow_matching_share": 0.5},
        "logit-normal, share 1/8": {**LOGIT_NORMAL, "flow_matching_share": 0.125},
        "logit-normal 0, share 1/4": {**QUARTER, "times_mean": 0.0},
        "logit-normal -0.8, share 1/4": {**QUARTER, "times_mean": -0.8},
        "logit-normal, share 1/4, min_gap 0.0025": {**QUARTER, "min_gap": 0.0025},
        "logit-normal, share 1/4, min_gap 0.01": {**QUARTER, "min_gap": 0.01},
        "logit-normal, share 1/4, M 8": {**QUARTER, "group_size": 8},
        "logit-normal, share 1/4, time scale 1000": {**QUARTER, "time_scale": 1000},
    },
}
# What a run is given beside its setting: measured at the end alone.
EXAMPLES = {
    "digits": ("examples/digits.py", "--evaluate_every=1000000"),
    "fashion_mnist": (
        *("examples/fashion_mnist.py", "--evaluate_every=1000000"),
        *("--num_samples=4000", "--sampling_steps=1,2,8"),
    ),
}


def run(setting, seed):
    """What a run measured: flags, rows per number of steps and seconds."""
    with tempfile.TemporaryDirectory() as out:
        example, *given = EXAMPLES[FLAGS.data]
        command = [
            *(sys.executable, str(ROOT / example), f"--seed={seed}", f"--out={out}"),
            *given,
            *(f"--{flag}" for flag in FLAGS.flag),
            *(f"--{name}={value}" for name, value in setting.items()),
        ]
        environment = {**os.environ, "OMP_NUM_THREADS": str(FLAGS.threads)}
        subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
        metrics = json.loads((pathlib.Path(out) / "metrics.json").read_text())
    del metrics["flags"]["out"]
    kept = ("backend", "versions", "flags", "results", "seconds")
    return {name: metrics[name] for name in kept}


def table(results):
    """Markdown: a row per setting with the means over its seeds."""
    steps = sorted({row["steps"] for one in results for row in one["results"]})
    groups = {}
    for one in results:
        groups.setdefault(one["setting"], []).append(one)
    rows = []
    for setting, group in groups.items():
        values = np.array(
            [[(r["frechet"], r["agreement"]) for r in one["results"]] for one in group]
        )
        seeds = ", ".join(sorted(str(one["flags"]["seed"]) for one in group))
        rows.append((values[:, 1, 0].mean(), setting, seeds, values.mean(axis=0)))
    lines = [
        f"| setting | seeds | {' | '.join(f'{n} steps' for n in steps)} |",
        "|---" * (2 + len(steps)) + "|",
    ]
    for _, setting, seeds, means in sorted(rows, key=lambda row: row[0]):
        cells = " | ".join(f"{frechet:.3f} / {agreed:.3f}" for frechet, agreed in means)
        lines.append(f"| {setting} | {seeds} | {cells} |")
    return "\n".join(lines)


def main(_):
    start = time.monotonic()
    name = (
        FLAGS.out or ROOT / "benchmarks" / "data" / f"recipe_search_{FLAGS.data}.json"
    )
    path = pathlib.Path(name)
    results = json.loads(path.read_text()) if path.exists() else []
    if FLAGS.table:
        if not results:
            raise app.UsageError(f"no results in {path}")
        print(table(results))
        return
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, cores[-FLAGS.threads :])  # the children inherit it
    settings = SETTINGS[FLAGS.data]
    done = {(one["setting"], one["flags"]["seed"]) for one in results}
    path.parent.mkdir(parents=True, exist_ok=True)
    for seed in map(int, FLAGS.seeds):
        for setting in FLAGS.setting or settings:
            if (setting, seed) in done:
                continue
            if time.monotonic() - start > 60 * FLAGS.minutes:
                return
            print(f"{setting}, seed {seed}", flush=True)
            results.append({"setting": setting, **run(settings[setting], seed)})
            write_json(path, results)


if __name__ == "__main__":
    app.run(main)
