"""What is particular to TensorFlow."""

from contextlib import nullcontext as initial_values_together
from contextlib import nullcontext as traceable_draws

from keras_imm.backend.attention import attention_times
from keras_imm.backend.attention import plain_attention as dot_product_attention
from keras_imm.backend.random_streams import draw_normal
from keras_imm.backend.tensorflow import processes
from keras_imm.backend.tensorflow.compilation import (
    as_argument,
    compile_function,
    compiles_loops,
    known_value,
    optimization_barrier,
)
from keras_imm.backend.tensorflow.data import CheckedData
from keras_imm.backend.tensorflow.derivatives import jvp
from keras_imm.backend.tensorflow.devices import device_kind, device_memory
from keras_imm.backend.tensorflow.model import TrainableModel
from keras_imm.backend.tensorflow.precision import full_precision, multiplies_in_tf32
from keras_imm.backend.tensorflow.train_step import TrainStep

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
