"""Encodes images to latents with Stable Diffusion's autoencoder, once, before training.

    KERAS_BACKEND=jax python examples/encode_latents.py \
        --source=imagenet2012 --data_dir=data --out=latents/imagenet256
    python examples/encode_latents.py --verify --out=latents/imagenet256

--source is whatever `keras_imm.datasets.load` takes. Leaves in --out shards of moments
and labels, `shard-00000.npy` and so on, and at the end a `manifest.json` with counts
and checksums: a source for `keras_imm.datasets.load` in its turn.

It may be killed at any moment and started again: it goes on after the last whole shard,
and the result is the same. Several processes share the work where each is given the
same flags and its own --process_index below --process_count; the last to finish writes
the manifest. --batch_size, --process_count and --on_corrupt may change between starts;
what the shards depend on may not.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import collections
import concurrent.futures
import sys

import keras
import numpy as np
from absl import app, flags, logging

import keras_imm
import keras_imm.datasets
import keras_imm.latents
from keras_imm.datasets import CorruptRecordError
from keras_imm.files.checksum import sha256
from keras_imm.latents import hub, shard_files

FLAGS = flags.FLAGS
flags.DEFINE_string("source", None, "Data set, folder or file of images.")
flags.DEFINE_string("split", "train", "Split of the data set.")
flags.DEFINE_string("data_dir", None, "Where data sets are prepared.")
flags.DEFINE_bool(
    "labels", True, "Whether to read the labels; --nolabels for a split without them."
)
flags.DEFINE_string("out", None, "Folder for the shards.")
flags.DEFINE_integer(
    "image_size", 256, "Images are resized and cropped to it.", lower_bound=8
)
flags.DEFINE_bool("flip", False, "Whether to encode the mirrored images too.")
flags.DEFINE_string(
    "vae",
    "sd-vae-ft-ema",
    "sd-vae-ft-ema or sd-vae-ft-mse, which are fetched; diffusers' safetensors file or "
    "its folder; keras_cv, which is fetched; or tiny, no autoencoder at all but block "
    "means, to try the script with.",
)
flags.DEFINE_enum("dtype", "float16", ["float16", "float32"], "Of the moments.")
flags.DEFINE_integer("batch_size", 32, "Images encoded at a time.", lower_bound=1)
flags.DEFINE_integer("shard_size", 4096, "Images per shard.", lower_bound=1)
flags.DEFINE_integer("limit", None, "Only the first images.", lower_bound=1)
flags.DEFINE_integer("process_index", 0, "Which process this is.", lower_bound=0)
flags.DEFINE_integer("process_count", 1, "How many share the work.", lower_bound=1)
flags.DEFINE_integer(
    "threads", os.cpu_count(), "Threads that read images.", lower_bound=1
)
flags.DEFINE_enum(
    "on_corrupt",
    "raise",
    ["raise", "skip"],
    "Whether an image that cannot be read stops the run or is named, counted and left "
    "out.",
)
flags.DEFINE_bool(
    "verify", False, "Only compare the shards in --out with the manifest."
)
flags.mark_flag_as_required("out")
flags.register_multi_flags_validator(
    ["source", "verify"],
    lambda values: values["verify"] or values["source"],
    "--source must be given",
)
flags.register_multi_flags_validator(
    ["process_index", "process_count"],
    lambda values: values["process_index"] < values["process_count"],
    "--process_index must be below --process_count",
)
flags.register_validator(
    "image_size", lambda size: size % 8 == 0, "must be a multiple of 8"
)


class BlockMeans:
    """A stand-in that averages blocks of 8 by 8 pixels; no autoencoder.

    It takes full batches alone, for which an autoencoder is compiled.
    """

    def encode(self, images):
        batch, height, width = FLAGS.batch_size, *images.shape[1:3]
        blocks = images.reshape(batch, height // 8, 8, width // 8, 8, 3) / 127.5 - 1
        mean = blocks.mean((2, 4)).astype("float32")
        mean = np.concatenate([mean, mean[..., :1]], axis=-1)
        return mean, np.full_like(mean, 0.1)


def build_vae():
    if FLAGS.vae == "tiny":
        return BlockMeans()
    vae = keras_imm.latents.StableDiffusionVAE
    if FLAGS.vae == "keras_cv":
        return vae.from_keras_cv(batch_size=FLAGS.batch_size)
    return vae.from_diffusers(FLAGS.vae, batch_size=FLAGS.batch_size)


def vae_identity():
    """The same for the same weights, wherever their file is."""
    if FLAGS.vae in ("tiny", "keras_cv"):
        return FLAGS.vae
    return f"sha256:{sha256(hub.find(FLAGS.vae))}"


def open_source():
    return keras_imm.datasets.load(
        FLAGS.source,
        batch_size=1,
        split=FLAGS.split,
        data_dir=FLAGS.data_dir,
        image_size=FLAGS.image_size,
        channels=3,
        shuffle=False,
        on_corrupt=FLAGS.on_corrupt,
        labels=FLAGS.labels,
    )


def num_images(dataset):
    return min(dataset.num_records, FLAGS.limit or dataset.num_records)


def settings(dataset):
    """What the shards depend on."""
    return {
        "source": dataset.fingerprint["source"],
        "num_images": num_images(dataset),
        "labels": FLAGS.labels,
        "image_size": FLAGS.image_size,
        "flip": FLAGS.flip,
        "vae": vae_identity(),
        "dtype": FLAGS.dtype,
        "shard_size": FLAGS.shard_size,
    }


def moments_shape():
    return (FLAGS.image_size // 8, FLAGS.image_size // 8, 8)


def read(dataset, index):
    """Image and label, or the error where the image cannot be read."""
    try:
        return dataset.read_record(index)
    except CorruptRecordError as error:
        return error


def read_ahead(executor, dataset, indices):
    """Yields (index, what `read` returns) in order, two batches ahead."""
    waiting = collections.deque()
    for index in indices:
        waiting.append((index, executor.submit(read, dataset, index)))
        if len(waiting) > 2 * FLAGS.batch_size:
            first, future = waiting.popleft()
            yield first, future.result()
    for first, future in waiting:
        yield first, future.result()


class Shard:
    """Records of one shard, encoded a full batch at a time.

    A shard begins with a new batch, so that its bytes do not depend on which run or
    process encodes it.
    """

    def __init__(self, vae):
        self.vae = vae
        self.layout = shard_files.record_dtype(
            moments_shape(), FLAGS.dtype, mirrored=FLAGS.flip
        )
        self.records = []
        self.batch = []
        self.skipped = {}

    def add(self, index, image, label):
        self.batch.append((index, image, label))
        if len(self.batch) == FLAGS.batch_size:
            self.encode()

    def encode(self):
        """Encodes what is waiting, as if it were a full batch."""
        if not self.batch:
            return
        indices, images, labels = zip(*self.batch, strict=True)
        missing = FLAGS.batch_size - len(images)
        images = np.stack([*images, *[np.zeros_like(images[0])] * missing])
        records = np.zeros(len(indices), self.layout)
        records["index"], records["label"] = indices, labels
        records["moments"] = self.moments(indices, images)
        if FLAGS.flip:
            records["mirrored"] = self.moments(indices, images[:, :, ::-1])
        self.records.append(records)
        self.batch.clear()

    def moments(self, indices, images):
        moments = np.concatenate(self.vae.encode(images), axis=-1)[: len(indices)]
        stored = moments.astype(FLAGS.dtype)
        finite = np.isfinite(stored).all(axis=(1, 2, 3))
        if not finite.all():
            bad = ", ".join(map(str, np.asarray(indices)[~finite]))
            overflow = FLAGS.dtype == "float16" and np.isfinite(moments).all()
            raise ValueError(
                f"The moments of image {bad} of the source are not finite in "
                f"{FLAGS.dtype}{': use --dtype=float32' if overflow else ''}."
            )
        return stored

    def finish(self):
        self.encode()
        return np.concatenate([np.zeros(0, self.layout), *self.records])


def encode_shard(number, dataset, vae, executor, progress):
    shard = Shard(vae)
    indices = positions(number, dataset)
    for index, content in read_ahead(executor, dataset, indices):
        if isinstance(content, CorruptRecordError):
            skip(shard, dataset.record_name(index), content)
        else:
            shard.add(index, *content)
        progress.add(1)
    shard_files.write_shard(FLAGS.out, number, shard.finish(), shard.skipped)


def skip(shard, name, error):
    if FLAGS.on_corrupt == "raise":
        raise SystemExit(
            f"{name} cannot be read: {error}. --on_corrupt=skip leaves such images out."
        )
    logging.warning("%s is left out: %s", name, error)
    shard.skipped[name] = str(error)


def encode():
    dataset = open_source()
    made_with = settings(dataset)
    shard_files.check_settings(FLAGS.out, made_with)
    num_shards = -(-num_images(dataset) // FLAGS.shard_size)
    mine = range(FLAGS.process_index, num_shards, FLAGS.process_count)
    missing = [n for n in mine if not shard_files.has_shard(FLAGS.out, n)]
    if len(missing) < len(mine):
        print(f"Going on: {len(mine) - len(missing)} of {len(mine)} shards are there.")
    if missing:
        vae = build_vae()  # before the folder is claimed for its latents
        shard_files.claim_folder(FLAGS.out, made_with)
        encode_shards(missing, dataset, vae)
    description = {
        "moments_shape": list(moments_shape()),
        "dtype": FLAGS.dtype,
        "mirrored": FLAGS.flip,
        "num_classes": dataset.num_classes,
        "class_names": dataset.class_names,
    }
    if shard_files.write_manifest(FLAGS.out, num_shards, description):
        summarize()
    else:
        print("Done here; the manifest waits for the other processes' shards.")


def positions(number, dataset):
    """Which images of the source a shard is made of."""
    start = number * FLAGS.shard_size
    return range(start, min(start + FLAGS.shard_size, num_images(dataset)))


def encode_shards(numbers, dataset, vae):
    progress = keras.utils.Progbar(
        sum(len(positions(number, dataset)) for number in numbers),
        unit_name="image",
        interval=0.2 if sys.stdout.isatty() else 30.0,
    )
    with concurrent.futures.ThreadPoolExecutor(FLAGS.threads) as executor:
        for number in numbers:
            encode_shard(number, dataset, vae, executor, progress)


def summarize():
    manifest = shard_files.read_manifest(FLAGS.out)
    size = sum(shard["bytes"] for shard in manifest["shards"])
    print(
        f"{manifest['num_records']} images in {len(manifest['shards'])} shards, "
        f"{size / 1e6:.1f} MB, in {FLAGS.out}. Left out: {manifest['num_skipped']}."
    )


def verify():
    damaged = shard_files.damaged_shards(FLAGS.out)
    if damaged:
        raise SystemExit("\n".join(damaged))
    summarize()
    print("All checksums agree.")


def main(_):
    if FLAGS.verify:
        verify()
    else:
        encode()


if __name__ == "__main__":
    app.run(main)
