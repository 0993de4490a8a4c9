"""Trains the flow-matching baseline on digits for a given wall-clock and measures it.

    python benchmarks/flow_matching_digits.py --seconds=200 --out=runs/flow_matching

Takes the flags of examples/digits.py, whose network, optimizer, batches and measures it
uses; those of IMM alone (`--k`, `--a`, `--b`, `--min_gap`, `--group_size`,
`--drop_target_labels`) and `--steps` have no effect. `benchmarks/quality_digits.py`
calls it with the time that IMM took.
"""

import math
import pathlib
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "examples"))

import digits
import digits_data
import keras
import measuring
import training_report
from absl import app, flags

import keras_imm

FLAGS = flags.FLAGS
flags.DEFINE_float("seconds", 200.0, "Seconds of training, without compilation.")


EPOCH = 20  # steps between changes of the learning rate


class WallClock(keras.callbacks.Callback):
    """Ends training when `seconds` have passed since the end of the first step.

    The learning rate is that of examples/digits.py, with the share of the time that
    has passed in place of the share of the steps: it rises for `warmup_steps`, then
    falls to 0 (cosine). All backends read it at the start of an epoch.
    """

    def __init__(self, seconds, learning_rate, warmup_steps):
        super().__init__()
        self.seconds = seconds
        self.learning_rate = learning_rate
        self.warmup_steps = warmup_steps
        self.start = None
        self.elapsed = 0.0
        self.steps = 0

    def on_epoch_begin(self, epoch, logs=None):
        warmup = min(1.0, (self.steps + 1) / max(1, self.warmup_steps))
        share = min(1.0, self.elapsed / self.seconds)
        rate = self.learning_rate * warmup * 0.5 * (1 + math.cos(math.pi * share))
        self.model.optimizer.learning_rate = rate

    def on_train_batch_end(self, batch, logs=None):
        measuring.wait(logs)
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

    model = keras_imm.FlowMapModel(
        digits.build_backbone(),
        objective=keras_imm.objectives.FlowMatching(label_dropout=FLAGS.label_dropout),
        sigma_data=digits_data.SIGMA_DATA,
        time_scale=FLAGS.time_scale,
        seed=FLAGS.seed,
    )
    model.compile(optimizer=digits.build_optimizer(FLAGS.learning_rate))
    clock = WallClock(FLAGS.seconds, FLAGS.learning_rate, FLAGS.warmup_steps)
    batches = digits_data.Batches((images, labels), FLAGS.batch_size, EPOCH, FLAGS.seed)
    history = model.fit(
        batches,
        epochs=sys.maxsize,
        shuffle=False,
        verbose=0,
        callbacks=[clock],
    )

    def generate(labels, num_steps):
        return model.generate(
            labels,
            num_steps=num_steps,
            seed=FLAGS.seed,
            batch_size=digits.SAMPLING_BATCH,
            verbose=0,
        )

    rows = digits.measure(generate, quality)
    digits.draw_samples(out / "samples.png", images, labels, generate)
    digits.print_table(rows)
    training_report.write_json(
        out / "metrics.json",
        {
            "method": "flow_matching",
            **digits.environment(),
            "flags": {**digits.own_flags(), "seconds": FLAGS.seconds},
            "parameters": model.count_params(),
            "results": rows,
            "loss": history.history["loss"],
            "training_steps": clock.steps,
            "seconds": {"training_without_compilation": clock.elapsed},
        },
    )


if __name__ == "__main__":
    app.run(main)
