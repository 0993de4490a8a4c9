"""Trains the paper's CIFAR-10 experiment, or continues it where it was killed.

    KERAS_BACKEND=jax python examples/cifar10.py --out=runs/cifar10
    python examples/cifar10.py --smoke

Leaves in --out: checkpoints, samples as pictures, TensorBoard's logs, results.json and
model.keras. CIFAR-10 comes from tensorflow-datasets in --data_dir; the error says how
to prepare it. --dataset takes a folder of images or an .npz file as well.
"""

import os

import numpy as np
import paper_run
from absl import app, flags

import keras_imm
from keras_imm.callbacks import pixels_to_uint8

FLAGS = flags.FLAGS
flags.DEFINE_enum("recipe", "cifar10", ["cifar10"], "Name of the recipe.")
flags.DEFINE_string(
    "dataset", "cifar10", "A data set of tfds, a folder of images or an .npz file."
)
flags.DEFINE_string("data_dir", None, "Where tfds has its data. Default: its own.")
flags.DEFINE_string(
    "held_out",
    None,
    "Images that samples are compared with, as --dataset. Default: the test split of a "
    "data set of tfds, otherwise the training images.",
)

SMOKE_NETWORK = {
    "model_channels": 4,
    "channel_mult": [1, 1],
    "num_blocks": 1,
    "attention_resolutions": [],
}


def load(recipe, batch_size, held_out=False, **options):
    source = (FLAGS.held_out or FLAGS.dataset) if held_out else FLAGS.dataset
    if not os.path.exists(source) or (FLAGS.data_dir and source == "cifar10"):
        options["data_dir"] = FLAGS.data_dir
        options["split"] = "test" if held_out else "train"
    return keras_imm.datasets.load(
        source,
        batch_size,
        image_size=recipe.image_shape[0],
        labels=False,
        **options,
    )


def make_smoke_data(folder):
    """64 pictures of 16x16 pixels, made of random squares."""
    coarse = np.random.default_rng(0).integers(0, 256, (64, 4, 4, 3), dtype=np.uint8)
    np.savez(folder / "images.npz", images=coarse.repeat(4, axis=1).repeat(4, axis=2))


def main(_):
    strategy = paper_run.start()
    if FLAGS.smoke:
        FLAGS.dataset = str(paper_run.smoke_data(make_smoke_data) / "images.npz")
    paper_run.train(
        paper_run.Task(
            recipe=FLAGS.recipe,
            load=load,
            to_uint8=pixels_to_uint8,
            smoke_network=SMOKE_NETWORK,
            smoke_image_shape=(16, 16, 3),
        ),
        strategy,
    )


if __name__ == "__main__":
    app.run(main)
