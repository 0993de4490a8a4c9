"""How TensorFlow multiplies float32."""

import contextlib
from collections.abc import Iterator

import tensorflow as tf

from keras_imm.backend.shared_setting import SharedSetting

_enable = tf.config.experimental.enable_tensor_float_32_execution


@contextlib.contextmanager
def _without_tf32() -> Iterator[None]:
    before = multiplies_in_tf32()
    _enable(False)
    try:
        yield
    finally:
        _enable(before)


full_precision = SharedSetting(_without_tf32)
"""Inside, float32 products and convolutions are computed in full float32.

Kernels ask when they run, XLA when it compiles: a graph must be run inside, not only
traced. The setting is one of the process.
"""


def multiplies_in_tf32() -> bool:
    """Whether factors of float32 products are rounded to TensorFloat-32."""
    return tf.config.experimental.tensor_float_32_execution_enabled()
