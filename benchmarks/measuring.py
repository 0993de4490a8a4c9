"""What the benchmarks of speed share: the models, how time is taken, and given."""

import os
import platform
import resource
import shlex
import sys
import time

import hand_written
import keras
import numpy as np
from absl import flags
from hand_written.settings import Settings, weights_of

import keras_imm

FLAGS = flags.FLAGS
LOOPS = {
    "eager": {},
    "torch.compile": {"compiled": True},
    "jit": {},
    "tf.function": {},
    "tf.function XLA": {"jit_compile": True},
}
DIGITS = {"patch_size": 2, "hidden_size": 64, "depth": 3, "num_heads": 4}


class Data(keras.utils.PyDataset):
    """A list of batches, the same in every epoch."""

    def __init__(self, batches):
        super().__init__()
        self.batches = batches

    def __len__(self):
        return len(self.batches)

    def __getitem__(self, index):
        return self.batches[index]


def define_model_flags(batch_size=True):
    flags.DEFINE_enum(
        "model",
        "digits",
        ["digits", "dit_s_2", "dit_b_2", "dit_l_2", "dit_xl_2"],
        "The network of examples/digits.py, or a DiT on latents of 32x32x4.",
    )
    if batch_size:
        flags.DEFINE_integer("batch_size", 128, "Samples of a batch.", lower_bound=4)
    flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "What multiplies.")


def model_flags():
    """The flags above as another process takes them."""
    names = ("model", "batch_size", "dtype")
    return [f"--{name}={getattr(FLAGS, name)}" for name in names]


def image_shape():
    return (8, 8, 1) if FLAGS.model == "digits" else (32, 32, 4)


def num_classes():
    return 10 if FLAGS.model == "digits" else 1000


def build():
    """The model of the flags, with weights that are nowhere zero."""
    policy = "mixed_bfloat16" if FLAGS.dtype == "bfloat16" else "float32"
    options = {
        "image_shape": image_shape(),
        "num_classes": num_classes(),
        "dtype": policy,
    }
    keras.utils.set_random_seed(0)
    if FLAGS.model == "digits":
        backbone = keras_imm.backbones.DiT(**options, **DIGITS)
    else:
        backbone = keras_imm.backbones.DiT.from_preset(FLAGS.model, **options)
    mapping = keras_imm.time_mappings.EtaDecrement(k=12, min_gap=0.005)
    model = keras_imm.IMM(backbone, time_mapping=mapping)
    rng = np.random.default_rng(0)
    for v in backbone.trainable_variables:
        scale = 0.3 / np.sqrt(v.shape[0])
        v.assign(scale * rng.standard_normal(v.shape).astype("float32"))
    return model


def hand_written_loop(name, model, learning_rate=1e-3, ema_momentum=0.995):
    """The hand-written loop of that name with the weights of a model."""
    settings = Settings.of(model, learning_rate, ema_momentum)
    options = dict(LOOPS[name])
    if keras.backend.backend() == "torch":
        options["device"] = torch_device()
    module = hand_written.get(keras.backend.backend())
    return module.Loop(settings, weights_of(model), **options)


def finish(*results):
    """Waits until the device has computed, and copies nothing from it.

    A call returns before its results are computed: under JAX always, under PyTorch and
    TensorFlow on an accelerator.
    """
    for result in keras.tree.flatten(results):
        if hasattr(result, "block_until_ready"):  # JAX
            result.block_until_ready()
    backend = keras.backend.backend()
    if backend == "torch":
        import torch

        if torch.cuda.is_available():
            torch.cuda.synchronize()
    elif backend == "tensorflow":
        import tensorflow as tf

        if tf.config.list_physical_devices("GPU"):
            tf.test.experimental.sync_devices()


def read(*results):
    """Waits, and copies results from the device.

    What the device failed in, such as memory that it lacks, is raised where its result
    is read, and not before; Keras's `fit` passes over it where nobody reads the loss.

    Args:
        results: Tensors, arrays and numbers, in lists or dictionaries too.

    Returns:
        List of NumPy arrays.
    """
    finish(*results)
    return [
        np.asarray(keras.ops.convert_to_numpy(one))
        for one in keras.tree.flatten(results)
    ]


