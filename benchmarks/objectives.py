"""Few-step objectives on one backbone, one data set and one budget.

    KERAS_BACKEND=jax python benchmarks/objectives.py --seeds=0,1,2,3,4
    KERAS_BACKEND=jax python benchmarks/objectives.py --seeds=10 --tuning
    python benchmarks/objectives.py --table
    python benchmarks/objectives.py --data=fashion_mnist --seeds=0,1

Each run is a process. Backbone, optimizer, batch and data are the same for all; what an
objective is given beside is in CONFIGURATIONS, and what it was tuned by, four trials
each, in TRIALS. --budget says what all have in common: the steps (`steps`, of moment
matching), the forward passes of the network (`passes`), or the time (`time`: steps by
the cost of a step that --costs measures in processor seconds). A run that is in the
file of results is not repeated. --table prints, for each objective, means over the
seeds with their standard errors, and the median at one step.
"""

import json
import os
import pathlib
import subprocess
import sys
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "examples"))

import array_batches
import budgets
import keras
import measuring
import numpy as np
import training_report
from absl import app, flags

import keras_imm
from keras_imm import objectives
from keras_imm.files.atomic import write_json
from keras_imm.time_distributions import LogitNormal

FLAGS = flags.FLAGS
flags.DEFINE_enum("data", "digits", ["digits", "fashion_mnist"], "The data set.")
flags.DEFINE_multi_string("name", [], "A configuration. Default: all.")
flags.DEFINE_list("seeds", "0", "Seeds.")
flags.DEFINE_enum("budget", "steps", ["steps", "passes", "time"], "What all share.")
flags.DEFINE_integer("steps", 4000, "Steps of moment matching.", lower_bound=1)
flags.DEFINE_bool("tuning", False, "Run the trials of TRIALS instead.")
flags.DEFINE_bool("costs", False, "Measure the cost of a step of each; train nothing.")
flags.DEFINE_bool("table", False, "Print the table of the results; run nothing.")
flags.DEFINE_string("out", "", "File of the results. Default: one by the data's name.")
flags.DEFINE_string("one", "", "For the child processes: JSON of one run.")

ROOT = pathlib.Path(__file__).resolve().parents[1]
BATCH = 32
RATE = 2e-3
WARMUP = 100
EMA = 0.995
SAMPLING_STEPS = (1, 2, 4, 8, 32)
GAP = keras_imm.time_mappings.EtaDecrement(k=12, min_gap=0.005)
STRIDE = {"second_time": "stride", "time_scale": 1.0}


def moment_matching(**arguments):
    return objectives.MomentMatching(time_mapping=GAP, **arguments)


