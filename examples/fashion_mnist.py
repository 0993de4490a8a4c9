"""Trains a class-conditional model on Fashion-MNIST and samples it in few steps.

    python examples/fashion_mnist.py
    KERAS_BACKEND=jax python examples/fashion_mnist.py --effort=gpu --seed=1
    python examples/fashion_mnist.py --method=flow_matching --minutes=10 --out=runs/fm

Killed at any moment, the same command continues. Leaves in --out: samples.png,
training.png, metrics.json and model.keras.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# PyTorch alone counts physical cores; give each framework what the machine has.
os.environ.setdefault("OMP_NUM_THREADS", str(os.cpu_count()))

import functools
import gc
import json
import time

import imm_flags
import keras
import numpy as np
import training_report
from absl import app, flags
from array_batches import Batches, ResumableBatches

import keras_imm
from keras_imm import augmentation
from keras_imm.datasets import FASHION_MNIST_CLASSES, fashion_mnist
from keras_imm.files import atomic
from keras_imm.files.paths import user_path
from keras_imm.samplers import SamplingPlan

# What the flags are that were not set.
EFFORTS = {
    "cpu": {
        "minutes": 34.0,
        "batch_size": 32,
        "learning_rate": 2e-3,
        "warmup_steps": 400,
        "ema_momentum": 0.999,
        "patch_size": 7,
        "hidden_size": 176,
        "depth": 4,
        "num_heads": 4,
        "guidance": 1.5,
        "model_channels": 16,
        "num_blocks": 1,
        "dtype": "float32",
    },
    "gpu": {
        "minutes": 5.0,
        "batch_size": 256,
        "learning_rate": 5e-4,
        "warmup_steps": 500,
        "ema_momentum": 0.999,
        "patch_size": 2,
        "hidden_size": 256,
        "depth": 8,
        "num_heads": 4,
        "guidance": 1.5,
        "model_channels": 64,
        "num_blocks": 2,
        "dtype": "mixed_bfloat16",
    },
}
BY_EFFORT = "Default: --effort's."

FLAGS = flags.FLAGS
flags.adopt_module_key_flags(imm_flags)
flags.DEFINE_string(
    "data_dir",
    None,
    "Folder of Fashion-MNIST's IDX files. Default: that of Debian's package "
    "dataset-fashion-mnist, or else Keras's download.",
)
flags.DEFINE_enum(
    "effort",
    "cpu",
    list(EFFORTS),
    "Sets the flags that are not given: meant for 40 minutes on 2 cores, or for 8 on "
    "an H100, with measurements.",
)
flags.DEFINE_float(
    "minutes",
    None,
    "Minutes of training steps: as many steps as fit, by the speed that is measured "
    f"before the first. Compilation and measurements come on top. {BY_EFFORT}",
    lower_bound=0.0,
    upper_bound=10_000.0,
)
flags.DEFINE_integer(
    "steps", None, "Training steps, in place of --minutes.", lower_bound=1
)
flags.DEFINE_integer(
    "steps_per_epoch", 200, "Steps between checkpoints.", lower_bound=1
)
flags.DEFINE_integer("batch_size", None, f"Batch size. {BY_EFFORT}", lower_bound=1)
flags.DEFINE_float(
    "learning_rate",
    None,
    f"Adam's learning rate, at its highest. {BY_EFFORT}",
    lower_bound=0.0,
)
flags.DEFINE_integer(
    "warmup_steps", None, f"Steps of linear warm-up. {BY_EFFORT}", lower_bound=0
)
flags.DEFINE_float(
    "ema_momentum", None, f"Momentum of the averaged weights. {BY_EFFORT}"
)
flags.DEFINE_enum("method", "imm", ["imm", "flow_matching"], "What is trained.")
flags.DEFINE_enum("network", "dit", ["dit", "unet"], "The backbone.")
flags.DEFINE_integer("patch_size", None, f"Of DiT. {BY_EFFORT}", lower_bound=1)
flags.DEFINE_integer("hidden_size", None, f"Of DiT. {BY_EFFORT}", lower_bound=1)
flags.DEFINE_integer("depth", None, f"Blocks of DiT. {BY_EFFORT}", lower_bound=1)
flags.DEFINE_integer("num_heads", None, f"Of DiT. {BY_EFFORT}", lower_bound=1)
flags.DEFINE_integer("model_channels", None, f"Of UNet. {BY_EFFORT}", lower_bound=1)
flags.DEFINE_integer("num_blocks", None, f"Of UNet. {BY_EFFORT}", lower_bound=1)
flags.DEFINE_list("channel_mult", "1,2,2", "Of UNet.")
flags.DEFINE_list("attention_resolutions", "7", "Of UNet.")
flags.DEFINE_float("dropout", 0.0, "Dropout rate in the backbone.")
flags.DEFINE_bool("augmentation", False, "Augment the images as EDM does, with labels.")
flags.DEFINE_integer(
    "padding", 0, "Black pixels around the images: 2 makes them 32x32.", lower_bound=0
)
flags.DEFINE_enum("optimizer", "adam", ["adam", "radam"], "The optimizer.")
flags.DEFINE_float(
    "guidance",
    None,
    "Guidance scale in sampling, for which a step evaluates the network twice; 0 for "
    f"none. {BY_EFFORT} A run that is finished is measured again with another.",
    lower_bound=0.0,
)
flags.DEFINE_string("dtype", None, f"Dtype policy. {BY_EFFORT}")
flags.DEFINE_integer(
    "seed", 0, "Of the weights, the batches, the noise and times.", lower_bound=0
)
flags.DEFINE_list("sampling_steps", "1,2,4,8", "Numbers of sampling steps to measure.")
flags.DEFINE_integer("num_samples", 10_000, "Images per measurement.", lower_bound=80)
flags.DEFINE_integer(
    "evaluate_every", 5, "Epochs between measurements in training.", lower_bound=1
)
flags.DEFINE_string(
    "out",
    "runs/fashion_mnist",
    "Folder for the results. If it holds a run of the same flags, the run continues.",
)

# Flags that are not compared with those of the run in --out.
PLACES = ("data_dir", "effort", "guidance", "out")
IMAGE_SHAPE = (28, 28, 1)
OPTIMIZERS = {"adam": keras.optimizers.Adam, "radam": keras_imm.optimizers.RAdam}
SIGMA_DATA = 0.5
NUM_CLASSES = len(FASHION_MNIST_CLASSES)
SAMPLING_BATCH = 500
SAMPLES_IN_TRAINING = 1000
SPEED_STEPS = 50  # of which the speed is the mean


def choose_flags():
    """Gives the flags that were not set the values of --effort, and checks all.

    Returns:
        The flags by name.
    """
    if FLAGS["steps"].present and FLAGS["minutes"].present:
        raise app.UsageError("Give --steps or --minutes, not both.")
    imm_flags.choose_recipe()
    for name, value in EFFORTS[FLAGS.effort].items():
        if not FLAGS[name].present:
            FLAGS[name].value = value
    FLAGS["guidance"].value = FLAGS.guidance or None
    if FLAGS.steps is not None:
        FLAGS["minutes"].value = None
        FLAGS["steps_per_epoch"].value = min(FLAGS.steps_per_epoch, FLAGS.steps)
        if FLAGS.steps % FLAGS.steps_per_epoch:
            raise app.UsageError("--steps must be a multiple of --steps_per_epoch.")
    if FLAGS.augmentation and FLAGS.network != "unet":
        raise app.UsageError(
            "--augmentation is of --network=unet, which takes its labels."
        )
    imm_flags.check_batch_size(build_objective())
    if FLAGS.method != "imm" and FLAGS["flow_matching_share"].present:
        raise app.UsageError("--flow_matching_share is of --method=imm.")
    for name in ("sampling_steps", "channel_mult", "attention_resolutions"):
        if not FLAGS[name].value or not all(map(is_positive, FLAGS[name].value)):
            raise app.UsageError(
                f"--{name} must be positive integers separated by commas. "
                f"Received: {','.join(FLAGS[name].value)}"
            )
    return training_report.flags_of(FLAGS, __name__)


def is_positive(text):
    return text.isdecimal() and int(text) > 0


def integers(name):
    return tuple(map(int, FLAGS[name].value))


def build_backbone():
    arguments = {
        "image_shape": image_shape(),
        "num_classes": NUM_CLASSES,
        "dropout": FLAGS.dropout,
        "seed": FLAGS.seed,
    }
    if FLAGS.network == "dit":
        return keras_imm.backbones.DiT(
            patch_size=FLAGS.patch_size,
            hidden_size=FLAGS.hidden_size,
            depth=FLAGS.depth,
            num_heads=FLAGS.num_heads,
            **arguments,
        )
    return keras_imm.backbones.UNet(
        model_channels=FLAGS.model_channels,
        channel_mult=integers("channel_mult"),
        num_blocks=FLAGS.num_blocks,
        attention_resolutions=integers("attention_resolutions"),
        augmentation_dim=augmentation.NUM_LABELS if FLAGS.augmentation else 0,
        **arguments,
    )


def image_shape():
    height, width, channels = IMAGE_SHAPE
    return height + 2 * FLAGS.padding, width + 2 * FLAGS.padding, channels


def build_objective():
    if FLAGS.method == "flow_matching":
        return keras_imm.objectives.FlowMatching(
            label_dropout=FLAGS.label_dropout, times=imm_flags.times()
        )
    return keras_imm.objectives.MomentMatching(**imm_flags.objective_arguments())


def build_model(steps):
    """The compiled model of the flags, whose learning rate falls to 0 in `steps`."""
    keras.utils.set_random_seed(FLAGS.seed)
    model = keras_imm.FlowMapModel(
        build_backbone(),
        build_objective(),
        sigma_data=SIGMA_DATA,
        seed=FLAGS.seed,
        augmentation=augmentation.EDMAugmentation(seed=FLAGS.seed)
        if FLAGS.augmentation
        else None,
        **imm_flags.flow_map_arguments(),
    )
    rate = training_report.cosine_rate(FLAGS.learning_rate, steps, FLAGS.warmup_steps)
    optimizer = OPTIMIZERS[FLAGS.optimizer]
    model.compile(
        optimizer=training_report.averaging(optimizer, rate, FLAGS.ema_momentum)
    )
    return model


def load_images():
    """The training images and labels, and what makes bytes of images again.

    Their pixels have mean 0 and standard deviation 0.5, before --padding.
    """
    images, labels = fashion_mnist("train", FLAGS.data_dir)
    mean, scale = float(images.mean()), float(images.std()) / SIGMA_DATA
    border = FLAGS.padding
    images = np.pad(images, ((0, 0), (border, border), (border, border)))
    images = (images[..., None] - np.float32(mean)) / np.float32(scale)
    return (images, labels), keras_imm.Pixels(scale=scale, offset=mean)


def seconds_per_step(data):
    """Measured on a model of its own, which is not trained further."""
    timer = training_report.StepTimer()
    build_model(SPEED_STEPS).fit(
        Batches(data, FLAGS.batch_size, SPEED_STEPS, FLAGS.seed),
        epochs=2,
        shuffle=False,
        verbose=0,
        callbacks=[timer],
    )
    gc.collect()
    return timer.seconds_per_step(SPEED_STEPS)


def steps_in(minutes, seconds_per_step, steps_per_epoch):
    """As many steps as take so many minutes, in whole epochs; one epoch at least."""
    epochs = int(60 * minutes / (seconds_per_step * steps_per_epoch))
    return max(1, epochs) * steps_per_epoch


def find_run(out, chosen):
    """What `start_run` left in the folder of an earlier call, or None.

    Raises:
        UsageError: If it is a run of other flags or of another backend.
    """
    path = out / "run.json"
    has_begun = any((out / "checkpoints").glob("epoch-*"))
    if not path.exists() or not has_begun:
        return None
    run = json.loads(path.read_text())
    now = comparable(chosen)
    if not (out / "metrics.json").exists():  # of which only the measurements may change
        now["--guidance"] = chosen["guidance"]
        run["compared"]["--guidance"] = run.get("guidance", chosen["guidance"])
    for name in sorted(now.keys() | run["compared"].keys()):
        before, given = run["compared"].get(name), now.get(name)
        if before != given:
            raise app.UsageError(
                f"{out} holds a run with {name}={before!r}. Received: {name}="
                f"{given!r}. Give the same flags to continue it, or another --out."
            )
    return run


def start_run(out, chosen, data):
    """Decides the number of steps and keeps it for the calls that continue the run."""
    run = {"compared": comparable(chosen), "steps": FLAGS.steps}
    run["guidance"] = chosen["guidance"]
    if FLAGS.steps is None:
        speed = seconds_per_step(data)
        steps = steps_in(FLAGS.minutes, speed, FLAGS.steps_per_epoch)
        print(f"{speed:.4f} s a step: {steps} steps in {FLAGS.minutes:g} minutes")
        run |= {"steps": steps, "measured_seconds_per_step": speed}
    atomic.write_json(out / "run.json", run)
    return run


def comparable(chosen):
    """The flags that must be the same for a run to continue, and the backend."""
    compared = {f"--{k}": v for k, v in chosen.items() if k not in PLACES}
    return {**compared, "KERAS_BACKEND": keras.backend.backend()}


def train(model, data, quality, steps, out):
    """Trains the model, or goes on.

    Returns:
        The logs of all epochs.
    """
    steps_per_epoch = FLAGS.steps_per_epoch
    batches = ResumableBatches(data, FLAGS.batch_size, steps_per_epoch, FLAGS.seed)
    progress = keras_imm.callbacks.SampleMetrics(
        {
            name: lambda samples, labels, of=of: of(pictures(model, samples), labels)
            for name, of in (
                ("frechet", quality.frechet),
                ("agreement", quality.agreement),
            )
        },
        labels=quality.labels(min(SAMPLES_IN_TRAINING, FLAGS.num_samples)),
        num_steps=2,
        freq=FLAGS.evaluate_every,
        guidance_scale=FLAGS.guidance,
        batch_size=SAMPLING_BATCH,
        seed=FLAGS.seed,
    )
    checkpoint = keras_imm.callbacks.TrainingCheckpoint(out / "checkpoints", batches)
    model.fit(
        batches,
        epochs=steps // steps_per_epoch,
        shuffle=False,
        callbacks=[training_report.StepTimer(), progress, checkpoint],
    )
    return checkpoint.logs


def pictures(model, samples):
    """Bytes of samples, without --padding."""
    height, width, _ = IMAGE_SHAPE
    border = FLAGS.padding
    return model.to_uint8(samples)[:, border:, border:][:, :height, :width]


def measure(generate, quality, to_uint8):
    return training_report.measure(
        generate,
        quality.labels(FLAGS.num_samples),
        integers("sampling_steps"),
        lambda samples, labels: quality.measure(to_uint8(samples), labels),
        first_batch=SAMPLING_BATCH,
    )


def print_table(rows):
    columns = {
        "frechet": ("Fréchet", 3),
        "frechet_ratio": ("to floor", 1),
        "kernel_distance": ("kernel distance", 4),
        "precision": ("precision", 3),
        "recall": ("recall", 3),
        "agreement": ("agreement", 3),
        "seconds_per_1000_images": ("s / 1,000 images", 2),
    }
    training_report.print_table(rows, columns)


def draw_training(path, logs):
    def curve(name):
        found = [(entry["epoch"], entry[name]) for entry in logs if name in entry]
        epochs, values = zip(*found, strict=True) if found else ((), ())
        return FLAGS.steps_per_epoch * np.array(epochs), values

    panels = [
        ("loss, mean of an epoch", *curve("loss"), None),
        ("Fréchet distance, 2 steps", *curve("frechet_2_steps"), True),
        ("label agreement, 2 steps", *curve("agreement_2_steps"), False),
    ]
    training_report.draw_curves(path, panels, FLAGS.steps_per_epoch * len(logs))


def draw_samples(path, data, generate, to_uint8):
    blocks = training_report.sample_blocks(
        *data, generate, integers("sampling_steps"), NUM_CLASSES
    )
    blocks = {title: to_uint8(images) for title, images in blocks.items()}
    training_report.draw_blocks(
        path, blocks, limits=(0, 255), class_names=FASHION_MNIST_CLASSES
    )


def main(_):
    start = time.perf_counter()
    chosen = choose_flags()
    out = user_path(FLAGS.out)
    out.mkdir(parents=True, exist_ok=True)
    run = find_run(out, chosen)
    keras.config.set_dtype_policy(FLAGS.dtype)
    data, pixels = load_images()
    run = run or start_run(out, chosen, data)
    quality = keras_imm.metrics.FashionMNISTQuality(FLAGS.data_dir)
    model = build_model(run["steps"])
    model.pixels, model.class_names = pixels, FASHION_MNIST_CLASSES
    model.sampling_plan = SamplingPlan(guidance_scale=FLAGS.guidance)
    print(
        f"{model.count_params():,} parameters, {run['steps']} steps; results in {out}"
    )
    logs = train(model, data, quality, run["steps"], out)

    generate = training_report.Generator(
        model, image_shape(), FLAGS.seed, SAMPLING_BATCH, FLAGS.guidance
    )
    to_uint8 = functools.partial(pictures, model)
    draw_samples(out / "samples.png", data, generate, to_uint8)
    draw_training(out / "training.png", logs)
    model.save(out / "model.keras")
    print(f"measuring {FLAGS.num_samples} samples of {FLAGS.sampling_steps} steps")
    rows = measure(generate, quality, to_uint8)
    print_table(rows)
    training_report.write_json(
        out / "metrics.json",
        {
            "method": FLAGS.method,
            "measure": quality.name,
            **training_report.environment(),
            "flags": chosen,
            "parameters": model.count_params(),
            "steps": run["steps"],
            "measured_seconds_per_step": run.get("measured_seconds_per_step"),
            "floor": quality.floor(),
            "results": rows,
            "epochs": logs,
            "seconds": {
                "per_step": float(np.median([e["seconds"] for e in logs]))
                / FLAGS.steps_per_epoch,
                "of_epochs": sum(entry["seconds"] for entry in logs),
                "of_this_call": time.perf_counter() - start,
            },
        },
    )
    print(f"samples.png, training.png, metrics.json and model.keras are in {out}")


if __name__ == "__main__":
    app.run(main)
