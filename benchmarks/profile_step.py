"""The slowest kernels of a training step, and what attention and the loss take of it.

    KERAS_BACKEND=jax python benchmarks/profile_step.py --model=dit_s_2 --batch_size=64

Profiles a few steps of `fit` with the profiler of PyTorch or JAX and prints the ten
kernels that took longest, with their share of the time of all kernels; then the shares
of those whose names tell of attention. "loss" is the time of a step without its network
(see benchmarks/scaling.py) over that of a step, both of `fit` and unprofiled.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("OMP_NUM_THREADS", str(os.cpu_count()))

import collections
import glob
import gzip
import json
import re
import tempfile

import keras
import measuring
import numpy as np
from absl import app, flags
from scaling import loss_milliseconds, seconds_per_step

import keras_imm

FLAGS = flags.FLAGS
measuring.define_model_flags(batch_size=False)
flags.DEFINE_bool("jit_compile", False, "Whether PyTorch compiles the step.")
flags.DEFINE_integer("profiled_steps", 3, "Steps under the profiler.", lower_bound=1)
flags.DEFINE_integer("slowest", 10, "Kernels to print.", lower_bound=1)
FLAGS.set_default("parts", "loss")

ATTENTION = re.compile("flash|fmha|attention|sdpa|cudnn_generated", re.IGNORECASE)


def profile_torch(train):
    """Microseconds by kernel."""
    from torch.profiler import ProfilerActivity, profile

    activities = [ProfilerActivity.CPU]
    if measuring.torch_device() == "cuda":
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities) as profiler:
        train()
    times = collections.Counter()
    for event in profiler.key_averages():
        if measuring.torch_device() == "cuda":
            times[event.key] += event.self_device_time_total
        else:
            times[event.key] += event.self_cpu_time_total
    return times


def profile_jax(train):
    """Microseconds by kernel, or by what XLA calls a thunk on a CPU."""
    import jax

    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(
            folder, create_perfetto_trace=True, profiler_options=options
        ):
            train()
        (path,) = glob.glob(f"{folder}/**/perfetto_trace.json.gz", recursive=True)
        with gzip.open(path) as file:
            events = json.load(file)["traceEvents"]
    on_gpu = jax.default_backend() != "cpu"
    lines = {
        (e["pid"], e.get("tid")): e["args"]["name"]
        for e in events
        if e.get("ph") == "M" and e["name"] in ("process_name", "thread_name")
    }
    times = collections.Counter()
    for e in events:
        if e.get("ph") != "X":
            continue
        line = lines.get((e["pid"], e["tid"]), "")
        kernel = "Stream" in line if on_gpu else "XLAEigen" in line
        if kernel and "::" not in e["name"]:
            times[re.sub(r"[.\d]+$", "", e["name"])] += e["dur"]
    return times


def main(_):
    model = measuring.build()
    model.compile(
        keras.optimizers.AdamW(1e-4, weight_decay=0.0, epsilon=1e-8, use_ema=True),
        jit_compile=FLAGS.jit_compile or "auto",
    )
    rng = np.random.default_rng(0)
    shape = (FLAGS.batch_size, *measuring.image_shape())
    images = rng.normal(0, 0.5, shape).astype("float32")
    labels = rng.integers(0, measuring.num_classes(), FLAGS.batch_size)
    data = measuring.Data([(images, labels.astype("int32"))] * FLAGS.profiled_steps)

    def train():
        model.fit(data, verbose=0, shuffle=False)

    train()
    backend = keras.backend.backend()
    times = {"torch": profile_torch, "jax": profile_jax}[backend](train)
    total = sum(times.values())
    print(measuring.setting() + f" jit_compile={FLAGS.jit_compile}\n")
    measuring.print_row("kernel", "ms / step", "share")
    measuring.print_row("---", "---", "---")
    for name, microseconds in times.most_common(FLAGS.slowest):
        per_step = microseconds / 1000 / FLAGS.profiled_steps
        measuring.print_row(
            f"`{name[:90]}`", f"{per_step:.3f}", f"{microseconds / total:.1%}"
        )
    attention = {name: t for name, t in times.items() if ATTENTION.search(name)}
    share = sum(attention.values()) / total
    names = ", ".join(f"`{name[:60]}`" for name in attention) or "no such kernel"
    print(f"\nAttention: {share:.1%}, in {names}.")
    whole = 1000 * seconds_per_step(model, images, labels)
    dimension = int(np.prod(measuring.image_shape()))
    FLAGS.loss_batch = FLAGS.batch_size
    alone = loss_milliseconds(model.group_size, dimension)
    print(
        f"Loss: {alone:.2f} ms without the network in {whole:.2f} ms, "
        f"{alone / whole:.2%}."
    )
    peak = keras_imm.devices.peak_flops(FLAGS.dtype)
    if peak:
        print(f"Utilisation: {measuring.utilisation(whole / 1000):.1%}.")


if __name__ == "__main__":
    app.run(main)
