"""Images per second and core that are read, beside those that a model trains on.

    python benchmarks/input_pipeline.py --preset=dit_s_2

It writes JPEGs and shards of latents of random content into a temporary folder and
reads them through `keras_imm.datasets.load`, as `fit` does, for some seconds each:
"per second" by the clock, "per core" by the seconds of processor time that reading
took. The files are in the page cache by then: disks and networks are not measured.
Then it times training steps of the model. "cores to feed it" is how many cores would
read as many images as this machine trains on.
"""

import pathlib
import tempfile
import time

import keras
import measuring
import numpy as np
from absl import app, flags
from PIL import Image

import keras_imm
from keras_imm.latents import shard_files

FLAGS = flags.FLAGS
flags.DEFINE_string("preset", "dit_s_2", "The DiT to train, on 32x32x4 latents.")
flags.DEFINE_integer("train_batch_size", 16, "Images per training step.")
flags.DEFINE_integer("train_steps", 5, "Training steps to time, after two.")
flags.DEFINE_integer("batch_size", 64, "Images per batch that is read.")
flags.DEFINE_integer("num_images", 512, "Images of each kind to write.")
flags.DEFINE_integer("num_workers", 0, "Processes that read; 0 for threads.")
flags.DEFINE_float("seconds", 5.0, "How long to read each kind.")


def random_image(rng, width, height):
    """Smooth noise, which a JPEG stores in about as many bytes as a photograph."""
    coarse = rng.integers(0, 256, (height // 8, width // 8, 3), "uint8")
    image = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    noise = rng.integers(-12, 13, (height, width, 3))
    return Image.fromarray(np.clip(np.asarray(image) + noise, 0, 255).astype("uint8"))


def write_jpegs(folder, width, height):
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(FLAGS.num_images):
        random_image(rng, width, height).save(folder / f"{i:05d}.jpg", quality=90)


def write_latents(folder, shape=(32, 32, 8)):
    records = np.zeros(FLAGS.num_images, shard_files.record_dtype(shape, "float16"))
    rng = np.random.default_rng(0)
    records["moments"] = rng.uniform(0.5, 1.5, records["moments"].shape)
    shard_files.claim_folder(folder, {"content": "random"})
    shard_files.write_shard(folder, 0, records)
    description = {
        "moments_shape": list(shape),
        "dtype": "float16",
        "mirrored": False,
        "num_classes": 0,
        "class_names": None,
    }
    shard_files.write_manifest(folder, 1, description)


def reading_speed(source, image_size=None):
    """Images per second by the clock, and per second of processor time."""
    dataset = keras_imm.datasets.load(
        source,
        FLAGS.batch_size,
        image_size=image_size,
        num_workers=FLAGS.num_workers,
        steps_per_epoch=10**9,
    )
    dataset[0]
    clock, processor, count = time.perf_counter(), time.process_time(), 0
    while time.perf_counter() - clock < FLAGS.seconds:
        count += 1
        dataset[count]
    images = count * FLAGS.batch_size
    processor = time.process_time() - processor
    speeds = images / (time.perf_counter() - clock), images / processor
    dataset.close()
    return speeds


class StepTimes(keras.callbacks.Callback):
    """When each training step ended."""

    def __init__(self):
        super().__init__()
        self.ends = []

    def on_train_batch_end(self, batch, logs=None):
        measuring.wait(logs)
        self.ends.append(time.perf_counter())


def training_speed():
    """Images per second that the model trains on."""
    backbone = keras_imm.backbones.DiT.from_preset(
        FLAGS.preset, image_shape=(32, 32, 4), num_classes=1000
    )
    model = keras_imm.IMM(backbone)
    model.compile(optimizer=keras.optimizers.AdamW(1e-4, use_ema=True))
    size, steps = FLAGS.train_batch_size, FLAGS.train_steps + 2
    x = np.random.default_rng(0).standard_normal((size, 32, 32, 4)).astype("float32")
    dataset = keras_imm.datasets.load((x, np.arange(size)), size, steps_per_epoch=steps)
    times = StepTimes()
    model.fit(dataset, verbose=0, callbacks=[times])
    return size / np.median(np.diff(times.ends[1:]))


def main(_):
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        write_jpegs(folder / "square", 256, 256)
        write_jpegs(folder / "photo", 500, 376)
        write_latents(folder / "latents")
        kinds = {
            "JPEG 256x256": (folder / "square", None),
            "JPEG 500x376, cropped to 256x256": (folder / "photo", 256),
            "latents 32x32x4": (folder / "latents", None),
        }
        speeds = {kind: reading_speed(*given) for kind, given in kinds.items()}
    trained = training_speed()
    print(
        f"{FLAGS.preset}, batch {FLAGS.train_batch_size}, on "
        f"{keras.backend.backend()}: {trained:.1f} images per second trained."
    )
    print("| what is read | per second | per core | cores to feed it |")
    print("|---|---|---|---|")
    for kind, (clock, core) in speeds.items():
        # What worker processes took is not in the time of this one.
        per_core, cores = (
            ("–", "–")
            if FLAGS.num_workers
            else (
                f"{core:.0f}",
                f"{trained / core:.2g}",
            )
        )
        print(f"| {kind} | {clock:.0f} | {per_core} | {cores} |")


if __name__ == "__main__":
    app.run(main)
