"""Several devices for one training run, with the means of each backend."""

from keras_imm.distribution.strategy import (
    Strategy,
    alone,
    barrier,
    initialize,
    is_chief,
    num_devices,
    process_count,
    process_index,
)

__all__ = [
    "Strategy",
    "alone",
    "barrier",
    "initialize",
    "is_chief",
    "num_devices",
    "process_count",
    "process_index",
]
