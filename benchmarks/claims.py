"""Claims of the IMM paper, each as a command that trains what it is about.

    KERAS_BACKEND=jax python benchmarks/claims.py --claim=kernel --seeds=0,1,2
    KERAS_BACKEND=jax python benchmarks/claims.py --data=checkerboard --seeds=0,1,2
    python benchmarks/claims.py --table

A claim is a set of variants of one setting: the network of examples/digits.py (or that
of Fashion-MNIST, or of the checkerboard: --data), IMM as published but for what the
variant says, and the same steps for all. --recipe=small_scale has a time scale of 1 and
the stride as second time, which vary less from seed to seed. Each training is a
process; variants that are that setting as it is share one. What is in the file of
results is not repeated, and --merge adds what other files hold. --table prints, for
each claim, the Fréchet distance and the agreement (of points: total variation and the
share off the board) at each number of steps, mean and standard error over the seeds,
and the share of the gradient that the particles of a group owe to each other
(`keras_imm.objectives.mmd`), mean over the training; docs/claims.md says what the paper
claims and what came out.
"""

import json
import os
import pathlib
import subprocess
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "examples"))

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
flags.DEFINE_enum(
    "data",
    "digits",
    ["digits", "fashion_mnist", "fashion_mnist_32", "checkerboard"],
    "The data set.",
)
flags.DEFINE_enum(
    "recipe", "published", ["published", "small_scale"], "What the variants vary."
)
flags.DEFINE_list("seeds", "0", "Seeds.")
flags.DEFINE_bool("table", False, "Print the tables of the results; run nothing.")
flags.DEFINE_multi_string("merge", [], "File whose runs to add; run nothing.")
flags.DEFINE_string("out", "", "File of the results. Default: one by the data's name.")
flags.DEFINE_string("one", "", "For the child processes: JSON of one run.")

ROOT = pathlib.Path(__file__).resolve().parents[1]
SAMPLING_STEPS = (1, 2, 4, 8)
GAP = {"time_mapping": EtaDecrement(k=12, min_gap=0.005)}
# What the variants of a claim vary: arguments of `IMM` and of the training.
IMAGES = {"steps": 4000, "batch_size": 32, "rate": 2e-3, "warmup": 100, "ema": 0.995}
POINTS = {"steps": 1200, "batch_size": 1024, "rate": 6e-3, "warmup": 0, "ema": 0.99}
RECIPES = {
    "published": {**IMAGES, **GAP, "time_scale": 1000.0, "second_time": "s"},
    "small_scale": {**IMAGES, **GAP, "time_scale": 1.0, "second_time": "stride"},
    # That of examples/checkerboard.py.
    "checkerboard": {
        **POINTS,
        **{"time_mapping": TimeDecrement(k=4), "time_scale": 4.0, "group_size": 64},
    },
}


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


class Factors(keras_imm.weightings.ELBO):
    """The ELBO's factor of Eq. 13 with a = 1 alone, or times alpha alone."""

    def __init__(self, alpha):
        super().__init__(a=1, b=4)
        self.alpha = alpha

    def __call__(self, schedule, s, t):
        weight = super().__call__(schedule, s, t) * schedule.squared_norm(t)
        return weight if self.alpha else weight / schedule.alpha(t)


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


