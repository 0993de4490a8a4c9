"""A training step of `model.fit` beside loops written by hand for one framework.

    KERAS_BACKEND=torch python benchmarks/train_step.py --out=train_step.json

The hand-written loops (benchmarks/hand_written) train the same network with the same
objective, optimizer and averages. Before anything is timed, both train from the same
weights on the same particles, and losses, weights and averages must agree. Then an
epoch of `fit` and one of each loop take turns, on the same batches; the table has the
medians of their times per step, from the 10th to the 90th percentile, and the median of
the ratios of neighbouring epochs. "first step" (with tracing and compiling, without
imports) and
"peak" (`ru_maxrss`, or the device's memory on a GPU) are from a fresh process for each.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# PyTorch alone counts physical cores; give each framework what the machine has.
os.environ.setdefault("OMP_NUM_THREADS", str(os.cpu_count()))

import json
import pathlib
import subprocess
import sys

import keras
import measuring
import numpy as np
from absl import app, flags
from hand_written.settings import trained_weights_of

import keras_imm
from keras_imm.objectives import MomentMatching
from keras_imm.objectives.moment_matching import Particles

FLAGS = flags.FLAGS
measuring.define_model_flags()
flags.DEFINE_integer("steps", 20, "Training steps of an epoch.", lower_bound=1)
flags.DEFINE_integer("epochs", 15, "Epochs of each that are timed.", lower_bound=1)
flags.DEFINE_bool("fresh", True, "Whether to measure first step and peak memory.")
flags.DEFINE_list("fits", None, "Which of the ways to `fit`. Default: all.")
flags.DEFINE_string("only", None, "Take three steps of this one and print its costs.")
flags.DEFINE_string("out", None, "JSON file for the results.")

LEARNING_RATE, EMA_MOMENTUM = 1e-3, 0.995
AGREEMENT_STEPS = 4

# What `fit` is given, and the loops it is compared with, by backend.
FITS = {
    "torch": {
        "fit": ({}, ["eager"]),
        "fit jit_compile=True": ({"jit_compile": True}, ["torch.compile"]),
    },
    "jax": {"fit": ({}, ["jit"])},
    "tensorflow": {
        "fit": ({}, ["tf.function", "tf.function XLA"]),
        "fit jit_compile=False": ({"jit_compile": False}, ["tf.function"]),
        "fit jit_compile=True": ({"jit_compile": True}, ["tf.function XLA"]),
    },
}


class GivenParticles(MomentMatching):
    """Trains on particles that it is given, whatever the data."""

    particles = None

    def draw(self, *_):
        tensors = (keras.ops.convert_to_tensor(p) for p in self.particles)
        x_t, x_r, s, r, t, labels = tensors
        return Particles(x_t, x_r, s, r, t, labels, labels)


def build(objective=None, **compile_arguments):
    """A model with weights that give every weight a gradient, compiled."""
    model = measuring.build()
    if objective is not None:
        model.objective = objective
    optimizer = keras.optimizers.Adam(
        LEARNING_RATE, epsilon=1e-8, use_ema=True, ema_momentum=EMA_MOMENTUM
    )
    model.compile(optimizer, **compile_arguments)
    return model


def loop(name, model):
    """The hand-written loop of that name with the weights of a model."""
    return measuring.hand_written_loop(name, model, LEARNING_RATE, EMA_MOMENTUM)


def batches():
    """Batches of one epoch, and what `fit` and the loops are given of them."""
    rng = np.random.default_rng(0)
    shape = (FLAGS.steps, FLAGS.batch_size, *measuring.image_shape())
    images = rng.normal(0, 0.5, shape).astype("float32")
    labels = rng.integers(0, measuring.num_classes(), shape[:2]).astype("int32")
    listed = list(zip(images, labels, strict=True))
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        dataset = tf.data.Dataset.from_tensor_slices((images, labels)).cache()
        return listed, dataset, dataset
    return listed, measuring.Data(listed), listed


def check_agreement(fits):
    """Raises unless all train alike; returns the largest relative differences."""
    model = build()
    listed, *_ = batches()
    images, labels = listed[0]
    particles = model.objective.draw(
        keras_imm.flow_map.Network(model.flow),
        keras.ops.convert_to_tensor(images),
        keras.ops.convert_to_tensor(labels),
        keras.random.SeedGenerator(0),
    )[:6]
    particles = [np.array(keras.ops.convert_to_numpy(p)) for p in particles]
    losses, weights = {}, {}
    for name, (arguments, names) in fits.items():
        given = GivenParticles.from_config(model.objective.get_config())
        given.particles = particles
        own = build(given, **arguments)
        history = own.fit(
            measuring.Data(listed[:1]), epochs=AGREEMENT_STEPS, verbose=0, shuffle=False
        )
        losses[name] = history.history["loss"]
        weights[name] = trained_weights_of(own)
        for hand in names:
            by_hand = loop(hand, model)
            losses[hand] = by_hand.losses(particles, AGREEMENT_STEPS)
            weights[hand] = by_hand.weights()
    reference = losses[next(iter(fits))]
    loss_difference = max(
        np.abs(np.divide(own, reference) - 1).max() for own in losses.values()
    )
    reference = weights[next(iter(fits))]
    start = trained_weights_of(model)
    weight_difference = max(
        np.linalg.norm(value - reference[name])
        / np.linalg.norm(start[name] - reference[name])
        for own in weights.values()
        for name, value in own.items()
    )
    allowed = (1e-2, 0.5) if FLAGS.dtype == "bfloat16" else (1e-4, 1e-2)
    if not (loss_difference < allowed[0] and weight_difference < allowed[1]):
        raise RuntimeError(
            f"The loops do not train alike: losses {losses}, weights differ by "
            f"{weight_difference:.1e} of their change"
        )
    return float(loss_difference), float(weight_difference)


class TakeTurns(measuring.EpochTimes):
    """Times every epoch, and lets hand-written loops train one after each."""

    def __init__(self, loops, data):
        super().__init__()
        self.loops = loops
        self.data = data
        self.by_hand = {name: [] for name in loops}

    def on_epoch_end(self, epoch, logs=None):
        super().on_epoch_end(epoch, logs)
        for name, one in self.loops.items():
            self.by_hand[name].append(measuring.seconds(one.epoch, self.data))


def time_fit(name, arguments, names):
    """Rows of one `fit` and of the loops that it takes turns with."""
    model = build(**arguments)
    _, data, hand_data = batches()
    turns = TakeTurns({hand: loop(hand, model) for hand in names}, hand_data)
    model.fit(
        data, epochs=FLAGS.epochs + 2, verbose=0, shuffle=False, callbacks=[turns]
    )
    seconds = {"fit": turns.seconds} | turns.by_hand
    seconds = {k: np.array(v[2:]) / FLAGS.steps for k, v in seconds.items()}
    rows = []
    for key, own in seconds.items():
        row = {"name": name if key == "fit" else key}
        row |= measuring.milliseconds(own)
        row["images_per_second"] = float(FLAGS.batch_size / np.median(own))
        row["model_flops_utilisation"] = measuring.utilisation(np.median(own))
        if key != "fit":
            row["ratio"] = float(np.median(seconds["fit"] / own))
        rows.append(row)
    return rows


def fresh_costs(name):
    """First step and peak memory of one, from a fresh process."""
    command = [sys.executable, __file__, f"--only={name}", *measuring.model_flags()]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def print_costs(name):
    fits = FITS[keras.backend.backend()]
    FLAGS.steps = 1
    _, data, hand_data = batches()
    if name in fits:
        model = build(**fits[name][0])

        def train():
            return model.fit(data, verbose=0, shuffle=False).history["loss"]

    else:
        one = loop(name, measuring.build())

        def train():
            return one.epoch(hand_data)

    first = measuring.seconds(train)
    measuring.wait(train())
    measuring.wait(train())
    print(json.dumps({"first_step": first, "peak_mib": measuring.peak_mib()}))


def main(_):
    if FLAGS.only:
        print_costs(FLAGS.only)
        return
    fits = FITS[keras.backend.backend()]
    fits = {name: fits[name] for name in FLAGS.fits or fits}
    print(measuring.setting(), flush=True)
    agreement = check_agreement(fits)
    print(
        f"After {AGREEMENT_STEPS} steps from the same weights on the same particles "
        f"losses differ by at most {agreement[0]:.1e} of them, weights and "
        f"their averages by {agreement[1]:.1e} of their change.\n",
        flush=True,
    )
    columns = ["", "ms / step", "10% to 90%", "fit / it", "first step, s", "peak, MiB"]
    measuring.print_row(*columns, "images / s", "utilisation")
    measuring.print_row(*["---"] * 8)
    results, costs = [], {}
    for name, (arguments, names) in fits.items():
        for row in time_fit(name, arguments, names):
            if FLAGS.fresh:
                if row["name"] not in costs:
                    costs[row["name"]] = fresh_costs(row["name"])
                row |= costs[row["name"]]
            results.append(row)
            measuring.print_row(
                row["name"],
                f"{row['median_ms']:.2f}",
                f"{row['low_ms']:.2f} to {row['high_ms']:.2f}",
                measuring.number(row.get("ratio"), ".3f"),
                measuring.number(row.get("first_step"), ".1f"),
                measuring.number(row.get("peak_mib"), ".0f"),
                f"{row['images_per_second']:.0f}",
                measuring.number(row["model_flops_utilisation"], ".1%"),
            )
    if FLAGS.out:
        path = pathlib.Path(FLAGS.out)
        path.parent.mkdir(parents=True, exist_ok=True)
        described = measuring.environment() | {"agreement": agreement, "rows": results}
        path.write_text(json.dumps(described, indent=2) + "\n")


if __name__ == "__main__":
    app.run(main)
