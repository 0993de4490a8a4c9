"""A SavedModel beside `model.generate`: time per image, cold start and size.

    KERAS_BACKEND=tensorflow python benchmarks/serving.py

For each model and batch size it calls `generate_<n>_steps` of the SavedModel, which
draws noise from seeds and returns bytes, and `model.generate(seed=...)` in turn, in one
process, and prints the medians and the median of their ratios. "cold start" is a fresh
process from its start to its first answer: TensorFlow and the SavedModel, against Keras
and the `.keras` file. "size" is the folder on disk, with all signatures, against the
weights in float32.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import pathlib
import statistics
import subprocess
import sys
import tempfile

import keras
import measuring
import numpy as np
from absl import app, flags

import keras_imm

FLAGS = flags.FLAGS
flags.DEFINE_list("models", "digits,dit_s_2", "Which of digits and the presets of DiT.")
flags.DEFINE_list("batch_sizes", "1,16", "Images in one call.")
flags.DEFINE_integer("num_steps", 2, "Steps of the sampler.", lower_bound=1)
flags.DEFINE_integer("repeats", 9, "Calls of each.", lower_bound=1)
flags.DEFINE_bool("cold_start", True, "Whether to start processes.")

SERVED = """
import sys, tensorflow as tf
served = tf.saved_model.load(sys.argv[1]).signatures["serving_default"]
served(seed=tf.constant([1], tf.int64), label=tf.constant([1]))["image"].numpy()
"""
LOADED = """
import sys, keras, keras_imm
model = keras.saving.load_model(sys.argv[1])
model.generate(labels=[1], num_steps=2, seed=1, verbose=0)
"""


def build(name):
    if name == "digits":
        backbone = keras_imm.backbones.DiT(
            image_shape=(8, 8, 1),
            patch_size=2,
            hidden_size=64,
            depth=3,
            num_heads=4,
            num_classes=10,
        )
    else:
        backbone = keras_imm.backbones.DiT.from_preset(
            name, image_shape=(32, 32, 4), num_classes=1000
        )
    model = keras_imm.IMM(backbone)
    model.compile(keras.optimizers.Adam(1e-3, use_ema=True))
    return model


def compare(model, signatures, batch, num_steps, repeats):
    """Milliseconds per image of both, and the median of the ratios."""
    import tensorflow as tf

    labels = np.arange(batch) % 10
    inputs = {
        "seed": tf.range(batch, dtype=tf.int64),
        "label": tf.constant(labels, tf.int32),
    }
    served = signatures[f"generate_{num_steps}_steps"]

    def serve():
        return served(**inputs)["image"].numpy()

    def generate():
        return model.generate(
            labels, num_steps=num_steps, seed=0, batch_size=batch, verbose=0
        )

    for function in (serve, generate):
        measuring.wait(function())
    pairs = [
        (measuring.seconds(serve), measuring.seconds(generate)) for _ in range(repeats)
    ]
    medians = [
        1000 * statistics.median(times) / batch for times in zip(*pairs, strict=True)
    ]
    return *medians, statistics.median(a / b for a, b in pairs)


def size(folder):
    return sum(p.stat().st_size for p in pathlib.Path(folder).rglob("*") if p.is_file())


def cold_start(code, path):
    environment = {
        **os.environ,
        "KERAS_BACKEND": "tensorflow",
        "PYTHONPATH": str(pathlib.Path(__file__).resolve().parents[1]),
    }
    command = [sys.executable, "-c", code, str(path)]

    def start():
        done = subprocess.run(command, env=environment, check=True, stderr=-3)
        return done.returncode

    return statistics.median(measuring.seconds(start) for _ in range(3))


def measure(name, folder):
    import tensorflow as tf

    model = build(name)
    path = keras_imm.serving.export_saved_model(
        model, folder / name, num_steps=(1, 2, 8)
    )
    signatures = tf.saved_model.load(str(path)).signatures
    for batch in map(int, FLAGS.batch_sizes):
        served, generated, ratio = compare(
            model, signatures, batch, FLAGS.num_steps, FLAGS.repeats
        )
        print(
            f"| {name} | {batch} | {served:.3f} | {generated:.3f} | {ratio:.3f} |",
            flush=True,
        )
    weights = 4 * model.count_params()
    line = f"{name}: {size(path) / 1e6:.2f} MB on disk, weights {weights / 1e6:.2f} MB"
    if FLAGS.cold_start:
        model.save(folder / f"{name}.keras")
        line += (
            f"; cold start {cold_start(SERVED, path):.1f} s served, "
            f"{cold_start(LOADED, folder / f'{name}.keras'):.1f} s by Keras"
        )
    return line


def main(_):
    print("| model | batch | served ms / image | generate ms / image | ratio |")
    print("|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as temporary:
        lines = [measure(name, pathlib.Path(temporary)) for name in FLAGS.models]
    print()
    print("\n".join(lines))


if __name__ == "__main__":
    app.run(main)
