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

import glob
import gzip
import json
import tempfile

import keras
import kernel_times
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


def profile_torch(train):
    """Microseconds by kernel, or by operation on a CPU."""
    from torch.profiler import ProfilerActivity, profile

    device = measuring.torch_device()
    activities = [ProfilerActivity.CPU]
    if device == "cuda":
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities) as profiler:
        measuring.wait(train())
    return kernel_times.of_torch(profiler.key_averages(), device)


def profile_jax(train):
    """Microseconds by kernel, or by what XLA calls a thunk on a CPU."""
    import jax

    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(
            folder, create_perfetto_trace=True, profiler_options=options
        ):
            measuring.wait(train())
        (path,) = glob.glob(f"{folder}/**/perfetto_trace.json.gz", recursive=True)
        with gzip.open(path) as file:
            events = json.load(file)["traceEvents"]
    return kernel_times.of_jax(events, jax.default_backend())


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
        return model.fit(data, verbose=0, shuffle=False).history["loss"]

    measuring.wait(train())
    backend = keras.backend.backend()
    times = {"torch": profile_torch, "jax": profile_jax}[backend](train)
    kernel_times.check(times)
    total = sum(times.values())
    print(measuring.setting() + f" jit_compile={FLAGS.jit_compile}\n")
    measuring.print_row("kernel", "ms / step", "share")
    measuring.print_row("---", "---", "---")
    for name, microseconds in times.most_common(FLAGS.slowest):
        per_step = microseconds / 1000 / FLAGS.profiled_steps
        measuring.print_row(
            f"`{name[:90]}`", f"{per_step:.3f}", f"{microseconds / total:.1%}"
        )
    attention = {
        name: t for name, t in times.items() if kernel_times.ATTENTION.search(name)
    }
    share = sum(attention.values()) / total
    names = ", ".join(f"`{name[:60]}`" for name in attention) or "no such kernel"
    print(f"\nAttention: {share:.1%}, in {names}.")
    for choice in keras_imm.backend.attention_times():
        print("Chosen: " + ", ".join(f"{key} {one}" for key, one in choice.items()))
    whole = 1000 * seconds_per_step(model, images, labels)
    dimension = int(np.prod(measuring.image_shape()))
    FLAGS.loss_batch = FLAGS.batch_size
    alone = loss_milliseconds(model.group_size, dimension)
    print(
        f"Loss: {alone:.2f} ms without the network in {whole:.2f} ms, "
        f"{alone / whole:.2%}."
    )
    utilisation = measuring.utilisation(whole / 1000)
    if utilisation is not None:
        print(f"Utilisation: {utilisation:.1%}.")


if __name__ == "__main__":
    app.run(main)
