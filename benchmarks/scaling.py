"""What grows with what: the loss with M and D, several devices with their number.

    KERAS_BACKEND=jax python benchmarks/scaling.py

"loss": milliseconds of a training step without its network (the flow map multiplies by
one trainable number): drawing groups, times and noise, coefficients, kernels, loss and
gradient, for M particles in a group and D elements of a sample; and the share that the
last would have in a step of DiT-S/2, timed at a smaller batch. "devices" (JAX alone):
one global batch on virtual devices of this CPU, with what the devices tell each other
in a step, read from the compiled program, beside what they compute. "plan": what a step
of a published network would take on many chips, from counts and vendors' figures alone.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("OMP_NUM_THREADS", str(os.cpu_count()))

import json
import pathlib
import re
import subprocess
import sys

import keras
import measuring
import numpy as np
from absl import app, flags

import keras_imm

FLAGS = flags.FLAGS
flags.DEFINE_list("parts", "loss,devices,plan", "Which of loss, devices and plan.")
flags.DEFINE_integer("loss_batch", 256, "Samples of a batch in the part loss.")
flags.DEFINE_list("group_sizes", "1,2,4,8,16,32,64", "M, at D of the latents.")
flags.DEFINE_list("dimensions", "64,1024,4096,16384", "D, at M of 4.")
flags.DEFINE_integer("network_batch", 8, "Samples of the step of DiT-S/2; 0: no step.")
flags.DEFINE_list("device_counts", "1,2,4", "Devices of the part devices.")
flags.DEFINE_integer("hidden_size", 256, "Width of its DiT.", lower_bound=4)
flags.DEFINE_integer("depth", 4, "Blocks of its DiT.", lower_bound=1)
flags.DEFINE_integer("batch_size", 64, "Samples of a batch.", lower_bound=4)
flags.DEFINE_string("preset", "dit_xl_2", "The network of the part plan.")
flags.DEFINE_integer("global_batch", 4096, "Its batch.")
flags.DEFINE_integer("chips", 256, "Its chips.")
flags.DEFINE_float(
    "utilisation",
    0.39,
    "The share of the peak that it computes at; an H100 reached it.",
)
flags.DEFINE_bool("child", False, "Measure all devices of this process.")
flags.DEFINE_string("out", None, "JSON file for the results.")

LATENTS = 32 * 32 * 4
REPEATS, STEPS = 9, 4


class Scale(keras.layers.Layer):
    """A backbone of one number."""

    def build(self, input_shape):
        self.scale = self.add_weight(shape=(), initializer="ones")

    def call(self, inputs):
        return self.scale * inputs[0]


def seconds_per_step(model, *batch):
    """Median over epochs of `fit`, without the first, which compiles."""
    timer = measuring.EpochTimes()
    model.fit(
        measuring.Data([batch] * STEPS),
        epochs=REPEATS + 1,
        verbose=0,
        shuffle=False,
        callbacks=[timer],
    )
    return float(np.median(timer.seconds[1:])) / STEPS


def random_images(count, shape):
    rng = np.random.default_rng(0)
    return rng.normal(0, 0.5, (count, *shape)).astype("float32")


def loss_milliseconds(group_size, dimension):
    images = random_images(FLAGS.loss_batch, (dimension,))
    model = keras_imm.IMM(Scale(), group_size=group_size)
    model.build((None, dimension))
    model.compile(keras.optimizers.SGD(1e-3))
    return 1000 * seconds_per_step(model, images)


def measure_loss():
    print(f"\nWithout a network, batch {FLAGS.loss_batch}:\n")
    measuring.print_row("M", "D", "ms / step", "us / sample")
    measuring.print_row(*["---"] * 4)
    rows = []
    pairs = [(int(m), LATENTS) for m in FLAGS.group_sizes]
    pairs += [(4, int(d)) for d in FLAGS.dimensions]
    for group_size, dimension in dict.fromkeys(pairs):
        milliseconds = loss_milliseconds(group_size, dimension)
        per_sample = 1000 * milliseconds / FLAGS.loss_batch
        rows.append(
            {"M": group_size, "D": dimension, "milliseconds_per_step": milliseconds}
        )
        measuring.print_row(
            str(group_size), str(dimension), f"{milliseconds:.2f}", f"{per_sample:.1f}"
        )
    if FLAGS.network_batch:
        rows.append(measure_share())
    return rows


def measure_share():
    """What all but the network takes of a step of DiT-S/2."""
    count = FLAGS.network_batch
    backbone = keras_imm.backbones.DiT.from_preset("dit_s_2", (32, 32, 4))
    model = keras_imm.IMM(backbone)
    model.compile(keras.optimizers.SGD(1e-3))
    whole = 1000 * seconds_per_step(model, random_images(count, (32, 32, 4))) / count
    alone = loss_milliseconds(4, LATENTS) / FLAGS.loss_batch
    print(
        f"\nDiT-S/2, batch {count}: {whole:.1f} ms / sample; without the network, "
        f"batch {FLAGS.loss_batch}: {alone:.3f} ms / sample, {alone / whole:.2%} of it."
    )
    return {"dit_s_2_ms_per_sample": whole, "loss_ms_per_sample": alone}


def collectives(text):
    """Bytes that go through all-reduces of a compiled program, and other collectives.

    Returns:
        Bytes of all-reduces, and the set of names of collectives.
    """
    sizes = {"f32": 4, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "pred": 1, "f64": 8}
    total, names = 0, set()
    pattern = r" = (.*?) (all-reduce|all-gather|reduce-scatter|all-to-all)(-start)?\("
    for shapes, name, _ in re.findall(pattern, text):
        names.add(name)
        if name == "all-reduce":
            for dtype, shape in re.findall(r"(\w+)\[([\d,]*)\]", shapes):
                elements = np.prod([int(n) for n in shape.split(",") if n], dtype=int)
                total += sizes[dtype] * int(elements)
    return total, sorted(names)


def measure_devices_of_this_process():
    """Prints one row for the devices that JAX has here."""
    import jax

    strategy = keras_imm.distribution.initialize()
    images = random_images(FLAGS.batch_size, (32, 32, 4))
    with strategy.scope():
        backbone = keras_imm.backbones.DiT(
            image_shape=(32, 32, 4),
            hidden_size=FLAGS.hidden_size,
            depth=FLAGS.depth,
            num_heads=4,
        )
        model = keras_imm.IMM(backbone)
        model.compile(keras.optimizers.Adam(1e-4, use_ema=True))
        seconds = seconds_per_step(model, images)
        text = step_text(model, images)
    volume, names = collectives(text)
    forward = keras_imm.flops.multiply_adds(backbone)
    flops = keras_imm.flops.training_step_flops(forward, FLAGS.batch_size)
    count = len(jax.devices())
    row = {
        "devices": count,
        "milliseconds_per_step": 1000 * seconds,
        "all_reduced_bytes": volume,
        "weights_bytes": 4 * model.count_params(),
        "flops_per_device": flops / count,
        "collectives": names,
    }
    print(json.dumps(row))


def step_text(model, images):
    """The compiled text of a training step of JAX."""
    import jax

    names = ("trainable", "non_trainable", "optimizer", "metrics")
    state = model._get_jax_state(**{f"{name}_variables": True for name in names})
    distribution = keras.distribution.distribution()
    if distribution is not None:
        layout = distribution.get_data_layout(images.shape).backend_layout
        images = jax.device_put(images, layout)
    return jax.jit(model.train_step).lower(state, (images,)).compile().as_text()


def measure_devices():
    print(
        f"\nDiT, hidden {FLAGS.hidden_size}, depth {FLAGS.depth}, 32x32x4, global "
        f"batch {FLAGS.batch_size}:\n"
    )
    measuring.print_row(
        *("devices", "ms / step", "all-reduced, MB", "weights, MB"),
        *("GFLOP / device", "FLOP / byte", "collectives"),
    )
    measuring.print_row(*["---"] * 7)
    rows = []
    for count in FLAGS.device_counts:
        flag = f"--xla_force_host_platform_device_count={count}"
        names = ("hidden_size", "depth", "batch_size")
        done = subprocess.run(
            [
                *(sys.executable, __file__, "--child"),
                *(f"--{name}={getattr(FLAGS, name)}" for name in names),
            ],
            env=os.environ
            | {"XLA_FLAGS": flag, "JAX_PLATFORMS": "cpu", "KERAS_BACKEND": "jax"},
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        )
        row = json.loads(done.stdout.splitlines()[-1])
        rows.append(row)
        volume = row["all_reduced_bytes"]
        measuring.print_row(
            str(row["devices"]),
            f"{row['milliseconds_per_step']:.0f}",
            f"{volume / 1e6:.2f}",
            f"{row['weights_bytes'] / 1e6:.2f}",
            f"{row['flops_per_device'] / 1e9:.0f}",
            f"{row['flops_per_device'] / volume:.0f}" if volume else "",
            ", ".join(row["collectives"]),
        )
    return rows


# Bytes per second that one device can send to others, and move to and from its memory:
# NVIDIA's data sheets of DGX H100 (400 Gb/s of InfiniBand for each GPU) and H100 SXM,
# Google's pages on Cloud TPU (bandwidth between chips, and of their memory).
CHIPS = {
    "NVIDIA H100 80GB HBM3": (50e9, 3.35e12),
    "TPU v4": (300e9, 1.2e12),
    "TPU v5 lite": (200e9, 0.819e12),
    "TPU v5p": (600e9, 2.765e12),
}
FLOAT32, UPDATE_PASSES = 4, 9  # reads w, m, v, average, gradient; writes the first four


def measure_plan():
    """A step of data-parallel training on many chips, as if nothing overlapped."""
    image_shape = (32, 32, 4)
    backbone = keras_imm.backbones.DiT.from_preset(
        FLAGS.preset, image_shape, num_classes=1000
    )
    forward = keras_imm.flops.multiply_adds(backbone)
    weights = sum(int(np.prod(v.shape)) for v in backbone.trainable_variables)
    each = FLAGS.global_batch // FLAGS.chips
    flops = keras_imm.flops.training_step_flops(forward, each)
    volume = 2 * (FLAGS.chips - 1) / FLAGS.chips * FLOAT32 * weights
    moved = UPDATE_PASSES * FLOAT32 * weights
    print(
        f"\n{FLAGS.preset}, {weights / 1e6:.0f}M weights, batch {FLAGS.global_batch}, "
        f"{FLAGS.chips} chips, {each} samples on each: {flops / 1e12:.1f} TFLOP in "
        f"bfloat16 at {FLAGS.utilisation:.0%} of the peak; {volume / 1e9:.1f} GB sent "
        f"by each for the mean of float32 gradients (a ring); {moved / 1e9:.1f} GB "
        "moved by Adam and the averages.\n"
    )
    measuring.print_row(
        *("chip", "computing, ms", "gradients, ms", "update, ms"),
        "samples on each that compute as long as gradients take",
    )
    measuring.print_row(*["---"] * 5)
    rows = []
    for name, (link, memory) in CHIPS.items():
        peak = keras_imm.devices.peak_flops("bfloat16", name)
        computing = flops / (FLAGS.utilisation * peak)
        row = {
            "chip": name,
            "computing_ms": 1000 * computing,
            "gradients_ms": 1000 * volume / link,
            "update_ms": 1000 * moved / memory,
            "balanced_samples": each * volume / link / computing,
        }
        rows.append(row)
        measuring.print_row(name, *(f"{v:.0f}" for v in list(row.values())[1:]))
    return rows


def main(_):
    if FLAGS.child:
        measure_devices_of_this_process()
        return
    print(f"{keras.backend.backend()}, {os.cpu_count()} cores.")
    results = {}
    if "loss" in FLAGS.parts:
        results["loss"] = measure_loss()
    if "devices" in FLAGS.parts and keras.backend.backend() == "jax":
        results["devices"] = measure_devices()
    if "plan" in FLAGS.parts:
        results["plan"] = measure_plan()
    if FLAGS.out:
        pathlib.Path(FLAGS.out).write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    app.run(main)
