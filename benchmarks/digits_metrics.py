"""All metrics of digits, measured by examples/evaluate.py.

    python examples/digits.py --out=runs/digits
    python benchmarks/digits_metrics.py --checkpoint=runs/digits/model.keras

Inception has never seen digits of 8x8 pixels, and is 90 MB. Its stand-in is a small
convolutional classifier that is trained here, on the real digits, in seconds: the
numbers say which samples are better, and compare with no FID. Leaves the classifier,
the real digits and what evaluate.py leaves in --out, and prints the table as Markdown.
"""

import json
import os
import pathlib
import subprocess
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "examples"))

import digits_data
import keras
import numpy as np
from absl import app, flags

from keras_imm.callbacks import pixels_to_uint8

FLAGS = flags.FLAGS
flags.DEFINE_string("checkpoint", "runs/digits/model.keras", "A model of digits.")
flags.DEFINE_list("steps", "1,2,4,8", "Numbers of sampling steps.")
flags.DEFINE_list("guidance", "", "Guidance scales. Default: no guidance.")
flags.DEFINE_integer("num_images", 10_000, "Images per setting.", lower_bound=10)
flags.DEFINE_integer("epochs", 30, "Passes of the classifier's training.", 1)
flags.DEFINE_integer("seed", 0, "Of the classifier, of noise and of labels.", 0)
flags.DEFINE_string("out", "runs/digits_metrics", "Folder for the results.")

ROOT = pathlib.Path(__file__).resolve().parents[1]
NUM_FEATURES = 32


def train_features(images, labels, epochs, seed):
    """A classifier of digits from uint8 images to its last features and its logits.

    Returns:
        The network, and how much of every tenth digit, which it was not trained on, it
        classifies as it should.
    """
    keras.utils.set_random_seed(seed)
    layers = keras.layers
    inputs = keras.Input(images.shape[1:], dtype="uint8")
    x = layers.Rescaling(1 / 127.5, offset=-1)(inputs)
    for filters, strides in ((16, 1), (32, 2)):
        x = layers.Conv2D(filters, 3, strides, padding="same", activation="relu")(x)
    x = layers.Flatten()(x)
    x = layers.Dense(NUM_FEATURES, activation="relu")(x)
    # To deviations of about 1, or the kernel distance would be of any size.
    features = layers.BatchNormalization(center=False, scale=False, momentum=0.9)(x)
    logits = layers.Dense(digits_data.NUM_CLASSES)(features)
    classifier = keras.Model(inputs, logits)
    classifier.compile(
        optimizer=keras.optimizers.Adam(3e-3),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    held_out = np.arange(len(images)) % 10 == 0
    classifier.fit(
        images[~held_out], labels[~held_out], batch_size=64, epochs=epochs, verbose=0
    )
    _, accuracy = classifier.evaluate(images[held_out], labels[held_out], verbose=0)
    return keras.Model(inputs, {"features": features, "logits": logits}), accuracy


def evaluate(out):
    """Runs examples/evaluate.py and returns its rows."""
    command = [
        sys.executable,
        str(ROOT / "examples" / "evaluate.py"),
        f"--checkpoint={FLAGS.checkpoint}",
        f"--reference={out / 'digits.npz'}",
        f"--features={out / 'features.keras'}",
        f"--steps={','.join(FLAGS.steps)}",
        f"--guidance={','.join(FLAGS.guidance)}",
        f"--num_images={FLAGS.num_images}",
        f"--seed={FLAGS.seed}",
        f"--out={out / 'evaluation'}",
    ]
    subprocess.run(command, check=True)
    return json.loads((out / "evaluation" / "metrics.json").read_text())["results"]


def table(rows):
    """Markdown, with a deviation beside its mean."""
    guided = any(row["guidance_scale"] is not None for row in rows)
    columns = ["steps", *(["guidance"] if guided else [])]
    names = ["frechet", "kernel_distance", "inception_score"]
    names += ["precision", "recall", "density", "coverage"]
    header = [*columns, *(name.replace("_", " ") for name in names)]
    lines = [f"| {' | '.join(header)} |", "|---" * len(header) + "|"]
    for row in rows:
        cells = [str(row["steps"]), *([f"{row['guidance_scale']:g}"] if guided else [])]
        for name in names:
            deviation = row.get(f"{name}_std")
            cells.append(f"{row[name]:.4f}")
            cells[-1] += "" if deviation is None else f" ± {deviation:.4f}"
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main(_):
    out = pathlib.Path(FLAGS.out)
    out.mkdir(parents=True, exist_ok=True)
    images, labels = digits_data.load()
    if not (out / "features.keras").exists():
        np.savez(out / "digits.npz", images=images)
        network, accuracy = train_features(
            pixels_to_uint8(images), labels, FLAGS.epochs, FLAGS.seed
        )
        print(f"The stand-in classifies {accuracy:.3f} of held-out digits correctly.")
        network.save(out / "features.keras")
    rows = evaluate(out)
    print(f"\n{table(rows)}")


if __name__ == "__main__":
    app.run(main)
