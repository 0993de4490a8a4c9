"""Milliseconds of `model.generate` beside samplers written by hand for one framework.

    KERAS_BACKEND=torch python benchmarks/sample.py --out=sample.json

Both start from labels and end with NumPy arrays: noise, pushforward steps on a uniform
grid, copy to the host. Before anything is timed, both sample from the same noise and
must agree. They then take turns; the table has the medians, and the medians of the
differences and ratios of neighbouring calls. "guided" is `generate` with a guidance
scale over the same without, and then over the hand-written sampler with it.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# PyTorch alone counts physical cores; give each framework what the machine has.
os.environ.setdefault("OMP_NUM_THREADS", str(os.cpu_count()))

import json
import pathlib

import keras
import measuring
import numpy as np
from absl import app, flags

FLAGS = flags.FLAGS
measuring.define_model_flags()
flags.DEFINE_list("batch_sizes", "1,16,256", "Images of a call.")
flags.DEFINE_list("num_steps", "1,2,4,8", "Steps of a call.")
flags.DEFINE_float("guidance_scale", 1.5, "Of the guided calls.")
flags.DEFINE_float("seconds", 2.0, "Time for each row, in which the calls take turns.")
flags.DEFINE_list("by_hand", None, "Which hand-written samplers. Default: all.")
flags.DEFINE_string("out", None, "JSON file for the results.")

# How `generate` is compiled, and the sampler it is compared with, by backend.
PAIRS = {
    "torch": [(False, "eager"), (True, "torch.compile")],
    "jax": [("auto", "jit")],
    "tensorflow": [("auto", "tf.function"), (True, "tf.function XLA")],
}
TOLERANCE = {"float32": 1e-4, "bfloat16": 0.2}
MIN_TURNS = 5


def check_agreement(generate, sample, labels, num_steps):
    """Raises unless both make the same images of the same noise."""
    shape = (len(labels), *measuring.image_shape())
    noise = np.random.default_rng(0).standard_normal(shape, "float32")
    for guidance in (None, FLAGS.guidance_scale):
        ours = generate(labels, num_steps, guidance, noise)
        theirs = sample(labels, num_steps, guidance, noise)
        difference = np.abs(ours - theirs).max()
        if not difference < TOLERANCE[FLAGS.dtype]:
            raise RuntimeError(
                f"The samplers do not agree: {difference:.1e} at guidance {guidance}"
            )


def turns(*calls):
    """Seconds of calls (function, *arguments) in turn, one row for each."""
    for function, *arguments in calls:
        measuring.wait(function(*arguments))
    rows = []
    while len(rows) < MIN_TURNS or np.sum(rows) < FLAGS.seconds:
        rows.append([measuring.seconds(*call) for call in calls])
    return np.array(rows).T


def compare(jit_compile, name):
    """Rows for one way to compile, and prints them."""
    model = measuring.build()
    model.compile(keras.optimizers.Adam(), jit_compile=jit_compile)
    sample = measuring.hand_written_loop(name, model).sample

    def generate(labels, num_steps, guidance=None, noise=None):
        return model.generate(
            labels,
            num_steps=num_steps,
            guidance_scale=guidance,
            noise=noise,
            verbose=0,
        )

    rows = []
    for batch in map(int, FLAGS.batch_sizes):
        labels = np.arange(batch, dtype="int32") % measuring.num_classes()
        for num_steps in map(int, FLAGS.num_steps):
            check_agreement(generate, sample, labels, num_steps)
            ours, theirs, guided, guided_by_hand = turns(
                (generate, labels, num_steps),
                (sample, labels, num_steps),
                (generate, labels, num_steps, FLAGS.guidance_scale),
                (sample, labels, num_steps, FLAGS.guidance_scale),
            )
            row = {
                "jit_compile": jit_compile,
                "by_hand": name,
                "batch_size": batch,
                "num_steps": num_steps,
                "generate": measuring.milliseconds(ours),
                "sampler": measuring.milliseconds(theirs),
                "difference_ms": float(1000 * np.median(ours - theirs)),
                "ratio": float(np.median(ours / theirs)),
                "guided": float(np.median(guided / ours)),
                "guided_ratio": float(np.median(guided / guided_by_hand)),
            }
            rows.append(row)
            measuring.print_row(
                f"`jit_compile={jit_compile}` / {name}",
                str(batch),
                str(num_steps),
                f"{row['generate']['median_ms']:.2f}",
                f"{row['sampler']['median_ms']:.2f}",
                f"{row['difference_ms']:+.3f}",
                f"{row['ratio']:.3f}",
                f"{row['guided']:.2f}",
                f"{row['guided_ratio']:.3f}",
            )
    return rows


def main(_):
    print(measuring.setting() + "\n", flush=True)
    columns = ["", "batch", "steps", "generate, ms", "by hand, ms"]
    columns += ["difference, ms", "ratio", "guided", "guided ratio"]
    measuring.print_row(*columns)
    measuring.print_row(*["---"] * len(columns))
    rows = []
    for jit_compile, name in PAIRS[keras.backend.backend()]:
        if name in (FLAGS.by_hand or [name]):
            rows += compare(jit_compile, name)
    if FLAGS.out:
        path = pathlib.Path(FLAGS.out)
        path.parent.mkdir(parents=True, exist_ok=True)
        described = measuring.environment() | {"rows": rows}
        path.write_text(json.dumps(described, indent=2) + "\n")


if __name__ == "__main__":
    app.run(main)
