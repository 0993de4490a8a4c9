"""What the benchmarks of speed share: the models, and how a time is given."""

import os
import platform
import resource
import shlex
import sys

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


def milliseconds(seconds):
    """Median and spread of a list of times, in ms."""
    low, median, high = 1000 * np.quantile(seconds, (0.1, 0.5, 0.9))
    return {"median_ms": float(median), "low_ms": float(low), "high_ms": float(high)}


def utilisation(seconds_per_step):
    """Model FLOPs utilisation of a training step, None where the peak is unknown."""
    peak = keras_imm.devices.peak_flops(FLAGS.dtype)
    if peak is None:
        return None
    forward = keras_imm.flops.multiply_adds(build().backbone)
    flops = keras_imm.flops.training_step_flops(forward, FLAGS.batch_size)
    return float(flops / seconds_per_step / peak)


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
