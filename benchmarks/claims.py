"""Claims of the IMM paper, each as a command that trains what it is about.

    KERAS_BACKEND=jax python benchmarks/claims.py --claim=kernel --seeds=0,1,2
    python benchmarks/claims.py --table

A claim is a set of variants of one setting: the network of examples/digits.py (or that
of Fashion-MNIST, --data), IMM as published but for what the variant says, and the same
steps for all. Each run is a process; one that is in the file of results is not
repeated. --table prints, for each claim, the Fréchet distance and the agreement at each
number of steps, mean and standard error over the seeds, and the share of the gradient
that the particles of a group owe to each other (`keras_imm.objectives.mmd`), mean over
the training; docs/claims.md says what the paper claims and what came out.
"""

import json
import os
import pathlib
import subprocess
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "examples"))

import array_batches
import budgets
import keras
import numpy as np
import training_report
from absl import app, flags
from keras import ops

import keras_imm
from keras_imm.files.atomic import write_json
from keras_imm.time_mappings import (
    EtaDecrement,
    InverseEtaIncrement,
    LogSNRDecrement,
    TimeDecrement,
)

FLAGS = flags.FLAGS
flags.DEFINE_multi_string("claim", [], "A claim. Default: all.")
flags.DEFINE_enum("data", "digits", ["digits", "fashion_mnist"], "The data set.")
flags.DEFINE_list("seeds", "0", "Seeds.")
flags.DEFINE_integer("steps", 4000, "Training steps.", lower_bound=1)
flags.DEFINE_integer("batch_size", 64, "Images of a step.", lower_bound=1)
flags.DEFINE_bool("table", False, "Print the tables of the results; run nothing.")
flags.DEFINE_string("out", "", "File of the results. Default: one by the data's name.")
flags.DEFINE_string("one", "", "For the child processes: JSON of one run.")

ROOT = pathlib.Path(__file__).resolve().parents[1]
SAMPLING_STEPS = (1, 2, 4, 8)
GAP = {"time_mapping": EtaDecrement(k=12, min_gap=0.005)}


def gap(k, min_gap=0.005, mapping=EtaDecrement):
    return {"time_mapping": mapping(k=k, min_gap=min_gap)}


def network(**arguments):
    return {"network": arguments}


class ShrinkingGap(keras_imm.objectives.MomentMatching):
    """Moment matching whose smallest gap falls while it trains, as an exponential."""

    needs_total_steps = True

    def __init__(self, first, last, **arguments):
        super().__init__(**arguments)
        self.gaps = first, last

    def draw(self, network, x, labels, seed, progress=None, training=True):
        first, last = self.gaps
        gap = first * ops.exp(np.log(last / first).astype("float32") * progress)
        self.time_mapping.min_gap = gap
        return super().draw(network, x, labels, seed, progress, training)


class Gamma(keras_imm.samplers.Sampler):
    """Between pushforward (gamma 0) and restart (1): CTM's gamma sampling.

    It jumps below s, to where eta is that of s times sqrt(1 - gamma^2), and adds noise
    up to s (Kim et al., 2024, arXiv:2310.02279).
    """

    def __init__(self, gamma):
        self.gamma = gamma

    def step(self, network, x, t, s, index, noise):
        schedule = network.schedule
        below = schedule.inverse_eta((1.0 - self.gamma**2) ** 0.5 * schedule.eta(s))
        below = ops.where(s <= network.min_time, s, below)
        x = network.flow_map(x, t, below)
        if noise is None:  # of one step
            return x
        ratio = schedule.alpha(s) / schedule.alpha(below)
        variance = schedule.sigma(s) ** 2 - (ratio * schedule.sigma(below)) ** 2
        renoised = ratio * x + ops.sqrt(ops.maximum(variance, 0.0)) * noise
        return ops.where(s <= network.min_time, x, renoised)

    def noises(self, num_steps):
        return num_steps - 1


# By claim the variants: arguments of `IMM`, and of the network; the sampler that is
# measured, or the first and the last of gaps that shrink.
CLAIMS = {
    # Fig. 5: training is stable with 4 particles or more, and not with 1.
    "particles": {f"M = {m}": {"group_size": m} for m in (1, 2, 4, 8, 16)},
    # Fig. 11: eta decrements do best.
    "mappings": {
        "eta decrement": gap(12),
        "time decrement": gap(8, mapping=TimeDecrement),
        "log-SNR decrement": {**gap(8, mapping=LogSNRDecrement), "min_time": 0.006},
        "inverse eta increment": {
            **gap(8, mapping=InverseEtaIncrement),
            "min_time": 0.006,
        },
    },
    # Fig. 10: gaps that are too small make training unstable, too large biased.
    "gap": {f"k = {k}": gap(k, 0.0) for k in (6, 8, 10, 12, 14, 16)},
    "smallest gap": {f"min_gap = {g}": gap(12, g) for g in (0.0, 0.0025, 0.005, 0.02)},
    # Table 4: the ELBO's weights do better than uniform ones.
    "weighting": {
        "uniform": {"weighting": "uniform"},
        "a = 1": {"weighting": keras_imm.weightings.ELBO(a=1, b=4)},
        "a = 2": {"weighting": keras_imm.weightings.ELBO(a=2, b=4)},
    },
    # Table 3: Simple-EDM and Euler-FM do better than identity.
    "parameterization": {
        "identity": {"parameterization": "identity", "min_time": 0.006},
        "simple_edm": {"parameterization": "simple_edm"},
        "euler_fm": {"parameterization": "euler_fm"},
        "cosine, simple_edm": {
            **{"schedule": "cosine", "parameterization": "simple_edm"},
            "max_time": 0.996,
        },
    },
    # Fig. 4: the scale of the time embedding matters for stability.
    "time scale": {
        f"{scale:g}, {second}": {"time_scale": scale, "second_time": second}
        for scale in (1.0, 10.0, 1000.0)
        for second in ("s", "stride")
    },
    # Fig. 7: more steps of training and larger networks do better.
    "size": {
        "32 x 2": network(hidden_size=32, depth=2),
        "64 x 3": network(hidden_size=64, depth=3),
        "128 x 4": network(hidden_size=128, depth=4),
    },
    "kernel": {
        "Laplace": {"kernel": "laplace"},
        "RBF": {"kernel": "rbf"},
        "energy": {"kernel": "energy"},
        "pseudo-Huber 0.5": {"kernel": keras_imm.kernels.PseudoHuber(0.5)},
    },
    # What the paper left open.
    "sampler": {
        "pushforward": {},
        "restart": {"sampler": "restart"},
        "gamma 0.25": {"sampler": Gamma(0.25)},
        "gamma 0.5": {"sampler": Gamma(0.5)},
    },
    "gap schedule": {
        "0.005": {},
        "0.05 to 0.005": {"gaps": (0.05, 0.005)},
        "0.1 to 0.002": {"gaps": (0.1, 0.002)},
        "0.005 to 0.0005": {"gaps": (0.005, 0.0005)},
    },
}


