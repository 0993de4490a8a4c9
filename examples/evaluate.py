"""Measures a model as the papers do: FID and more, of 50,000 images per setting.

    KERAS_BACKEND=jax python examples/evaluate.py --checkpoint=cifar10 \
        --reference=cifar10-32x32.npz --steps=1,2 --time_grid=1.4 --out=runs/cifar10
    KERAS_BACKEND=jax python examples/evaluate.py --checkpoint=imagenet256_ts_a2 \
        --vae=sd-vae-ft-ema --reference=VIRTUAL_imagenet256_labeled.npz \
        --steps=1,2,4,8 --guidance=1.25,1.5 --out=runs/imagenet256

Leaves in --out: metrics.json, a table of all metrics; quality.png, quality against
steps and guidance; and with --save_samples one .npz of samples per setting, which other
evaluators read.

It may be killed at any moment and started again with the same command. Noise and label
of image i depend on --seed and i alone. JAX uses all devices of a process. To share the
work among several processes, give each the same flags and --out, on a disk they share,
and its own --process_id below --num_processes (one for each GPU under TensorFlow, with
CUDA_VISIBLE_DEVICES); under PyTorch, torchrun does that.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import dataclasses
import itertools
import json
import sys

import evaluation
import evaluation_report
import keras
import numpy as np
from absl import app, flags

import keras_imm
import keras_imm.latents
from keras_imm import distribution, metrics
from keras_imm.callbacks import pixels_to_uint8
from keras_imm.files.atomic import atomic_file, write_text
from keras_imm.files.checksum import sha256
from keras_imm.files.paths import user_path
from keras_imm.metrics.reference_statistics import named_features

FLAGS = flags.FLAGS
flags.DEFINE_string(
    "checkpoint", None, "A .keras file, a published file, or a published name."
)
flags.DEFINE_string(
    "reference",
    None,
    "What images are compared with: a file of statistics (.npz, .pkl or .pt), or data "
    "as keras_imm.datasets.load takes it, whose statistics are then computed.",
)
flags.DEFINE_string(
    "reference_images",
    None,
    "Data to take features of, for the metrics that need them, where the statistics "
    "hold none: data as keras_imm.datasets.load takes it, such as ADM's .npz.",
)
flags.DEFINE_string("data_dir", None, "Where tfds has its data. Default: its own.")
flags.DEFINE_string("split", "train", "Split of the data.")
flags.DEFINE_integer(
    "image_size", None, "Size to crop and resize the data to. Default: as it is."
)
flags.DEFINE_string(
    "features",
    "inception",
    "What distances are measured on: inception; the path of Inception's weights "
    "(.pth); a .keras model from uint8 images to features, or to a dictionary of "
    '"features" and "logits"; or pooled, the means of 8x8 blocks of pixels.',
)
flags.DEFINE_list("steps", "1,2,4,8", "Numbers of sampling steps.")
flags.DEFINE_list("guidance", "", "Guidance scales. Default: no guidance.")
flags.DEFINE_list(
    "guidance_interval",
    None,
    "Two times in [0, 1]: guidance in the steps that start between them. Default: in "
    "all.",
)
flags.DEFINE_enum(
    "sampler", "pushforward", sorted(keras_imm.samplers.SAMPLERS), "Sampler."
)
flags.DEFINE_string(
    "time_grid",
    "uniform",
    "uniform, edm, or values of eta such as 1.4, which are used where they make the "
    "number of steps; elsewhere the grid is uniform.",
)
flags.DEFINE_enum("weights", "ema", ["ema", "raw"], "Which weights to sample with.")
flags.DEFINE_string(
    "vae", None, "The autoencoder that decodes latents, as in encode_latents.py."
)
flags.DEFINE_integer("num_images", 50_000, "Images per setting.", lower_bound=10)
flags.DEFINE_integer("batch_size", 256, "Images in one pass.", lower_bound=1)
flags.DEFINE_integer("seed", 0, "Of noise and labels.", lower_bound=0)
flags.DEFINE_integer(
    "max_features", 50_000, "Images to keep features of.", lower_bound=10
)
flags.DEFINE_bool("save_samples", False, "Whether to write the images, as ADM does.")
flags.DEFINE_float("save_every", 300, "Seconds between saved states.", lower_bound=0)
flags.DEFINE_string("out", None, "Folder for the results.")
flags.DEFINE_integer("num_processes", 1, "Processes that share the work.", 1)
flags.DEFINE_integer("process_id", 0, "Which of them this is.", 0)
flags.mark_flags_as_required(["checkpoint", "reference", "out"])


def _numbers(kind, least):
    def all_are(values):
        try:
            return all(kind(value) >= least for value in values)
        except ValueError:
            return False

    return all_are


flags.register_validator(
    "steps",
    lambda values: values and _numbers(int, least=1)(values),
    "must be positive integers separated by commas",
)
flags.register_validator(
    "guidance", _numbers(float, least=0), "must be numbers separated by commas"
)
flags.register_validator(
    "guidance_interval",
    lambda values: not values or (len(values) == 2 and _numbers(float, 0)(values)),
    "must be two numbers separated by a comma",
)
flags.register_multi_flags_validator(
    ["guidance_interval", "guidance"],
    lambda values: values["guidance"] or not values["guidance_interval"],
    "--guidance_interval needs --guidance",
)
flags.register_multi_flags_validator(
    ["process_id", "num_processes"],
    lambda values: values["process_id"] < values["num_processes"],
    "--process_id must be below --num_processes",
)

# With Inception's features the metrics have names of their own.
INCEPTION_NAMES = {
    "frechet": "fid",
    "spatial_frechet": "sfid",
    "kernel_distance": "kid",
    "kernel_distance_std": "kid_std",
}
# What may change between starts with the same --out.
FREE = {"out", "steps", "guidance", "save_every", "process_id", "num_processes"}


def start_devices():
    """(index, count) of this process."""
    if keras.backend.backend() == "tensorflow":
        if len(keras.distribution.list_devices("gpu")) > 1:
            print("One GPU is used: start a process for each, see --process_id.")
    else:
        distribution.initialize()
    if distribution.process_count() > 1:
        return distribution.process_index(), distribution.process_count()
    return FLAGS.process_id, FLAGS.num_processes


def load_model():
    if FLAGS.checkpoint.endswith(".keras"):
        model = keras.saving.load_model(user_path(FLAGS.checkpoint))
    else:
        model = keras_imm.checkpoints.load_official(FLAGS.checkpoint)
    if FLAGS.guidance and not model.num_classes:
        raise app.UsageError("--guidance needs a model with classes.")
    return model


def sample_to_uint8(model):
    """From the model's samples to pictures."""
    if FLAGS.vae:
        vae = keras_imm.latents.StableDiffusionVAE
        size = min(FLAGS.batch_size, 32)
        if FLAGS.vae == "keras_cv":
            return vae.from_keras_cv(batch_size=size).decode
        return vae.from_diffusers(FLAGS.vae, batch_size=size).decode
    if model.data_shape[-1] not in (1, 3):
        raise app.UsageError(
            f"The model makes latents of shape {model.data_shape}: give --vae."
        )
    return pixels_to_uint8


