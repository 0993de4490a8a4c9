"""What is particular to PyTorch."""

from contextlib import nullcontext as initial_values_together

from keras_imm.backend.checked_data import CheckedData
from keras_imm.backend.torch import processes
from keras_imm.backend.torch.attention import attention_times, dot_product_attention
from keras_imm.backend.torch.derivatives import jvp
from keras_imm.backend.torch.devices import device_kind, device_memory
from keras_imm.backend.torch.graphs import (
    as_argument,
    compile_function,
    compiles_loops,
    known_value,
    optimization_barrier,
)
from keras_imm.backend.torch.model import TrainableModel
from keras_imm.backend.torch.precision import full_precision, multiplies_in_tf32
from keras_imm.backend.torch.random_draws import draw_normal, traceable_draws
from keras_imm.backend.torch.train_step import TrainStep

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
    "known_value",
    "multiplies_in_tf32",
    "optimization_barrier",
    "processes",
    "traceable_draws",
]
