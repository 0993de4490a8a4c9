"""One sampler in every runtime: milliseconds, start and megabytes.

    KERAS_BACKEND=torch python benchmarks/runtimes.py
    KERAS_BACKEND=torch python benchmarks/runtimes.py --float16 --batch_sizes=1,16
    python benchmarks/runtimes.py --model=runs/digits/model.keras --batch_sizes=1,64

Exports the sampler from noise of a preset, or of a `.keras` file, in every format that
can be written here, and runs each where Keras cannot be imported, in a process of its
own, one after the other: the time to load it and to answer first, and the median of
later calls. "largest difference" is from `generate`, in the
model's range. The last rows are `generate` itself on the backend that exports.
"""

import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import measuring
import numpy as np
from absl import app, flags

import keras_imm
from keras_imm import serving

FLAGS = flags.FLAGS
flags.DEFINE_string("model", "imm_digits", "A preset, or a .keras file.")
flags.DEFINE_integer("num_steps", 2, "Steps of the sampler.", lower_bound=1)
flags.DEFINE_list("batch_sizes", "1,16", "Images in one call.")
flags.DEFINE_integer("repeats", 30, "Calls of each.", lower_bound=1)
flags.DEFINE_bool("float16", False, "Also weights in float16, where a format has them.")
flags.DEFINE_multi_string("format", [], "A format. Default: all.")

# What runs in a process of its own, by format: a function `sample` of NumPy arrays.
LOADERS = {
    "SavedModel": """
import tensorflow as tf
served = tf.saved_model.load(path).signatures["generate_from_noise"]
def sample(noise, label):
    return served(noise=tf.constant(noise), label=tf.constant(label))["image"].numpy()
""",
    "ONNX": """
import onnxruntime
session = onnxruntime.InferenceSession(path)
def sample(noise, label):
    return session.run(None, {"noise": noise, "label": label})[0]
""",
    "ONNX, float16": """
import onnxruntime
session = onnxruntime.InferenceSession(path)
def sample(noise, label):
    return session.run(None, {"noise": noise, "label": label})[0]
""",
    "PyTorch's program": """
import torch
program = torch.export.load(path).module()
def sample(noise, label):
    with torch.no_grad():
        return program(torch.from_numpy(noise), torch.from_numpy(label)).numpy()
""",
    "AOTInductor": """
import torch
program = torch._inductor.aoti_load_package(path)
def sample(noise, label):
    return program(torch.from_numpy(noise), torch.from_numpy(label)).numpy()
""",
    "OpenVINO": """
import openvino
compiled = openvino.Core().compile_model(path, "CPU")
def sample(noise, label):
    return compiled({"noise": noise, "label": label})["image"]
""",
    "LiteRT": """
from ai_edge_litert.interpreter import Interpreter
runner = Interpreter(path).get_signature_runner("serving_default")
def sample(noise, label):
    return runner(noise=noise, label=label)["image"]
""",
    "StableHLO": """
import jax
import numpy
from jax import export
call = jax.jit(export.deserialize(open(path, "rb").read()).call)
def sample(noise, label):
    return numpy.asarray(call(noise, label))
""",
}
RUN = """
import json, sys, time
sys.modules["keras"] = sys.modules["keras_imm"] = None
began = time.perf_counter()
import numpy as np
path, given, repeats = sys.argv[1], np.load(sys.argv[2]), int(sys.argv[3])
{loader}
found = {{}}
for count in sorted(int(name) for name in given.files if name.isdecimal()):
    noise, label = given[str(count)], given[f"label_{{count}}"]
    image = sample(noise, label)
    if "start" not in found:
        found["start"] = time.perf_counter() - began
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        sample(noise, label)
        times.append(time.perf_counter() - start)
    error = float(np.abs(image - given[f"image_{{count}}"]).max())
    found[count] = [float(np.median(times)), error]
print(json.dumps(found))
"""


