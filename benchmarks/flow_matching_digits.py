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


class StopAfter(keras.callbacks.Callback):
    """Stops training when `seconds` have passed since the end of the first step."""

    def __init__(self, seconds):
        super().__init__()
        self.seconds = seconds
        self.start = None
        self.steps = 0

    def on_train_batch_end(self, batch, logs=None):
        self.steps += 1
        if self.start is None:
            self.start = time.perf_counter()
        self.elapsed = time.perf_counter() - self.start
        self.model.stop_training = self.elapsed >= self.seconds


def main(_):
    out = pathlib.Path(FLAGS.out)
    out.mkdir(parents=True, exist_ok=True)
    keras.utils.set_random_seed(FLAGS.seed)
    images, labels = digits_data.load()
    quality = digits_data.Quality(images, labels)

    model = FlowMatching(digits.build_backbone(), digits_data.SIGMA_DATA)
    model.compile(optimizer=digits.build_optimizer(), loss="mse")
    stop = StopAfter(FLAGS.seconds)
    batches = digits_data.Batches(
        (images, labels), FLAGS.batch_size, FLAGS.steps_per_epoch, FLAGS.seed
    )
    history = model.fit(
        NoisedBatches(
            batches,
            digits_data.NUM_CLASSES,
            digits_data.SIGMA_DATA,
            FLAGS.label_dropout,
            FLAGS.seed,
        ),
        epochs=sys.maxsize,
        shuffle=False,
        verbose=0,
        callbacks=[stop],
    )  # Keras ends it by putting the averaged weights in place.

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
            "training_steps": stop.steps,
            "seconds": {"training_without_compilation": stop.elapsed},
        },
    )


if __name__ == "__main__":
    app.run(main)