# By claim the variants: arguments of `IMM`, of the training, of the network; the
# sampler that is measured, or the first and the last of gaps that shrink.
PARAMETERIZATIONS = {
    "identity": {"parameterization": "identity", "min_time": 0.006},
    "simple_edm": {"parameterization": "simple_edm"},
    "euler_fm": {},
    "cosine, simple_edm": {
        **{"schedule": "cosine", "parameterization": "simple_edm"},
        "max_time": 0.996,
    },
}
WEIGHTINGS = {
    "uniform": {"weighting": "uniform"},
    "ELBO": {"weighting": Factors(alpha=False)},
    "ELBO, alpha": {"weighting": Factors(alpha=True)},
    "a = 1": {},
    "a = 2": {"weighting": keras_imm.weightings.ELBO(a=2, b=4)},
}
KERNELS = {
    "Laplace": {},
    "RBF": {"kernel": "rbf"},
    "energy": {"kernel": "energy"},
    "pseudo-Huber 0.5": {"kernel": keras_imm.kernels.PseudoHuber(0.5)},
}
SAMPLERS = {
    "pushforward": {},
    "restart": {"sampler": "restart"},
    "gamma 0.25": {"sampler": Gamma(0.25)},
    "gamma 0.5": {"sampler": Gamma(0.5)},
}
CLAIMS = {
    # What the paper left open: pushforward combined with restart. One training.
    "sampler": SAMPLERS,
    # Fig. 5: training is stable with 4 particles or more, and not with 1.
    "particles": {
        **{f"M = {m}": {"group_size": m} for m in (1, 2)},
        "M = 4": {},
        **{f"M = {m}": {"group_size": m} for m in (8, 16)},
    },
    # Fig. 11: eta decrements do best.
    "mappings": {
        "eta decrement": {},
        "time decrement": gap(8, mapping=TimeDecrement),
        "log-SNR decrement": {**gap(8, mapping=LogSNRDecrement), "min_time": 0.006},
        "inverse eta increment": {
            **gap(8, mapping=InverseEtaIncrement),
            "min_time": 0.006,
        },
    },
    # Fig. 10: gaps that are too small make training unstable, too large biased.
    "gap": {f"k = {k}": gap(k, 0.0) for k in (6, 8, 10, 12, 14, 16)},
    "smallest gap": {
        "min_gap = 0.0025": gap(12, 0.0025),
        "min_gap = 0.005": {},
        "min_gap = 0.02": gap(12, 0.02),
    },
    # Table 4: each factor of Eq. 13 helps.
    "weighting": WEIGHTINGS,
    # Table 3: Simple-EDM and Euler-FM do better than identity.
    "parameterization": PARAMETERIZATIONS,
    # Fig. 4: the scale of the time embedding matters for stability.
    "time scale": {
        f"{scale:g}, {second}": {"time_scale": scale, "second_time": second}
        for scale in (1.0, 10.0, 1000.0)
        for second in ("s", "stride")
    },
    # Fig. 7: more steps of training and larger networks do better.
    "steps of training": {
        "1,000": {"steps": 1000},
        "2,000": {"steps": 2000},
        "4,000": {},
        "8,000": {"steps": 8000},
    },
    "size": {
        "32 x 2": network(hidden_size=32, depth=2),
        "64 x 3": {},
        "128 x 4": network(hidden_size=128, depth=4),
    },
    "kernel": KERNELS,
    # What the paper left open.
    "gap schedule": {
        "0.005": {},
        "0.05 to 0.005": {"gaps": (0.05, 0.005)},
        "0.1 to 0.002": {"gaps": (0.1, 0.002)},
        "0.005 to 0.0005": {"gaps": (0.005, 0.0005)},
    },
}
ON_CLOTHES = {
    # Fig. 5 and Fig. 7, where images are larger.
    "particles": {
        "M = 1": {"group_size": 1},
        "M = 4": {},
        "M = 16": {"group_size": 16},
    },
    "steps of training": {"1,000": {"steps": 1000}, "4,000": {}},
    "size": {
        "88 x 2": network(hidden_size=88, depth=2),
        "176 x 4": {},
    },
}
ON_POINTS = {
    "sampler": SAMPLERS,
    "particles": {
        **{f"M = {m}": {"group_size": m} for m in (1, 4, 16)},
        "M = 64": {},
        "M = 256": {"group_size": 256},
    },
    "particles, k = 8": {
        f"M = {m}": {"group_size": m, **gap(8, 0.0, TimeDecrement)}
        for m in (1, 4, 16, 64, 256)
    },
    "mappings": {
        "time decrement": {},
        "eta decrement": gap(8, 0.0),
        "log-SNR decrement": {**gap(4, 0.0, LogSNRDecrement), "min_time": 0.006},
        "inverse eta increment": {
            **gap(8, 0.0, InverseEtaIncrement),
            "min_time": 0.006,
        },
    },
    "gap": {
        **{f"k = {k}": gap(k, 0.0, TimeDecrement) for k in (2, 3)},
        "k = 4": {},
        **{f"k = {k}": gap(k, 0.0, TimeDecrement) for k in (5, 6, 8, 10)},
    },
    "weighting": WEIGHTINGS,
    "parameterization": PARAMETERIZATIONS,
    "time scale": {
        "1": {"time_scale": 1.0},
        "4": {},
        "1000": {"time_scale": 1000.0},
    },
    "steps of training": {
        "300": {"steps": 300},
        "1,200": {},
        "4,800": {"steps": 4800},
    },
    "size": {
        "32 x 3": network(width=32),
        "128 x 3": {},
        "256 x 4": network(width=256, depth=4),
    },
    "kernel": KERNELS,
}
BY_DATA = {
    "digits": CLAIMS,
    "fashion_mnist": ON_CLOTHES,
    "fashion_mnist_32": {"particles": ON_CLOTHES["particles"]},
    "checkerboard": ON_POINTS,
}
MEASURES = {"checkerboard": ("total_variation", "off_board")}


def recipe():
    return FLAGS.data if FLAGS.data in RECIPES else FLAGS.recipe


def build(data, setting, seed):
    """A compiled model of what a recipe and a variant give together."""
    keras.utils.set_random_seed(seed)
    arguments = {k: v for k, v in setting.items() if k not in IMAGES}
    backbone = data.backbone(**arguments.pop("network", {}))
    if gaps := arguments.pop("gaps", None):
        of_flow_map = {
            name: arguments.pop(name)
            for name in ("time_scale", "second_time")
            if name in arguments
        }
        objective = ShrinkingGap(*gaps, **arguments)
        model = keras_imm.FlowMapModel(backbone, objective, seed=seed, **of_flow_map)
    else:
        model = keras_imm.IMM(backbone, seed=seed, **arguments)
    rate = training_report.cosine_rate(
        setting["rate"], setting["steps"], setting["warmup"]
    )
    model.compile(
        training_report.averaging(keras.optimizers.Adam, rate, setting["ema"])
    )
    return model


