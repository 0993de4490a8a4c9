"""Trains a class-conditional IMM on scikit-learn's digits and samples it in few steps.

    python examples/digits.py
    KERAS_BACKEND=jax python examples/digits.py --steps=2000 --out=runs/short

Leaves in --out: samples.png, training.png, metrics.json and model.keras.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# PyTorch alone counts physical cores; give each framework what the machine has.
os.environ.setdefault("OMP_NUM_THREADS", str(os.cpu_count()))

import time

import digits_data
import imm_flags
import keras
import numpy as np
import sklearn
import training_report
from absl import app, flags

import keras_imm
from keras_imm.files.paths import user_path

FLAGS = flags.FLAGS
flags.adopt_module_key_flags(imm_flags)
flags.DEFINE_integer("steps", 4000, "Training steps.", lower_bound=1)
flags.DEFINE_integer("steps_per_epoch", 200, "Steps per epoch.", lower_bound=1)
flags.DEFINE_integer("batch_size", 128, "Batch size.", lower_bound=1)
flags.DEFINE_float("learning_rate", 2e-3, "Adam's learning rate, at its highest.")
flags.DEFINE_integer("warmup_steps", 200, "Steps of linear warm-up.", lower_bound=0)
flags.DEFINE_float("ema_momentum", 0.995, "Momentum of the averaged weights.")
flags.DEFINE_integer(
    "seed", 0, "Of the weights, the batches, the noise and times.", lower_bound=0
)
flags.DEFINE_list("sampling_steps", "1,2,4,8", "Numbers of sampling steps to measure.")
flags.DEFINE_integer("num_samples", 4000, "Images per measurement.", lower_bound=80)
flags.DEFINE_integer(
    "evaluate_every", 2, "Epochs between measurements in training.", lower_bound=1
)
flags.DEFINE_string("out", "runs/digits", "Folder for the results.")

flags.register_validator(
    "sampling_steps",
    lambda counts: counts and all(n.isdecimal() and int(n) > 0 for n in counts),
    "must be positive integers separated by commas",
)
flags.register_multi_flags_validator(
    ["steps", "steps_per_epoch"],
    lambda values: values["steps"] % min(values.values()) == 0,
    "--steps must be a multiple of --steps_per_epoch",
)
flags.register_validator(
    "batch_size",
    lambda size: size <= digits_data.NUM_IMAGES,
    f"must be at most {digits_data.NUM_IMAGES}, the number of images",
)

SAMPLING_BATCH = 1000


def build_backbone():
    return keras_imm.backbones.DiT(
        image_shape=(8, 8, 1),
        patch_size=2,
        hidden_size=64,
        depth=3,
        num_heads=4,
        num_classes=digits_data.NUM_CLASSES,
    )


def learning_rate():
    """Rises for `warmup_steps`, then falls to 0 at the last step (cosine)."""
    return training_report.cosine_rate(
        FLAGS.learning_rate, FLAGS.steps, FLAGS.warmup_steps
    )


def build_optimizer(learning_rate):
    return training_report.averaging(
        keras.optimizers.Adam, learning_rate, FLAGS.ema_momentum
    )


def build_model():
    model = keras_imm.IMM(
        build_backbone(),
        sigma_data=digits_data.SIGMA_DATA,
        seed=FLAGS.seed,
        **imm_flags.flow_map_arguments(),
        **imm_flags.objective_arguments(),
    )
    model.compile(optimizer=build_optimizer(learning_rate()))
    return model


def uniform_labels(count):
    return np.arange(count, dtype="int32") % digits_data.NUM_CLASSES


def step_counts():
    return list(map(int, FLAGS.sampling_steps))


def measure(generate, quality):
    """One row of the table per number of steps; `generate(labels, num_steps)`."""
    return training_report.measure(
        generate, uniform_labels(FLAGS.num_samples), step_counts(), quality.measure
    )


def print_table(rows):
    columns = {"frechet": ("Fréchet", 4), "agreement": ("agreement", 4)}
    columns["seconds_per_1000_images"] = ("s / 1,000 images", 3)
    training_report.print_table(rows, columns)


def environment():
    return training_report.environment(**{"scikit-learn": sklearn.__version__})


def own_flags():
    """The values of the flags defined above."""
    return training_report.flags_of(FLAGS, __name__)


def draw_samples(path, images, labels, generate):
    """A block of one row per class for the real images and for each step count."""
    blocks = training_report.sample_blocks(
        images, labels, generate, step_counts(), digits_data.NUM_CLASSES
    )
    training_report.draw_blocks(path, blocks, (images.min(), images.max()))


def draw_training(path, losses, history, steps_per_epoch):
    epochs = steps_per_epoch * np.arange(1, len(losses) + 1)
    measured = steps_per_epoch * np.array(history.get("epoch", []), int)
    frechet, agreement = (
        history.get(f"{name}_2_steps", []) for name in ("frechet", "agreement")
    )
    panels = [
        ("loss, mean of an epoch", epochs, losses, None),
        ("Fréchet distance, 2 steps", measured, frechet, True),
        ("label agreement, 2 steps", measured, agreement, False),
    ]
    training_report.draw_curves(path, panels, steps_per_epoch * len(losses))


def main(_):
    start = time.perf_counter()
    imm_flags.choose_recipe()
    imm_flags.check_batch_size(
        keras_imm.objectives.MomentMatching(**imm_flags.objective_arguments())
    )
    steps_per_epoch = min(FLAGS.steps_per_epoch, FLAGS.steps)
    out = user_path(FLAGS.out)
    out.mkdir(parents=True, exist_ok=True)

    keras.utils.set_random_seed(FLAGS.seed)
    images, labels = digits_data.load()
    quality = digits_data.Quality(images, labels)
    model = build_model()
    model.pixels = keras_imm.Pixels(*digits_data.digits_scaling())
    model.class_names = tuple(map(str, range(digits_data.NUM_CLASSES)))

    timer = training_report.StepTimer()
    progress = keras_imm.callbacks.SampleMetrics(
        {"frechet": quality.frechet, "agreement": quality.agreement},
        labels=uniform_labels(FLAGS.num_samples),
        num_steps=2,
        freq=FLAGS.evaluate_every,
        batch_size=SAMPLING_BATCH,
        seed=FLAGS.seed,
    )
    fit_start = time.perf_counter()
    history = model.fit(
        digits_data.Batches(
            (images, labels), FLAGS.batch_size, steps_per_epoch, FLAGS.seed
        ),
        epochs=FLAGS.steps // steps_per_epoch,
        shuffle=False,
        callbacks=[timer, progress],
    )
    fit_seconds = time.perf_counter() - fit_start

    generate = training_report.Generator(
        model, images.shape[1:], FLAGS.seed, SAMPLING_BATCH
    )
    rows = measure(generate, quality)
    draw_samples(out / "samples.png", images, labels, generate)
    draw_training(
        out / "training.png", history.history["loss"], progress.history, steps_per_epoch
    )
    model.save(out / "model.keras")
    print_table(rows)

    seconds_per_step = timer.seconds_per_step(steps_per_epoch)
    training_report.write_json(
        out / "metrics.json",
        {
            "method": "imm",
            **environment(),
            "flags": own_flags(),
            "parameters": model.count_params(),
            "results": rows,
            "loss": history.history["loss"],
            "during_training": progress.history,
            "seconds": {
                "per_step": seconds_per_step,
                "training_without_compilation": seconds_per_step * FLAGS.steps,
                "fit": fit_seconds,
                "total": time.perf_counter() - start,
            },
        },
    )
    print(f"samples.png, training.png, metrics.json and model.keras are in {out}")


if __name__ == "__main__":
    app.run(main)
