"""How the frameworks differ: one folder each, with the same names in it.

- `TrainableModel`: the `keras.Model` whose hooks call a train step;
- `CheckedData`: data sets whose batches are checked before a step has them;
- `TrainStep`: the step, and the evaluation, of a `BatchLoss` that it is handed;
- `compile_function`, `compiles_loops`, `as_argument`: compiled functions of tensors;
- `jvp`: derivatives in a direction, forwards;
- `optimization_barrier`, `dot_product_attention`: what compilers do not see alone;
- `attention_times`: between which kernels of attention was chosen, and how;
- `known_value`: what a tensor holds, unless it is only being traced;
- `draw_normal`: noise from a random stream;
- `traceable_draws`: inside, draws that a graph can hold and no host waits for;
- `initial_values_together`: variables are given their values by few programs;
- `processes`: the devices and processes of a run;
- `device_kind`, `device_memory`: what the first device is;
- `full_precision`, `multiplies_in_tf32`: whether float32 products are rounded.

`random_streams` and `keras_private` are the same under all of them.
"""

import importlib

import keras

from keras_imm.backend import keras_private, random_streams

_NAMES = ("jax", "tensorflow", "torch")


def name() -> str:
    """The name of the Keras backend: "jax", "tensorflow" or "torch"."""
    return keras.backend.backend()


if name() not in _NAMES:
    raise ImportError(
        'keras_imm runs under the Keras backends "jax", "tensorflow" and "torch". '
        f"Received: backend={name()!r}"
    )
_current = importlib.import_module(f"{__name__}.{name()}")

CheckedData = _current.CheckedData
TrainableModel = _current.TrainableModel
TrainStep = _current.TrainStep
attention_times = _current.attention_times
as_argument = _current.as_argument
compile_function = _current.compile_function
compiles_loops = _current.compiles_loops
device_kind = _current.device_kind
device_memory = _current.device_memory
draw_normal = _current.draw_normal
dot_product_attention = _current.dot_product_attention
full_precision = _current.full_precision
initial_values_together = _current.initial_values_together
jvp = _current.jvp
known_value = _current.known_value
multiplies_in_tf32 = _current.multiplies_in_tf32
optimization_barrier = _current.optimization_barrier
processes = _current.processes
traceable_draws = _current.traceable_draws

__all__ = [
    "CheckedData",
    "TrainStep",
    "TrainableModel",
    "as_argument",
    "attention_times",
    "compile_function",
    "compiles_loops",
    "device_kind",
    "device_memory",
    "dot_product_attention",
    "draw_normal",
    "full_precision",
    "initial_values_together",
    "jvp",
    "keras_private",
    "known_value",
    "multiplies_in_tf32",
    "name",
    "optimization_barrier",
    "processes",
    "random_streams",
    "traceable_draws",
]
