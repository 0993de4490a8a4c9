"""Few-step objectives on one backbone, one data set and one budget.

    KERAS_BACKEND=jax python benchmarks/objectives.py --seeds=0,1,2,3,4
    KERAS_BACKEND=jax python benchmarks/objectives.py --seeds=10 --tuning
    KERAS_BACKEND=jax python benchmarks/objectives.py --costs
    KERAS_BACKEND=jax python benchmarks/objectives.py --best --budget=time --seeds=0,1
    python benchmarks/objectives.py --table
    python benchmarks/objectives.py --data=fashion_mnist --seeds=0,1

Each run is a process. Backbone, optimizer, batch and data are the same for all; what an
objective is given beside is in CONFIGURATIONS, and what it is tuned by, --trials of
each, in TRIALS. --best takes the trial, or the configuration, whose Fréchet distances
at 1, 2 and 4 steps have the smallest geometric mean among the runs of --tuning.
--budget says what all have in common: the steps (`steps`, of moment matching), the
forward passes of the network (`passes`), or the time (`time`: steps by the cost of a
step that --costs measures in processor seconds, all objectives by turns in one
process). A run that is in the file of results is not repeated, nor, unless its samples
are asked for, one that is the same under another budget, and --merge adds those of
other files. --table prints, for each
objective, means over the seeds with their standard errors and, after the stroke, of
label agreement, and the median at one step; with --precision, precision and recall.
--samples leaves samples of each run in a folder; draw_objectives.py draws them.
"""

import json
import os
import pathlib
import subprocess
import sys
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "examples"))

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
flags.DEFINE_integer(
    "num_samples", 10_000, "Images per measurement of clothes.", lower_bound=80
)
flags.DEFINE_bool("tuning", False, "Run the configurations and their trials.")
flags.DEFINE_integer("trials", 4, "Trials of each objective.", lower_bound=0)
flags.DEFINE_bool("best", False, "Run what was best among the runs of --tuning.")
flags.DEFINE_multi_string("merge", [], "File whose runs to add; run nothing.")
flags.DEFINE_bool("costs", False, "Measure the cost of a step of each; train nothing.")
flags.DEFINE_bool("table", False, "Print the table of the results; run nothing.")
flags.DEFINE_bool("precision", False, "Precision and recall in --table.")
flags.DEFINE_string("samples", "", "Folder for ten samples of each number of steps.")
flags.DEFINE_string("out", "", "File of the results. Default: one by the data's name.")
flags.DEFINE_string("one", "", "For the child processes: JSON of one run.")

ROOT = pathlib.Path(__file__).resolve().parents[1]
BATCH = 32
RATE = 2e-3
WARMUP = 100
EMA = 0.995
SAMPLING_STEPS = (1, 2, 4, 8, 32)
OF_TUNING = (1, 2, 4)
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
        "momentum 0.95": lambda: objectives.Shortcut(0.25, target_momentum=0.95),
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


def results_of(model, data, seed):
    """What is measured of a trained model; what --best looks at, of one of --tuning."""
    if FLAGS.tuning:
        return budgets.rows_of(model, data, OF_TUNING, seed, of_neighbours=())
    return budgets.rows_of(model, data, SAMPLING_STEPS, seed)


def keep_samples(model, name, trial, seed):
    """One sample of each class for each number of steps: (steps, 10, ...)."""
    samples = [
        model.generate(range(10), num_steps=count, seed=seed, verbose=0)
        for count in SAMPLING_STEPS
    ]
    title = f"{name}: {trial}" if trial else name
    folder = pathlib.Path(FLAGS.samples, keras.backend.backend(), str(seed))
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{title.replace('/', ' of ')}.npz"
    np.savez_compressed(file, steps=SAMPLING_STEPS, samples=np.float16(samples))


