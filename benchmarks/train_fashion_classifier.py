"""Trains the classifier on whose features samples of Fashion-MNIST are measured.

    KERAS_BACKEND=torch OMP_NUM_THREADS=1 python benchmarks/train_fashion_classifier.py

It has been run once: the file in keras_imm/metrics defines the measure
"fashion_mnist_v1", and other weights would be another measure under another name.
Writes the weights, float16, to --out, and prints their checksum and the accuracy on
training and test images.
"""

import json
import os
import pathlib
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from absl import app, flags

from keras_imm.datasets import fashion_mnist
from keras_imm.files.checksum import sha256
from keras_imm.metrics.fashion_mnist import FashionMNISTClassifier

FLAGS = flags.FLAGS
flags.DEFINE_string("data_dir", None, "Folder of Fashion-MNIST's IDX files.")
flags.DEFINE_integer("epochs", 12, "Passes over the 60,000 images.", lower_bound=1)
flags.DEFINE_integer("batch_size", 128, "Batch size.", lower_bound=1)
flags.DEFINE_float("learning_rate", 2e-3, "Adam's, falling to 0 (cosine).")
flags.DEFINE_float("dropout", 0.4, "Before the features and before the logits.")
flags.DEFINE_integer("seed", 0, "Of weights, batches and dropout.", lower_bound=0)
flags.DEFINE_string("out", "runs/fashion_classifier.npz", "File of the weights.")


def scaled(images):
    return images[..., None] / np.float32(127.5) - np.float32(1)


def with_dropout(classifier, rate, seed):
    """The classifier's own layers, from images to logits, with dropout between."""
    x = inputs = keras.Input((28, 28, 1))
    for layer in classifier.layers[1:]:
        if layer.name in ("features", "logits"):
            x = keras.layers.Dropout(rate, seed=seed)(x)
        x = layer(x)
    return keras.Model(inputs, x)


def train(classifier, images, labels):
    classifier.trainable = True
    model = with_dropout(classifier, FLAGS.dropout, FLAGS.seed)
    steps = FLAGS.epochs * (len(images) // FLAGS.batch_size + 1)
    rate = keras.optimizers.schedules.CosineDecay(FLAGS.learning_rate, steps)
    model.compile(
        optimizer=keras.optimizers.Adam(rate),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    model.fit(
        scaled(images),
        labels,
        batch_size=FLAGS.batch_size,
        epochs=FLAGS.epochs,
        verbose=2,
    )


def scale_features(classifier, images):
    """Gives each feature a standard deviation of 1, and leaves the logits as they are.

    A leaky ReLU lets a positive factor through.
    """
    deviation = classifier.outputs_of(images)["features"].std(axis=0, dtype="float64")
    print(f"deviations of the features: {deviation.min():.3f} to {deviation.max():.3f}")
    if deviation.min() < 1e-3 * deviation.max():
        raise ValueError("A feature is the same for all images: choose another seed.")
    features, logits = (classifier.get_layer(n) for n in ("features", "logits"))
    for variable in features.weights:
        variable.assign(keras.ops.convert_to_numpy(variable) / deviation)
    kernel = keras.ops.convert_to_numpy(logits.kernel)
    logits.kernel.assign(kernel * deviation[:, None])


def round_weights(classifier):
    """To float16, as they are stored."""
    for variable in classifier.weights:
        value = keras.ops.convert_to_numpy(variable).astype("float16")
        variable.assign(value.astype("float32"))


def accuracy(classifier, images, labels):
    return float(np.mean(classifier.outputs_of(images)["logits"].argmax(1) == labels))


def main(_):
    start = time.perf_counter()
    keras.utils.set_random_seed(FLAGS.seed)
    images, labels = fashion_mnist("train", FLAGS.data_dir)
    classifier = FashionMNISTClassifier(weights=None)
    train(classifier, images, labels)
    scale_features(classifier, images)
    round_weights(classifier)
    out = pathlib.Path(FLAGS.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    arrays = {name: a.astype("float16") for name, a in classifier.arrays().items()}
    np.savez_compressed(out, **arrays)
    result = {
        "sha256": sha256(out),
        "bytes": out.stat().st_size,
        "weights": sum(a.size for a in arrays.values()),
        "accuracy_train": accuracy(classifier, images, labels),
        "accuracy_test": accuracy(classifier, *fashion_mnist("test", FLAGS.data_dir)),
        "backend": keras.backend.backend(),
        "seconds": round(time.perf_counter() - start),
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    app.run(main)