# By name: what makes the objective, and what the flow map is given beside.
CONFIGURATIONS = {
    "IMM, as published": (moment_matching, {}),
    "IMM, time scale 1, stride": (moment_matching, STRIDE),
    "IMM, small budget": (
        lambda: moment_matching(times="logit_normal", flow_matching_share=0.25),
        STRIDE,
    ),
    "flow matching": (objectives.FlowMatching, {}),
    "MeanFlow": (
        lambda: objectives.MeanFlow(flow_matching_share=0.5, power=0.5),
        {},
    ),
    "improved MeanFlow": (
        lambda: objectives.MeanFlow(improved=True, flow_matching_share=0.5),
        {},
    ),
    "SoFlow": (lambda: objectives.SoFlow(0.5, rho=(0.1, 0.01)), {}),
    "Shortcut": (
        lambda: objectives.Shortcut(bootstrap_share=0.25, target_momentum=0.995),
        {},
    ),
    "consistency training": (objectives.ConsistencyTraining, {}),
    "continuous consistency": (objectives.ContinuousConsistency, {}),
    "differential IMM": (objectives.DifferentialMomentMatching, {}),
    "terminal velocity matching": (objectives.TerminalVelocityMatching, {}),
}
# Four trials of each, other than the setting above, on other seeds.
TRIALS = {
    "MeanFlow": {
        "p 1": lambda: objectives.MeanFlow(flow_matching_share=0.5),
        "share 1/4": lambda: objectives.MeanFlow(flow_matching_share=0.25, power=0.5),
        "share 3/4": lambda: objectives.MeanFlow(flow_matching_share=0.75, power=0.5),
        "p 3/4": lambda: objectives.MeanFlow(flow_matching_share=0.5, power=0.75),
    },
    "improved MeanFlow": {
        "p 1/2": lambda: objectives.MeanFlow(
            improved=True, flow_matching_share=0.5, power=0.5
        ),
        "share 1/4": lambda: objectives.MeanFlow(
            improved=True, flow_matching_share=0.25
        ),
        "share 3/4": lambda: objectives.MeanFlow(
            improved=True, flow_matching_share=0.75
        ),
        "share 1/4, p 1/2": lambda: objectives.MeanFlow(
            improved=True, flow_matching_share=0.25, power=0.5
        ),
    },
    "SoFlow": {
        "p 1/2": lambda: objectives.SoFlow(0.5, rho=(0.1, 0.01), power=0.5),
        "share 3/4": lambda: objectives.SoFlow(0.75, rho=(0.1, 0.01)),
        "rho to 0.002": lambda: objectives.SoFlow(0.5, rho=(0.1, 0.002)),
        "share 1/4": lambda: objectives.SoFlow(0.25, rho=(0.1, 0.01)),
    },
    "Shortcut": {
        "share 1/8": lambda: objectives.Shortcut(0.125, target_momentum=0.995),
        "share 1/2": lambda: objectives.Shortcut(0.5, target_momentum=0.995),
        "momentum 0.99": lambda: objectives.Shortcut(0.25, target_momentum=0.99),
        "momentum 0.999": lambda: objectives.Shortcut(0.25, target_momentum=0.999),
    },
    "consistency training": {
        "4 stages": lambda: objectives.ConsistencyTraining(stages=4),
        "c 0.03": lambda: objectives.ConsistencyTraining(huber=0.03),
        "std 1.6": lambda: objectives.ConsistencyTraining(noise_std=1.6),
        "mean -0.6": lambda: objectives.ConsistencyTraining(noise_mean=-0.6),
    },
    "continuous consistency": {
        "ramp 0.1": lambda: objectives.ContinuousConsistency(warmup=0.1),
        "ramp 0.6": lambda: objectives.ContinuousConsistency(warmup=0.6),
        "mean -0.4": lambda: objectives.ContinuousConsistency(noise_mean=-0.4),
        "std 1.8": lambda: objectives.ContinuousConsistency(noise_std=1.8),
    },
    "differential IMM": {
        "logit-normal": lambda: objectives.DifferentialMomentMatching(
            times="logit_normal"
        ),
        "M 1": lambda: objectives.DifferentialMomentMatching(group_size=1),
        "RBF": lambda: objectives.DifferentialMomentMatching("rbf"),
        "logit-normal 0": lambda: objectives.DifferentialMomentMatching(
            times=LogitNormal(0.0, 1.0)
        ),
    },
    "terminal velocity matching": {
        "momentum 0.95": lambda: objectives.TerminalVelocityMatching(
            target_momentum=0.95
        ),
        "momentum 0.995": lambda: objectives.TerminalVelocityMatching(
            target_momentum=0.995
        ),
        "gaps -0.4": lambda: objectives.TerminalVelocityMatching(
            gaps=LogitNormal(-0.4, 1.0)
        ),
        "times 0": lambda: objectives.TerminalVelocityMatching(
            times=LogitNormal(0.0, 1.0)
        ),
    },
    "flow matching": {
        "logit-normal": lambda: objectives.FlowMatching(times="logit_normal"),
        "logit-normal 0": lambda: objectives.FlowMatching(times=LogitNormal(0.0, 1.0)),
        "logit-normal -0.2": lambda: objectives.FlowMatching(
            times=LogitNormal(-0.2, 1.0)
        ),
        "logit-normal -0.8": lambda: objectives.FlowMatching(
            times=LogitNormal(-0.8, 1.0)
        ),
    },
    "IMM, small budget": {
        "share 1/2": lambda: moment_matching(
            times="logit_normal", flow_matching_share=0.5
        ),
        "share 0": lambda: moment_matching(times="logit_normal"),
        "M 1": lambda: moment_matching(
            times="logit_normal", flow_matching_share=0.25, group_size=1
        ),
        "logit-normal 0": lambda: moment_matching(
            times=LogitNormal(0.0, 1.0), flow_matching_share=0.25
        ),
    },
}


def make(name, trial=None):
    """The objective of a configuration or of one of its trials, and its flow map's."""
    objective, of_flow_map = CONFIGURATIONS[name]
    if trial is not None:
        objective = TRIALS[name][trial]
    return objective(), of_flow_map


def build(data, name, trial, seed, steps):
    keras.utils.set_random_seed(seed)
    objective, of_flow_map = make(name, trial)
    model = keras_imm.FlowMapModel(data.backbone(), objective, seed=seed, **of_flow_map)
    rate = training_report.cosine_rate(RATE, steps, WARMUP)
    model.compile(training_report.averaging(keras.optimizers.Adam, rate, EMA))
    return model