def run_one(name, trial, seed, steps):
    """Trains and measures one run."""
    data = budgets.Data(FLAGS.data, FLAGS.num_samples)
    model = build(data, name, trial, seed, steps)
    epoch = min(200, steps)
    batches = data.batches(BATCH, epoch, seed)
    times = measuring.EpochTimes()
    options = {"shuffle": False, "verbose": 0, "callbacks": [times]}
    history = model.fit(batches, epochs=max(1, steps // epoch), **options).history
    measuring.wait(history["loss"])
    if FLAGS.samples:
        keep_samples(model, name, trial, seed)
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
        "results": results_of(model, data, seed),
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


def training_of(one):
    """What tells one training from another."""
    names = ("name", "trial", "seed", "training_steps", "tuning", "backend")
    return tuple(one[name] for name in names)


def key(one):
    return (*training_of(one), one["budget"])


def trained_alike(one, runs):
    """The same run as it was made under another budget; None if there is none."""
    for run in runs:
        if training_of(run) == training_of(one):
            return run
    return None


def few_steps(one):
    """Geometric mean of the Fréchet distances at 1, 2 and 4 steps."""
    found = {row["steps"]: row["frechet"] for row in one["results"]}
    return float(np.exp(np.mean([np.log(found[n]) for n in OF_TUNING])))


def best_trial(name, runs, backend):
    """The trial, or None, that was best on the seeds of --tuning."""
    found = {}
    for one in runs:
        if one["tuning"] and (one["name"], one["backend"]) == (name, backend):
            found.setdefault(one["trial"], []).append(few_steps(one))
    return min(found, key=lambda trial: np.mean(found[trial])) if found else None


def trials_of(name, runs, backend):
    """The trials of a name to run; None is its configuration as it is."""
    if FLAGS.tuning:
        return [None, *list(TRIALS.get(name, {}))[: FLAGS.trials]]
    return [best_trial(name, runs, backend) if FLAGS.best else None]


def child(one):
    """Runs one in a process of its own."""
    command = [sys.executable, __file__, f"--data={FLAGS.data}"]
    command += [f"--num_samples={FLAGS.num_samples}", f"--tuning={FLAGS.tuning}"]
    command.append(f"--samples={FLAGS.samples}")
    command.append(f"--one={json.dumps(one)}")
    result = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(result.stdout.splitlines()[-1])


def costs_of(names, rounds=12, epoch=20):
    """Processor seconds of a step of each, medians over epochs of so many steps.

    They take turns, so that what else the machine does falls on all alike.
    """
    data = budgets.Data(FLAGS.data)
    batches = data.batches(BATCH, epoch, 0)
    models = {name: build(data, name, None, 0, 1000) for name in names}
    for model in models.values():
        model.objective.total_steps = 1000
    seconds = {name: [] for name in names}
    for _ in range(rounds):
        for name, model in models.items():
            times = measuring.EpochTimes(time.process_time)
            model.fit(batches, shuffle=False, verbose=0, callbacks=[times])
            seconds[name] += times.seconds
    # The first of each has compiled.
    medians = {name: np.median(taken[1:]) for name, taken in seconds.items()}
    return {name: float(median) / epoch for name, median in medians.items()}


def table(kept):
    """Markdown: means over the seeds ± their standard errors, and a median.

    The cost of a step is that of --costs, of the name's configuration.
    """
    groups = {}
    for one in kept["runs"]:
        title = one["name"] + (f": {one['trial']}" if one["trial"] else "")
        budget = "tuning" if one["tuning"] else one["budget"]
        of = budget, title, one["backend"], one["training_steps"]
        groups.setdefault(of, []).append(one)
    titles = [f"{n} step{'s' if n > 1 else ''}" for n in SAMPLING_STEPS]
    lines = [
        "| objective | budget | backend | seeds | steps | cost, ms | peak MiB | "
        f"median at 1 step | {' | '.join(titles)} |",
        "|---" * (8 + len(titles)) + "|",
    ]
    for (budget, title, backend, steps), group in sorted(groups.items()):
        cost = kept["costs"].get(backend, {}).get(group[0]["name"])
        names = ("precision", "recall") if FLAGS.precision else ("frechet", "agreement")
        cells = budgets.cells([one["results"] for one in group], names)
        cells += [""] * (len(SAMPLING_STEPS) - len(cells))
        first = np.median([one["results"][0]["frechet"] for one in group])
        peak = np.median([one["peak_mebibytes"] for one in group])
        seeds = ", ".join(str(seed) for seed in sorted(one["seed"] for one in group))
        lines.append(
            f"| {title} | {budget} | {backend} | {seeds} "
            f"| {steps:,} "
            f"| {'' if cost is None else f'{1000 * cost:.1f}'} | {peak:.0f} "
            f"| {first:.3f} | {' | '.join(cells)} |"
        )
    return "\n".join(lines)


def merge(kept, found):
    """Adds what another file holds."""
    done = {key(one) for one in kept["runs"]}
    for one in found["runs"]:
        if key(one) not in done:
            kept["runs"].append(one)
    for backend, costs in found["costs"].items():
        kept["costs"].setdefault(backend, {}).update(costs)


def main(_):
    if FLAGS.one:
        one = json.loads(FLAGS.one)
        found = costs_of(**one) if "names" in one else run_one(**one)
        print(json.dumps(found))
        return
    name = FLAGS.out or ROOT / "benchmarks" / "data" / f"objectives_{FLAGS.data}.json"
    path = pathlib.Path(name)
    kept = {"costs": {}, "runs": []}
    if path.exists():
        kept = json.loads(path.read_text())
    if FLAGS.table:
        print(table(kept))
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    if FLAGS.merge:
        for each in FLAGS.merge:
            merge(kept, json.loads(pathlib.Path(each).read_text()))
        write_json(path, kept)
        return
    names = FLAGS.name or list(CONFIGURATIONS)
    backend = keras.backend.backend()
    if FLAGS.costs:
        costs = child({"names": names})
        kept["costs"].setdefault(backend, {}).update(costs)
        write_json(path, kept)
        for each in names:
            print(f"{each}: {1000 * costs[each]:.1f} ms of processor time a step")
        return
    for seed in map(int, FLAGS.seeds):
        for each in names:
            for trial in trials_of(each, kept["runs"], backend):
                steps = steps_of(each, kept["costs"].get(backend, {}))
                one = {"name": each, "trial": trial, "seed": seed}
                of_run = {"budget": FLAGS.budget, "tuning": FLAGS.tuning}
                wanted = {**one, **of_run, "training_steps": steps, "backend": backend}
                if key(wanted) in map(key, kept["runs"]):
                    continue
                same = None if FLAGS.samples else trained_alike(wanted, kept["runs"])
                found = {**(same or child({**one, "steps": steps})), **of_run}
                kept["runs"].append(found)
                write_json(path, kept)
                first = found["results"][0]["frechet"]
                print(f"{each}, {trial}, seed {seed}: {first:.3f}", flush=True)


if __name__ == "__main__":
    app.run(main)