def check_finite(arrays):
    for array in arrays:
        if not np.isfinite(array).all():
            raise FloatingPointError(f"What was computed is not finite: {array}")


def wait(*results):
    """Waits, and reads the results.

    Args:
        results: Tensors, arrays and numbers, in lists or dictionaries too.

    Returns:
        List of NumPy arrays.

    Raises:
        FloatingPointError: If a number is not finite.
    """
    arrays = read(*results)
    check_finite(arrays)
    return arrays


def seconds(call, *arguments):
    """Seconds of a call, until the device is done and what it returned is read."""
    start = time.perf_counter()
    arrays = read(call(*arguments))
    taken = time.perf_counter() - start
    check_finite(arrays)
    return taken


class EpochTimes(keras.callbacks.Callback):
    """Seconds of every epoch of `fit`, until the device is done and the loss is read.

    Args:
        clock: What tells the seconds, such as `time.process_time`, which other programs
            disturb less. Default: `time.perf_counter`.

    Attributes:
        seconds: One number for each epoch.
    """

    def __init__(self, clock=None):
        super().__init__()
        self.clock = clock or (lambda: time.perf_counter())

    def on_train_begin(self, logs=None):
        self.seconds = []

    def on_epoch_begin(self, epoch, logs=None):
        self.start = self.clock()

    def on_epoch_end(self, epoch, logs=None):
        arrays = read(logs)
        self.seconds.append(self.clock() - self.start)
        check_finite(arrays)


def milliseconds(seconds):
    """Median and spread of a list of times, in ms."""
    low, median, high = 1000 * np.quantile(seconds, (0.1, 0.5, 0.9))
    return {"median_ms": float(median), "low_ms": float(low), "high_ms": float(high)}


def utilisation(seconds_per_step, backbone=None):
    """Model FLOPs utilisation of a training step, None where the peak is unknown.

    Raises:
        RuntimeError: If it is above 1: the time is then not that of the work.
    """
    peak = keras_imm.devices.peak_flops(FLAGS.dtype)
    if peak is None:
        return None
    forward = keras_imm.flops.multiply_adds(backbone or build().backbone)
    flops = keras_imm.flops.training_step_flops(forward, FLAGS.batch_size)
    share = float(flops / seconds_per_step / peak)
    if share > 1:
        raise RuntimeError(
            f"{1000 * seconds_per_step:.2f} ms a step would be {share:.0%} of the peak "
            "of this device: the time was taken before the device was done"
        )
    return share


def torch_device():
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def peak_mib():
    """Peak memory so far: the device's on a GPU, this process's elsewhere."""
    backend = keras.backend.backend()
    if backend == "torch":
        import torch

        if torch.cuda.is_available():
            return torch.cuda.max_memory_allocated() / 2**20
    if backend == "jax":
        import jax

        statistics = jax.local_devices()[0].memory_stats()
        if statistics and "peak_bytes_in_use" in statistics:
            return statistics["peak_bytes_in_use"] / 2**20
    if backend == "tensorflow":
        import tensorflow as tf

        if tf.config.list_physical_devices("GPU"):
            return tf.config.experimental.get_memory_info("GPU:0")["peak"] / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def environment():
    """What ran, where, as it goes into a JSON file."""
    backend = keras.backend.backend()
    return {
        "backend": backend,
        "device": keras_imm.devices.device_kind(),
        "cores": os.cpu_count(),
        "versions": {
            "python": platform.python_version(),
            "keras": keras.__version__,
            backend: sys.modules[backend].__version__,
        },
        "model": FLAGS.model,
        "batch_size": FLAGS.batch_size,
        "dtype": FLAGS.dtype,
        "command": shlex.join(["python", *sys.argv]),
    }


def setting():
    """The same in one line."""
    e = environment()
    version = e["versions"][e["backend"]]
    return (
        f"{e['backend']} {version} on {e['device']}, {e['cores']} cores; {e['model']}, "
        f"batch {e['batch_size']}, {e['dtype']}."
    )


def print_row(*cells):
    """One row of a table in Markdown."""
    print("| " + " | ".join(cells) + " |", flush=True)


def number(value, form):
    """A number in a cell; nothing for None."""
    return "" if value is None else format(value, form)
