"""Exports a DiT-XL/2, 2.7 GB of weights, to ONNX and runs it: memory, seconds, error.

    KERAS_BACKEND=torch python benchmarks/onnx_large.py
    KERAS_BACKEND=jax python benchmarks/onnx_large.py --dtype=float16

The weights are random. Peak memory is the largest resident size of the process that
exports and, under another backend than PyTorch, of its child, in multiples of the
weights in float32; it is read before the file is run. The difference is that of one row
from `generate`, in standard deviations of what that makes.
"""

import os
import pathlib
import resource
import tempfile
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from absl import app, flags

import keras_imm
from keras_imm.serving import export_onnx

FLAGS = flags.FLAGS
flags.DEFINE_string("preset", "dit_xl_2", "A preset of the backbone.")
flags.DEFINE_enum("dtype", "float32", ["float32", "float16"], "What it computes in.")
flags.DEFINE_integer("num_steps", 1, "Steps of the sampler.", lower_bound=1)
flags.DEFINE_string("folder", None, "Where to write. Default: a temporary folder.")


def random_model(preset):
    """An untrained model, none of whose outputs is zero."""
    backbone = keras_imm.backbones.DiT.from_preset(
        preset, image_shape=(32, 32, 4), num_classes=1000
    )
    model = keras_imm.IMM(backbone)
    rng = np.random.default_rng(0)
    for variable in model.trainable_variables:
        values = rng.standard_normal(variable.shape, "float32")
        variable.assign(values * np.float32(0.02))
    return model


def peak(who):
    """Bytes of the largest resident size so far."""
    return 1024 * resource.getrusage(who).ru_maxrss


def main(_):
    model = random_model(FLAGS.preset)
    size = 4 * sum(int(np.prod(v.shape)) for v in model.flow.variables)
    print(f"weights: {size / 1e9:.2f} GB, peak before: ", end="")
    print(f"{peak(resource.RUSAGE_SELF) / size:.2f} times", flush=True)
    with tempfile.TemporaryDirectory(dir=FLAGS.folder) as temporary:
        start = time.perf_counter()
        path = export_onnx(
            model, pathlib.Path(temporary, "xl"), FLAGS.num_steps, dtype=FLAGS.dtype
        )
        print(f"exported in {time.perf_counter() - start:.0f} s", flush=True)
        for name, who in (
            ("this process", resource.RUSAGE_SELF),
            ("its child", resource.RUSAGE_CHILDREN),
        ):
            print(f"peak of {name}: {peak(who) / size:.2f} times the weights")
        for file in sorted(path.parent.iterdir()):
            print(f"{file.name}: {file.stat().st_size / 1e6:.1f} MB", flush=True)
        compare(model, path)


def compare(model, path):
    """Runs one row and prints its difference from `generate`."""
    import onnxruntime

    rng = np.random.default_rng(0)
    noise = rng.standard_normal((1, *model.data_shape), "float32")
    label = np.array([7], "int32")
    start = time.perf_counter()
    session = onnxruntime.InferenceSession(path)
    print(f"loaded in {time.perf_counter() - start:.0f} s", flush=True)
    start = time.perf_counter()
    (found,) = session.run(None, {"noise": noise, "label": label})
    print(f"one row in {time.perf_counter() - start:.1f} s", flush=True)
    del session
    expected = np.asarray(
        model.generate(label, noise=noise, num_steps=FLAGS.num_steps, verbose=0)
    )
    error = np.abs(found - expected).max() / expected.std()
    print(f"largest difference under {keras.backend.backend()}: {error:.1e}")


if __name__ == "__main__":
    app.run(main)
