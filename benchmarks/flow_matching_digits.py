"""Trains the flow-matching baseline on digits for a given wall-clock and measures it.

    python benchmarks/flow_matching_digits.py --seconds=200 --out=runs/flow_matching

Takes the flags of examples/digits.py, whose network, optimizer, batches and measures it
uses. `benchmarks/quality_digits.py` calls it with the time that IMM took.
"""

import pathlib
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "examples"))

import digits
import digits_data
import keras
from absl import app, flags
from flow_matching import FlowMatching, NoisedBatches

FLAGS = flags.FLAGS
flags.DEFINE_float("seconds", 200.0, "Seconds of training, without compilation.")


PILOT_STEPS = 100


class Stopwatch(keras.callbacks.Callback):
    """Seconds of training without the first step, which compiles."""

    def on_train_batch_end(self, batch, logs=None):
        now = time.perf_counter()
        if not hasattr(self, "start"):
            self.start, self.steps = now, 0
        else:
            self.elapsed = now - self.start
            self.steps += 1


def train(images, labels, steps):
    """A new model trained for `steps`, its history and its stopwatch."""
    keras.utils.set_random_seed(FLAGS.seed)
    model = FlowMatching(digits.build_backbone(), digits_data.SIGMA_DATA)
    model.compile(optimizer=digits.build_optimizer(steps), loss="mse")
    batches = digits_data.Batches((images, labels), FLAGS.batch_size, steps, FLAGS.seed)
    watch = Stopwatch()
    history = model.fit(
        NoisedBatches(
            batches,
            digits_data.NUM_CLASSES,
            digits_data.SIGMA_DATA,
            FLAGS.label_dropout,
            FLAGS.seed,
        ),
        shuffle=False,
        verbose=0,
        callbacks=[watch],
    )  # Keras ends it by putting the averaged weights in place.
    return model, history, watch


def main(_):
    out = pathlib.Path(FLAGS.out)
    out.mkdir(parents=True, exist_ok=True)
    images, labels = digits_data.load()
    quality = digits_data.Quality(images, labels)

    # The learning rate falls to 0 at the last step, so their number has to be known.
    _, _, pilot = train(images, labels, PILOT_STEPS)
    steps = max(2, round(FLAGS.seconds * pilot.steps / pilot.elapsed))
    model, history, watch = train(images, labels, steps)

    def generate(labels, num_steps):
        return model.generate(labels, num_steps, FLAGS.seed, digits.SAMPLING_BATCH)

    rows = digits.measure(generate, quality)
    digits.draw_samples(out / "samples.png", images, labels, generate)
    digits.print_table(rows)
    digits.write_json(
        out / "metrics.json",
        {
            "method": "flow_matching",
            **digits.environment(),
            "flags": {**digits.own_flags(), "seconds": FLAGS.seconds},
            "parameters": model.count_params(),
            "results": rows,
            "loss": history.history["loss"],
            "training_steps": steps,
            "seconds": {"training_without_compilation": watch.elapsed},
        },
    )


if __name__ == "__main__":
    app.run(main)
