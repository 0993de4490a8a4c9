"""IMM on two-dimensional data with a small network of one's own.

    python examples/checkerboard.py

Any Keras model that is called as `backbone([x, c_t, c_s])` will do; this one is a
perceptron. Leaves a picture of the data beside 1- and 2-step samples in --out.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# PyTorch spends more on sharing arrays this small between cores than it gains.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import keras
import numpy as np
from absl import app, flags
from matplotlib.figure import Figure
from two_dimensions import Batches, build_backbone, checkerboard

import keras_imm
from keras_imm.files.paths import user_path

FLAGS = flags.FLAGS
flags.DEFINE_integer("steps", 1200, "Training steps.", lower_bound=1)
flags.DEFINE_integer("batch_size", 1024, "Batch size.", lower_bound=1)
flags.DEFINE_integer("group_size", 64, "Particles per group, M.", lower_bound=1)
flags.DEFINE_integer("width", 128, "Units of a hidden layer.", lower_bound=1)
flags.DEFINE_integer("depth", 3, "Hidden layers.", lower_bound=1)
flags.DEFINE_integer(
    "k", 4, lower_bound=1, help="Gap of the mapping r(s, t): 2^-k of the time range."
)
flags.DEFINE_float("learning_rate", 6e-3, "Adam's learning rate at the start.")
flags.DEFINE_float("ema_momentum", 0.99, "Momentum of the averaged weights.")
flags.DEFINE_integer(
    "seed", 0, "Of the weights, the data, the noise and times.", lower_bound=0
)
flags.DEFINE_integer("num_samples", 20000, "Points in the picture.", lower_bound=1)
flags.DEFINE_string("out", "runs/checkerboard", "Folder for the results.")

flags.register_multi_flags_validator(
    ["batch_size", "group_size"],
    lambda values: values["batch_size"] % values["group_size"] == 0,
    "--batch_size must be a multiple of --group_size",
)

TIME_SCALE = 4.0


def draw(path, panels):
    bins = np.linspace(-1.1, 1.1, 89)
    density = [np.histogram2d(*p.T, bins, density=True)[0].T for p in panels.values()]
    figure = Figure(figsize=(3 * len(panels), 3.2), layout="constrained")
    for axes, title, image in zip(
        figure.subplots(1, len(panels)), panels, density, strict=True
    ):
        # One scale for all: three times the density of the data.
        axes.imshow(image, cmap="magma", vmin=0, vmax=2, origin="lower")
        axes.set_title(title)
        axes.set_axis_off()
    figure.savefig(path, dpi=120)


def main(_):
    out = user_path(FLAGS.out)
    out.mkdir(parents=True, exist_ok=True)
    keras.utils.set_random_seed(FLAGS.seed)

    # Large groups and gaps: in two dimensions the small ones that serve images draw the
    # density together on lines.
    model = keras_imm.IMM(
        build_backbone(FLAGS.width, FLAGS.depth),
        time_mapping=keras_imm.time_mappings.TimeDecrement(k=FLAGS.k),
        time_scale=TIME_SCALE,
        group_size=FLAGS.group_size,
        seed=FLAGS.seed,
    )
    rate = keras.optimizers.schedules.CosineDecay(FLAGS.learning_rate, FLAGS.steps)
    model.compile(
        optimizer=keras.optimizers.Adam(
            rate, epsilon=1e-8, use_ema=True, ema_momentum=FLAGS.ema_momentum
        )
    )
    model.fit(Batches(FLAGS.batch_size, FLAGS.steps, FLAGS.seed), shuffle=False)

    rng = np.random.default_rng(FLAGS.seed)
    panels = {"data": checkerboard(rng, FLAGS.num_samples)}
    for num_steps in (1, 2):
        panels[f"{num_steps} step{'s' * (num_steps > 1)}"] = model.generate(
            num_samples=FLAGS.num_samples,
            num_steps=num_steps,
            seed=FLAGS.seed,
            batch_size=FLAGS.num_samples,
        )
    draw(out / "checkerboard.png", panels)
    print(f"checkerboard.png is in {out}")


if __name__ == "__main__":
    app.run(main)
