"""How long the digits example takes to its first training step and first samples.

    python benchmarks/start_up.py [--beside=../other-checkout]

Every figure is the median over fresh processes of the seconds of one part: imports,
making and compiling the model, the first step of `fit` (tracing and compiling), a step
after that, the first `generate` and another. With `--beside` the package of another
checkout is measured in turn.
"""

import json
import os
import pathlib
import statistics
import subprocess
import sys

from absl import app, flags

FLAGS = flags.FLAGS
flags.DEFINE_list("backends", "tensorflow,jax,torch", "Backends to measure.")
flags.DEFINE_integer("processes", 5, "Fresh processes of each.", lower_bound=1)
flags.DEFINE_string("beside", None, "Another checkout of the project.")
flags.DEFINE_string("out", None, "JSON file for the results.")

HERE = pathlib.Path(__file__).resolve().parents[1]
SCRIPT = """
import json, time
marks = [("", time.perf_counter())]
def mark(name):
    marks.append((name, time.perf_counter()))
import keras
import numpy as np
mark("import keras")
import keras_imm
mark("import keras_imm")
from measuring import wait
mark(None)
backbone = keras_imm.backbones.DiT(image_shape=(8, 8, 1), patch_size=2, hidden_size=64,
                                   depth=3, num_heads=4, num_classes=10)
model = keras_imm.IMM(backbone)
model.compile(keras.optimizers.Adam(2e-3, epsilon=1e-8, use_ema=True))
mark("model")
rng = np.random.default_rng(0)
images = rng.normal(0, 0.5, (128, 8, 8, 1)).astype("float32")
labels = rng.integers(0, 10, 128)
for name in ("first step", "step"):
    wait(model.fit(images, labels, batch_size=128, verbose=0).history["loss"])
    mark(name)
for name in ("first sample", "sample"):
    wait(model.generate(labels[:16], num_steps=2, verbose=0))
    mark(name)
pairs = zip(marks, marks[1:])
print(json.dumps({name: end - start for (_, start), (name, end) in pairs if name}))
"""


def seconds(backend, checkout):
    """Seconds of the parts in one fresh process."""
    environment = os.environ | {
        "KERAS_BACKEND": backend,
        "PYTHONPATH": os.pathsep.join([str(checkout), str(HERE / "benchmarks")]),
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(os.cpu_count())),
    }
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env=environment,
        cwd=checkout,  # which comes before PYTHONPATH
        check=True,
        capture_output=True,
        text=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def main(_):
    checkouts = {"this": HERE}
    if FLAGS.beside:
        checkouts["beside"] = pathlib.Path(FLAGS.beside).resolve()
    results = {}
    for backend in FLAGS.backends:
        rows = {name: [] for name in checkouts}
        for _ in range(FLAGS.processes):
            for name, checkout in checkouts.items():
                rows[name].append(seconds(backend, checkout))
        for name, own in rows.items():
            parts = {part: statistics.median(r[part] for r in own) for part in own[0]}
            parts["all to the first step"] = sum(
                parts[part]
                for part in ("import keras", "import keras_imm", "model", "first step")
            )
            if not results:
                print("| backend | package | " + " | ".join(parts) + " |")
                print("|---" * (len(parts) + 2) + "|")
            results[f"{backend}, {name}"] = parts
            cells = " | ".join(f"{value:.2f}" for value in parts.values())
            print(f"| {backend} | {name} | {cells} |", flush=True)
    if FLAGS.out:
        pathlib.Path(FLAGS.out).write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    app.run(main)
