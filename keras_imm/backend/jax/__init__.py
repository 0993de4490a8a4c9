"""What is particular to JAX."""

from contextlib import nullcontext as traceable_draws

from keras_imm.backend.attention import attention_times
from keras_imm.backend.checked_data import CheckedData
from keras_imm.backend.jax import processes
from keras_imm.backend.jax.attention import dot_product_attention
from keras_imm.backend.jax.compilation import (
    as_argument,
    compile_function,
    compiles_loops,
    jvp,
    known_value,
    optimization_barrier,
)
from keras_imm.backend.jax.devices import device_kind, device_memory
from keras_imm.backend.jax.initial_values import initial_values_together
from keras_imm.backend.jax.model import TrainableModel
from keras_imm.backend.jax.precision import full_precision, multiplies_in_tf32
from keras_imm.backend.jax.train_step import TrainStep
from keras_imm.backend.random_streams import draw_normal

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