def in_colour(images):
    """Grey images as Inception takes them."""
    return images.repeat(3, axis=-1) if images.shape[-1] == 1 else images


def pooled(images):
    """Means of blocks of pixels, 8x8 of them."""
    batch, height, width, channels = images.shape
    rows, columns = min(8, height), min(8, width)
    whole = images[:, : height // rows * rows, : width // columns * columns] / 127.5
    blocks = whole.reshape(
        batch, rows, height // rows, columns, width // columns, channels
    )
    return blocks.mean((2, 4)).reshape(batch, -1)


def feature_network():
    """(function from uint8 images to features by name, names of the metrics)."""
    if FLAGS.features == "pooled":
        return pooled, {}
    if FLAGS.features.endswith(".keras"):
        network = keras.saving.load_model(FLAGS.features)
        return evaluation.for_any_batch(network.predict_on_batch), {}
    weights = "fid" if FLAGS.features == "inception" else FLAGS.features
    network = metrics.InceptionV3(weights)
    return lambda images: named_features(network, in_colour(images)), INCEPTION_NAMES


def is_statistics(path):
    """Whether a file holds statistics, and not images."""
    if path.suffix == ".npz":
        with np.load(path) as file:
            return "mu" in file.files
    return path.suffix in (".pkl", ".pt")


def load_reference(network, to_uint8, chief):
    """Statistics from the file, or those of the data, computed once."""
    path = user_path(FLAGS.reference)
    if not (path.is_file() and is_statistics(path)):
        return computed("reference", FLAGS.reference, network, to_uint8, chief)
    reference = metrics.ReferenceStatistics.load(path)
    if FLAGS.reference_images is None:
        return reference
    images = computed(
        "reference_images", FLAGS.reference_images, network, to_uint8, chief
    )
    return dataclasses.replace(reference, features=images.features)


def computed(name, source, network, to_uint8, chief):
    """Statistics of data, in --out; the first process computes them."""
    path = user_path(FLAGS.out) / f"{name}.npz"
    if chief and not path.exists():
        print(f"Statistics of {source}", flush=True)
        options = {"split": FLAGS.split, "data_dir": FLAGS.data_dir}
        options |= {"image_size": FLAGS.image_size, "shuffle": False, "labels": False}
        count = keras_imm.datasets.load(source, 1, **options).num_records
        size = next(n for n in range(min(250, count), 0, -1) if count % n == 0)
        metrics.ReferenceStatistics.from_dataset(
            keras_imm.datasets.load(source, size, **options),
            network,
            to_uint8,
            max_features=FLAGS.max_features,
            verbose=1,
        ).save(path)
    evaluation.wait_for(path.exists, str(path))
    return metrics.ReferenceStatistics.load(path)


def reference_to_uint8(to_uint8):
    """Latents are decoded; 8-bit images come back as they were."""
    decode = evaluation.for_any_batch(to_uint8)
    return lambda x: decode(x) if x.shape[-1] == 4 else pixels_to_uint8(x)


def identity(path):
    """The same for the same file, wherever it is."""
    file = user_path(path)
    return f"sha256:{sha256(file)}" if file.is_file() else path


def claim_folder(out, chief):
    """Refuses an --out with results of other settings."""
    own = FLAGS.get_flags_for_module(sys.modules[__name__])
    settings = {flag.name: flag.value for flag in own if flag.name not in FREE}
    for name in ("checkpoint", "reference", "features"):
        settings[name] = identity(settings[name])
    path = out / "settings.json"
    if chief and not any(itertools.chain(out.glob("reference*"), out.glob("steps*/*"))):
        out.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(settings, indent=2) + "\n")
    evaluation.wait_for(path.exists, str(path))
    earlier = json.loads(path.read_text())
    for name, value in settings.items():
        if earlier.get(name) != value:
            sys.exit(
                f"{out} holds results with --{name}={earlier.get(name)}, this run has "
                f"--{name}={value}. Give another --out, or delete the folder."
            )


