"""Where in time a model of the digits is good: one jump to the data from each time.

    python benchmarks/quality_by_time.py --model=runs/digits/model.keras

Noises every real digit to time t, jumps from there to the data with its label, and
measures the result as examples/digits.py measures samples. Beside each time stands the
gap t - r across which the objective compares.
"""

import os
import pathlib
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "examples"))

import digits_data
import keras
import measuring
import numpy as np
from absl import app, flags
from keras import ops

import keras_imm

FLAGS = flags.FLAGS
flags.DEFINE_string(
    "model", "runs/digits/model.keras", "What examples/digits.py saved."
)
flags.DEFINE_list("times", "0.994,0.98,0.96,0.94,0.9,0.8,0.7,0.5", "Times t.")
flags.DEFINE_integer("seed", 0, "Of the noise.", lower_bound=0)


def main(_):
    model = keras.models.load_model(FLAGS.model)
    assert isinstance(model, keras_imm.IMM)
    images, labels = digits_data.load()
    quality = digits_data.Quality(images, labels)
    rng = np.random.default_rng(FLAGS.seed)
    noise = model.sigma_data * rng.standard_normal(images.shape, "float32")
    print("| t | t - r at s = 0 | Fréchet | agreement |\n|---|---|---|---|")
    for t in map(float, FLAGS.times):
        r = model.time_mapping(model.schedule, 0.0, t, model.min_time, model.max_time)
        alpha, sigma = (
            float(ops.convert_to_numpy(f(t)))
            for f in (model.schedule.alpha, model.schedule.sigma)
        )
        x_t = alpha * images + sigma * noise
        (samples,) = measuring.wait(model.flow_map(x_t, t, 0.0, labels))
        print(
            f"| {t} | {t - float(ops.convert_to_numpy(r)):.1e} "
            f"| {quality.frechet(samples, labels):.3f} "
            f"| {quality.agreement(samples, labels):.3f} |"
        )


if __name__ == "__main__":
    app.run(main)
