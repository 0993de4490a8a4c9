"""Draws samples of a preset, a row for each class, beside real images.

    python benchmarks/draw_preset.py --name=imm_fashion_mnist --out=samples.png

The samples of all step counts start from the same noise. Nothing is chosen: the seed is
--seed, and a class's real images are the first of the data.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "examples"))

import training_report
from absl import app, flags

import keras_imm
from keras_imm.metrics.digits import digits_scaling, load_digits

FLAGS = flags.FLAGS
flags.DEFINE_string("name", "imm_fashion_mnist", "Name or folder of the preset.")
flags.DEFINE_list("steps", "1,2,8", "Numbers of steps.")
flags.DEFINE_integer("columns", 20, "Images of each class.", lower_bound=1)
flags.DEFINE_integer("seed", 0, "Of the noise.", lower_bound=0)
flags.DEFINE_string("data_dir", None, "Folder of Fashion-MNIST, if it is to be said.")
flags.DEFINE_string("out", "samples.png", "The picture.")


def real_images(shape):
    """Bytes and labels of the data that a preset of such images was trained on."""
    if shape == (8, 8, 1):
        images, labels = load_digits()
        return keras_imm.Pixels(*digits_scaling())(images), labels
    images, labels = keras_imm.datasets.fashion_mnist("train", FLAGS.data_dir)
    return images[..., None], labels


def main(_):
    model = keras_imm.FlowMapModel.from_preset(FLAGS.name)
    generate = training_report.Generator(model, model.data_shape, FLAGS.seed, 500)
    blocks = training_report.sample_blocks(
        *real_images(model.data_shape),
        lambda labels, steps: model.to_uint8(generate(labels, steps)),
        [int(count) for count in FLAGS.steps],
        model.num_classes,
        FLAGS.columns,
    )
    training_report.draw_blocks(
        FLAGS.out, blocks, (0, 255), FLAGS.columns, model.class_names, across=2
    )
    print(f"{FLAGS.out}: {', '.join(blocks)}")


if __name__ == "__main__":
    app.run(main)
