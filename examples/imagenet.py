"""Trains an ImageNet-256 experiment of the paper, or continues where it was killed.

    python examples/encode_latents.py --source=imagenet2012 --out=latents/imagenet256
    KERAS_BACKEND=jax python examples/imagenet.py --data_dir=latents/imagenet256
    python examples/imagenet.py --smoke

Trains on the latents of Stable Diffusion's autoencoder in --data_dir, which
examples/encode_latents.py has made. Leaves in --out: checkpoints, samples as pictures,
TensorBoard's logs, results.json and model.keras.
"""

import functools

import numpy as np
import paper_run
from absl import app, flags

import keras_imm
from keras_imm.callbacks import pixels_to_uint8
from keras_imm.latents import shard_files

FLAGS = flags.FLAGS
flags.DEFINE_enum(
    "recipe",
    "imagenet256_dit_xl_2_stride",
    [name for name in keras_imm.recipes.names() if name.startswith("imagenet256")],
    "Name of the recipe.",
)
flags.DEFINE_string("data_dir", None, "Folder of latents to train on.")
flags.DEFINE_string(
    "held_out",
    None,
    "Folder of latents that samples are compared with. Default: those of --data_dir.",
)
flags.DEFINE_bool("flip", False, "Whether the mirrored images are records too.")
flags.DEFINE_string(
    "vae",
    None,
    "The autoencoder's weights, as in examples/encode_latents.py, to draw pictures. "
    "Default: pictures show the first three channels of the latents.",
)

SMOKE_NETWORK = {"patch_size": 2, "hidden_size": 16, "depth": 1, "num_heads": 2}
SMOKE_CLASSES = 3


def load(recipe, batch_size, held_out=False, **options):
    folder = (FLAGS.held_out or FLAGS.data_dir) if held_out else FLAGS.data_dir
    return keras_imm.datasets.load(
        folder, batch_size, flip=FLAGS.flip and not held_out, **options
    )


@functools.cache
def autoencoder():
    return keras_imm.latents.StableDiffusionVAE.from_diffusers(FLAGS.vae)


def to_uint8(latents):
    """Decoded pictures, or the first three channels of the latents."""
    return (
        autoencoder().decode(latents)
        if FLAGS.vae
        else pixels_to_uint8(latents[..., :3])
    )


def make_smoke_data(folder):
    """64 random latents of 8x8x4, of 3 classes, in one shard."""
    shape = (8, 8, 8)
    rng = np.random.default_rng(0)
    records = np.zeros(64, shard_files.record_dtype(shape, "float16"))
    records["moments"] = 4 * rng.standard_normal((64, *shape))
    records["moments"][..., 4:] = 0.1
    records["label"] = np.arange(64) % SMOKE_CLASSES
    records["index"] = np.arange(64)
    shard_files.claim_folder(folder, {"source": "random numbers"})
    shard_files.write_shard(folder, 0, records)
    shard_files.write_manifest(
        folder,
        1,
        {
            "moments_shape": shape,
            "dtype": "float16",
            "mirrored": False,
            "num_classes": SMOKE_CLASSES,
            "class_names": None,
        },
    )


def main(_):
    strategy = paper_run.start()
    if FLAGS.smoke:
        FLAGS.data_dir = str(paper_run.smoke_data(make_smoke_data))
    if FLAGS.vae:
        autoencoder()  # a wrong path is known before training
    if FLAGS.data_dir is None:
        raise app.UsageError("--data_dir is needed: a folder of latents.")
    paper_run.train(
        paper_run.Task(
            recipe=FLAGS.recipe,
            load=load,
            to_uint8=to_uint8,
            smoke_network=SMOKE_NETWORK,
            smoke_image_shape=(8, 8, 4),
            smoke_num_classes=SMOKE_CLASSES,
        ),
        strategy,
    )


if __name__ == "__main__":
    app.run(main)
