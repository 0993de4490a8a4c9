"""Loads damaged and hostile checkpoints: what becomes of them, and how fast.

    python benchmarks/hostile_checkpoints.py

Each mutation changes one to three places of a golden checkpoint, half of them outside
the weights. A file must end in a ValueError or in a model with finite weights of the
declared shapes, in less than 5 s; anything else stops the script.
"""

import os
import pathlib
import platform
import sys
import tempfile
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
from absl import app, flags

ROOT = pathlib.Path(__file__).resolve().parents[1]
FLAGS = flags.FLAGS
flags.DEFINE_integer("count", 500, "Mutations of each golden checkpoint.", 1)
flags.DEFINE_integer("seed", 1, "Seed of the mutations.", 0)


def load(path, content):
    """Seconds, and the model or the ValueError that a file's content ends in."""
    from keras_imm.checkpoints import load_official

    path.write_bytes(content)
    start = time.perf_counter()
    try:
        result = load_official(path)
    except ValueError as error:
        result = error
    return time.perf_counter() - start, result


def check(model, shapes):
    """Stops unless a model's weights are finite and have these shapes."""
    import keras

    assert [tuple(v.shape) for v in model.weights] == shapes
    for v in model.weights:
        assert np.all(np.isfinite(keras.ops.convert_to_numpy(v)))


def main(_):
    sys.path.insert(0, str(ROOT / "tests"))
    import keras
    from hostile_files import attacks, mutations

    from keras_imm.checkpoints import load_official

    machine = platform.processor() or platform.machine()
    print(f"{keras.backend.backend()}; {machine}, {os.cpu_count()} cores.\n")
    print("| files | number | refused | loaded | slowest, s |")
    print("|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        path, marker = pathlib.Path(folder, "model.pkl"), pathlib.Path(folder, "marker")
        load_official(ROOT / "tests/data/golden/dit_euler_fm_stride.pkl")
        results = [load(path, content) for _, content in attacks(str(marker))]
        assert all(isinstance(result, ValueError) for _, result in results)
        assert not marker.exists()
        report("attacks", results)
        for name in ("dit_euler_fm_stride", "unet_ddpmpp_simple_edm"):
            golden = ROOT / "tests/data/golden" / f"{name}.pkl"
            shapes = [tuple(v.shape) for v in load_official(golden).weights]
            results = []
            for content in mutations(golden.read_bytes(), FLAGS.count, FLAGS.seed):
                seconds, result = load(path, content)
                if not isinstance(result, ValueError):
                    check(result, shapes)
                    result = None
                results.append((seconds, result))
            report(f"mutations of {name}", results)
        assert os.listdir(folder) == ["model.pkl"]


def report(name, results):
    slowest = max(seconds for seconds, _ in results)
    assert slowest < 5, f"{name}: one took {slowest:.1f} s"
    refused = sum(isinstance(result, ValueError) for _, result in results)
    print(
        f"| {name} | {len(results)} | {refused} | {len(results) - refused} "
        f"| {slowest:.2f} |",
        flush=True,
    )


if __name__ == "__main__":
    app.run(main)