def exports(model, folder):
    """Functions that write the model, by format; each returns the path to load."""
    steps = FLAGS.num_steps
    every = {
        "SavedModel": lambda: serving.export_saved_model(
            model,
            folder / "saved",
            num_steps=(steps,),
            signatures=("generate_from_noise",),
        ),
        "ONNX": lambda: serving.export_onnx(model, folder / "model.onnx", steps),
        "ONNX, float16": lambda: serving.export_onnx(
            model, folder / "half.onnx", steps, dtype="float16"
        ),
        "PyTorch's program": lambda: serving.export_torch(
            model, folder / "model.pt2", steps
        ),
        "AOTInductor": lambda: serving.export_torch(
            model, folder / "aot.pt2", steps, compiled=True
        ),
        "OpenVINO": lambda: serving.export_openvino(model, folder / "openvino", steps),
        "LiteRT": lambda: serving.export_litert(model, folder / "model.tflite", steps),
        "StableHLO": lambda: serving.export_stablehlo(
            model, folder / "model.jax", steps
        ),
    }
    if FLAGS.float16:
        every["OpenVINO, float16"] = lambda: serving.export_openvino(
            model, folder / "openvino_float16", steps, dtype="float16"
        )
        every["LiteRT, float16"] = lambda: serving.export_litert(
            model, folder / "float16.tflite", steps, dtype="float16"
        )
    return every


def megabytes(path):
    folder = path.parent if path.suffix == ".xml" else path
    files = [folder] if folder.is_file() else folder.rglob("*")
    return sum(file.stat().st_size for file in files if file.is_file()) / 1e6


def main(_):
    if FLAGS.model.endswith(".keras"):
        model = keras.saving.load_model(FLAGS.model)
    else:
        model = keras_imm.FlowMapModel.from_preset(FLAGS.model)
    counts = [int(count) for count in FLAGS.batch_sizes]
    rng = np.random.default_rng(0)
    given, own = {}, {}
    for count in counts:
        noise = rng.standard_normal((count, *model.data_shape)).astype("float32")
        label = rng.integers(0, model.num_classes, count).astype("int32")
        options = {"num_steps": FLAGS.num_steps, "noise": noise, "verbose": 0}
        image = np.asarray(model.generate(label, guidance_scale=None, **options))
        own[count] = measuring_of(model, label, options)
        given |= {str(count): noise, f"label_{count}": label, f"image_{count}": image}
    titles = " | ".join(f"ms, batch {count}" for count in counts)
    print(f"| format | MB | start, s | {titles} | largest difference |")
    print("|---" * (4 + len(counts)) + "|")
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary)
        np.savez(folder / "inputs.npz", **given)
        for name, write in exports(model, folder).items():
            if FLAGS.format and name not in FLAGS.format:
                continue
            path = pathlib.Path(write())
            code = RUN.format(loader=LOADERS[name.partition(",")[0]])
            result = subprocess.run(
                [
                    *(sys.executable, "-c", code, str(path)),
                    *(str(folder / "inputs.npz"), str(FLAGS.repeats)),
                ],
                stdout=subprocess.PIPE,
                text=True,
                check=True,
            )
            found = json.loads(result.stdout.splitlines()[-1])
            cells = [f"{1000 * found[str(count)][0]:.2f}" for count in counts]
            error = max(found[str(count)][1] for count in counts)
            print(
                f"| {name} | {megabytes(path):.1f} | {found['start']:.1f} "
                f"| {' | '.join(cells)} | {error:.1e} |",
                flush=True,
            )
    cells = " | ".join(f"{1000 * own[count]:.2f}" for count in counts)
    print(f"| `generate`, {keras.backend.backend()} | | | {cells} | |")


def measuring_of(model, label, options):
    """Seconds of a call of `generate`, the median."""
    times = []
    for _ in range(FLAGS.repeats):
        start = time.perf_counter()
        measuring.wait(model.generate(label, guidance_scale=None, **options))
        times.append(time.perf_counter() - start)
    return float(np.median(times))


if __name__ == "__main__":
    app.run(main)