def data_of():
    if FLAGS.data == "checkerboard":
        return budgets.Checkerboard()
    return budgets.Data(FLAGS.data)


def setting_of(claim, variant):
    changes = dict(BY_DATA[FLAGS.data][claim][variant])
    changes.pop("sampler", None)
    return {**RECIPES[recipe()], **changes}


def trained_together(claim):
    """The variants of a claim, by what one training can measure."""
    variants = list(BY_DATA[FLAGS.data][claim])
    return [variants] if claim == "sampler" else [[variant] for variant in variants]


def run_one(claim, variants, seed):
    """Trains once; measures each variant."""
    data = data_of()
    setting = setting_of(claim, variants[0])
    model = build(data, setting, seed)
    steps = setting["steps"]
    epoch = steps if FLAGS.data == "checkerboard" else min(200, steps)
    history = model.fit(
        data.batches(setting["batch_size"], epoch, seed),
        epochs=max(1, steps // epoch),
        shuffle=False,
        verbose=0,
    ).history
    samplers = [BY_DATA[FLAGS.data][claim][v].get("sampler") for v in variants]
    return [
        {
            **{"claim": claim, "variant": variant, "seed": seed, "recipe": recipe()},
            "backend": keras.backend.backend(),
            "history": history,
            "results": budgets.rows_of(
                model, data, SAMPLING_STEPS, seed, sampler=sampler
            ),
        }
        for variant, sampler in zip(variants, samplers, strict=True)
    ]


def is_recipe(claim, variant):
    return setting_of(claim, variant) == RECIPES[recipe()]


def as_it_is(runs, of):
    """A run of the recipe without changes, under any claim; None if there is none."""
    for run in runs:
        if key(run)[2:] == of[2:] and is_recipe(run["claim"], run["variant"]):
            return run
    return None


def key(run):
    return tuple(run[k] for k in ("claim", "variant", "recipe", "seed", "backend"))


def table(runs):
    """Markdown: a table for each claim."""
    titles = [f"{n} step{'s' if n > 1 else ''}" for n in SAMPLING_STEPS]
    names = MEASURES.get(FLAGS.data, ("frechet", "agreement"))
    parts = []
    for claim in BY_DATA[FLAGS.data]:
        lines = [
            f"### {claim}",
            "",
            f"| recipe | variant | backend | seeds | {' | '.join(titles)} "
            "| interaction |",
            "|---" * (5 + len(titles)) + "|",
        ]
        groups = {}
        order = list(BY_DATA[FLAGS.data][claim])
        for one in sorted(
            (one for one in runs if one["claim"] == claim),
            key=lambda one: (one["recipe"], order.index(one["variant"]), one["seed"]),
        ):
            of = one["recipe"], one["variant"], one["backend"]
            groups.setdefault(of, []).append(one)
        for of, group in groups.items():
            seeds = ", ".join(str(one["seed"]) for one in group)
            cells = budgets.cells([one["results"] for one in group], names)
            shares = [one.get("history", {}).get("interaction_share") for one in group]
            share = "" if None in shares else f"{np.mean(np.concatenate(shares)):.3f}"
            lines.append(f"| {' | '.join([*of, seeds, *cells, share])} |")
        if groups:
            parts.append("\n".join(lines))
    return "\n\n".join(parts)


def child(claim, variants, seed):
    """Runs one training in a process of its own."""
    one = json.dumps({"claim": claim, "variants": variants, "seed": seed})
    command = [sys.executable, __file__, f"--data={FLAGS.data}"]
    command += [f"--recipe={FLAGS.recipe}", f"--one={one}"]
    result = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(result.stdout.splitlines()[-1])


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
    claims = BY_DATA[FLAGS.data]
    unknown = set(FLAGS.claim) - claims.keys()
    if unknown:
        raise app.UsageError(f"--claim must be one of {', '.join(claims)}.")
    path.parent.mkdir(parents=True, exist_ok=True)
    if FLAGS.merge:
        for each in FLAGS.merge:
            done = {key(run) for run in runs}
            found = json.loads(pathlib.Path(each).read_text())
            runs += [run for run in found if key(run) not in done]
        write_json(path, runs)
        return
    backend = keras.backend.backend()
    for seed in map(int, FLAGS.seeds):
        for claim in FLAGS.claim or claims:
            for variants in trained_together(claim):
                of = (claim, variants[0], recipe(), seed, backend)
                if of in {key(run) for run in runs}:
                    continue
                same = as_it_is(runs, of) if is_recipe(claim, variants[0]) else None
                if same and len(variants) == 1:
                    runs.append({**same, "claim": claim, "variant": variants[0]})
                else:
                    runs += child(claim, variants, seed)
                write_json(path, runs)
                measure = MEASURES.get(FLAGS.data, ("frechet",))[0]
                for run in runs[-len(variants) :]:
                    values = [round(row[measure], 3) for row in run["results"]]
                    print(
                        f"{claim}, {run['variant']}, seed {seed}: {values}", flush=True
                    )


if __name__ == "__main__":
    app.run(main)