def time_grid():
    if FLAGS.time_grid in ("uniform", "edm"):
        return FLAGS.time_grid
    try:
        return [float(eta) for eta in FLAGS.time_grid.split(",")]
    except ValueError:
        raise app.UsageError(
            f"--time_grid must be uniform, edm or numbers, not {FLAGS.time_grid}."
        ) from None


def settings_to_measure():
    scales = [float(scale) for scale in FLAGS.guidance] or [None]
    steps = [int(count) for count in FLAGS.steps]
    return [evaluation.Setting(*pair) for pair in itertools.product(steps, scales)]


def check_settings(images):
    """Refuses what the model cannot be sampled with."""
    model = images.model
    for setting in settings_to_measure():
        try:
            images.plan(setting).completed(model.objective).check(model.flow)
        except ValueError as error:
            raise app.UsageError(str(error)) from None


def save_samples(out, run, setting):
    """As ADM's evaluator reads them: arr_0, and labels in arr_1."""
    path = out / f"samples_{setting.name}.npz"
    if not path.exists():
        arrays = [run.kept_images(setting)]
        if run.images.model.num_classes:
            arrays.append(run.images.labels(range(run.num_images)))
        with atomic_file(path) as unfinished:
            np.savez(unfinished, *arrays)
        run.forget_images(setting)


def report(out, rows, names):
    evaluation_report.print_table(rows)
    content = {
        **json.loads((out / "settings.json").read_text()),
        "checkpoint": FLAGS.checkpoint,
        "features": FLAGS.features,
        "reference": FLAGS.reference,
        "backend": keras.backend.backend(),
        "keras_imm": keras_imm.__version__,
        "results": rows,
    }
    write_text(out / "metrics.json", json.dumps(content, indent=2) + "\n")
    metric = names.get("frechet", "frechet")
    evaluation_report.draw_quality(out / "quality.png", rows, metric)


def main(_):
    out = user_path(FLAGS.out)
    process = start_devices()
    chief = process[0] == 0
    grid = time_grid()
    devices = evaluation.num_devices()
    if FLAGS.batch_size % devices:
        raise app.UsageError(f"--batch_size must be a multiple of {devices} devices.")
    model = load_model()
    to_uint8 = sample_to_uint8(model)
    images = evaluation.Images(
        model,
        to_uint8,
        FLAGS.seed,
        FLAGS.sampler,
        grid,
        FLAGS.weights,
        tuple(map(float, FLAGS.guidance_interval or ())) or None,
    )
    check_settings(images)
    network, names = feature_network()
    claim_folder(out, chief)
    reference = load_reference(network, reference_to_uint8(to_uint8), chief)
    run = evaluation.Evaluation(
        images,
        network,
        reference,
        out,
        FLAGS.num_images,
        FLAGS.batch_size,
        process,
        FLAGS.max_features,
        FLAGS.save_every,
        FLAGS.save_samples,
    )
    rows = []
    for setting in settings_to_measure():
        print(setting, flush=True)
        found = run.run(setting)
        if not chief:
            continue
        row = {"steps": setting.num_steps, "guidance_scale": setting.guidance_scale}
        row["num_images"] = FLAGS.num_images
        rows.append(row | {names.get(name, name): v for name, v in found.items()})
        if FLAGS.save_samples:
            save_samples(out, run, setting)
    if chief:
        report(out, rows, names)


if __name__ == "__main__":
    app.run(main)