def run_one(name, trial, seed, steps):
    """Trains and measures one run."""
    data = budgets.Data(FLAGS.data)
    model = build(data, name, trial, seed, steps)
    epoch = min(200, steps)
    batches = array_batches.Batches(data.arrays, BATCH, epoch, seed)
    times = measuring.EpochTimes()
    options = {"shuffle": False, "verbose": 0, "callbacks": [times]}
    history = model.fit(batches, epochs=max(1, steps // epoch), **options).history
    measuring.wait(history["loss"])
    return {
        "name": name,
        "trial": trial,
        "seed": seed,
        "training_steps": steps,
        "network_passes": model.objective.network_passes,
        "seconds_per_step": float(np.median(times.seconds[1:] or times.seconds))
        / epoch,
        "peak_mebibytes": measuring.peak_mib(),
        "logs": {key: values[-1] for key, values in history.items()},
        "results": budgets.rows_of(model, data, SAMPLING_STEPS, seed),
        **{k: v for k, v in training_report.environment().items() if k != "command"},
    }


def steps_of(name, costs):
    """As many steps as --budget allows."""
    if FLAGS.budget == "steps":
        return FLAGS.steps
    if FLAGS.budget == "passes":
        of_base, passes = (
            make(each)[0].network_passes for each in ("IMM, as published", name)
        )
    else:
        of_base, passes = costs["IMM, as published"], costs[name]
    return max(1, round(FLAGS.steps * of_base / passes / 200)) * 200


def key(one):
    return one["name"], one["trial"], one["seed"], one["budget"]


def child(one):
    """Runs one in a process of its own."""
    command = [sys.executable, __file__, f"--data={FLAGS.data}"]
    command.append(f"--one={json.dumps(one)}")
    result = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(result.stdout.splitlines()[-1])


def cost_of(name):
    """Processor seconds of a step, the median of five epochs of twenty."""
    data = budgets.Data(FLAGS.data)
    model = build(data, name, None, 0, 1000)
    batches = array_batches.Batches(data.arrays, BATCH, 20, 0)
    times = measuring.EpochTimes(time.process_time)
    model.fit(batches, epochs=6, shuffle=False, verbose=0, callbacks=[times])
    return float(np.median(times.seconds[1:])) / 20


def table(results):
    """Markdown: means over the seeds ± their standard errors, and a median."""
    groups = {}
    for one in results:
        title = one["name"] + (f": {one['trial']}" if one["trial"] else "")
        groups.setdefault((title, one["budget"], one["backend"]), []).append(one)
    titles = [f"{n} step{'s' if n > 1 else ''}" for n in SAMPLING_STEPS]
    lines = [
        "| objective | budget | backend | seeds | steps | ms / step | "
        f"median at 1 step | {' | '.join(titles)} |",
        "|---" * (7 + len(titles)) + "|",
    ]
    for (title, budget, backend), group in groups.items():
        cells = budgets.cells([one["results"] for one in group])
        first = np.median([one["results"][0]["frechet"] for one in group])
        milliseconds = 1000 * np.median([one["seconds_per_step"] for one in group])
        seeds = ", ".join(str(one["seed"]) for one in group)
        lines.append(
            f"| {title} | {budget} | {backend} | {seeds} "
            f"| {group[0]['training_steps']:,} | {milliseconds:.1f} "
            f"| {first:.3f} | {' | '.join(cells)} |"
        )
    return "\n".join(lines)


def main(_):
    if FLAGS.one:
        one = json.loads(FLAGS.one)
        found = cost_of(one["name"]) if "cost" in one else run_one(**one)
        print(json.dumps(found))
        return
    name = FLAGS.out or ROOT / "benchmarks" / "data" / f"objectives_{FLAGS.data}.json"
    path = pathlib.Path(name)
    kept = {"costs": {}, "runs": []}
    if path.exists():
        kept = json.loads(path.read_text())
    if FLAGS.table:
        print(table(kept["runs"]))
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    names = FLAGS.name or list(CONFIGURATIONS)
    backend = keras.backend.backend()
    if FLAGS.costs:
        for each in names:
            cost = child({"name": each, "cost": True})
            kept["costs"].setdefault(backend, {})[each] = cost
            print(f"{each}: {1000 * cost:.1f} ms of processor time a step", flush=True)
            write_json(path, kept)
        return
    done = {(*key(one), one["backend"]) for one in kept["runs"]}
    for seed in map(int, FLAGS.seeds):
        for each in names:
            trials = list(TRIALS.get(each, {})) if FLAGS.tuning else [None]
            for trial in trials:
                if (each, trial, seed, FLAGS.budget, backend) in done:
                    continue
                steps = steps_of(each, kept["costs"].get(backend, {}))
                one = {"name": each, "trial": trial, "seed": seed, "steps": steps}
                found = {**child(one), "budget": FLAGS.budget}
                kept["runs"].append(found)
                write_json(path, kept)
                first = found["results"][0]["frechet"]
                print(f"{each}, {trial}, seed {seed}: {first:.3f}", flush=True)


if __name__ == "__main__":
    app.run(main)