def build(data, variant, seed, steps):
    keras.utils.set_random_seed(seed)
    arguments = {**GAP, **variant}
    backbone = data.backbone(**arguments.pop("network", {}))
    arguments.pop("sampler", None)
    if gaps := arguments.pop("gaps", None):
        objective = ShrinkingGap(*gaps, **arguments)
        model = keras_imm.FlowMapModel(backbone, objective, seed=seed)
    else:
        model = keras_imm.IMM(backbone, seed=seed, **arguments)
    rate = training_report.cosine_rate(2e-3, steps, 100)
    model.compile(training_report.averaging(keras.optimizers.Adam, rate, 0.995))
    return model


def run_one(claim, variant, seed, steps, batch_size):
    """Trains and measures one run."""
    data = budgets.Data(FLAGS.data)
    model = build(data, CLAIMS[claim][variant], seed, steps)
    epoch = min(200, steps)
    history = model.fit(
        array_batches.Batches(data.arrays, batch_size, epoch, seed),
        epochs=max(1, steps // epoch),
        shuffle=False,
        verbose=0,
    ).history
    return {
        **{"claim": claim, "variant": variant, "seed": seed, "steps": steps},
        "batch_size": batch_size,
        "backend": keras.backend.backend(),
        "history": history,
        "results": budgets.rows_of(
            model,
            data,
            SAMPLING_STEPS,
            seed,
            sampler=CLAIMS[claim][variant].get("sampler"),
        ),
    }


def table(runs):
    """Markdown: a table for each claim."""
    titles = [f"{n} step{'s' if n > 1 else ''}" for n in SAMPLING_STEPS]
    parts = []
    for claim in dict.fromkeys(one["claim"] for one in runs):
        lines = [
            f"### {claim}",
            "",
            f"| variant | backend | seeds | {' | '.join(titles)} | interaction |",
            "|---" * (4 + len(titles)) + "|",
        ]
        groups = {}
        for one in runs:
            if one["claim"] == claim:
                groups.setdefault((one["variant"], one["backend"]), []).append(one)
        for (variant, backend), group in groups.items():
            seeds = ", ".join(str(one["seed"]) for one in group)
            cells = " | ".join(budgets.cells([one["results"] for one in group]))
            shares = [one.get("history", {}).get("interaction_share") for one in group]
            share = f"{np.mean(shares):.3f}" if None not in shares else ""
            lines.append(f"| {variant} | {backend} | {seeds} | {cells} | {share} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def main(_):
    if FLAGS.one:
        print(json.dumps(run_one(**json.loads(FLAGS.one))))
        return
    name = FLAGS.out or ROOT / "benchmarks" / "data" / f"claims_{FLAGS.data}.json"
    path = pathlib.Path(name)
    runs = json.loads(path.read_text()) if path.exists() else []
    if FLAGS.table:
        print(table(runs))
        return
    unknown = set(FLAGS.claim) - CLAIMS.keys()
    if unknown:
        raise app.UsageError(f"--claim must be one of {', '.join(CLAIMS)}.")
    path.parent.mkdir(parents=True, exist_ok=True)
    backend = keras.backend.backend()
    done = {(r["claim"], r["variant"], r["seed"], r["backend"]) for r in runs}
    for claim in FLAGS.claim or CLAIMS:
        for seed in map(int, FLAGS.seeds):
            for variant in CLAIMS[claim]:
                if (claim, variant, seed, backend) in done:
                    continue
                one = {"claim": claim, "variant": variant, "seed": seed}
                one |= {"steps": FLAGS.steps, "batch_size": FLAGS.batch_size}
                command = [sys.executable, __file__, f"--data={FLAGS.data}"]
                command.append(f"--one={json.dumps(one)}")
                result = subprocess.run(
                    command, check=True, stdout=subprocess.PIPE, text=True
                )
                runs.append(json.loads(result.stdout.splitlines()[-1]))
                write_json(path, runs)
                values = [round(row["frechet"], 3) for row in runs[-1]["results"]]
                print(f"{claim}, {variant}, seed {seed}: {values}", flush=True)


if __name__ == "__main__":
    app.run(main)
