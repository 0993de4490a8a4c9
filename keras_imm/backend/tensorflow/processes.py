"""Devices under TensorFlow: those of one process."""

from typing import Any

import keras
import tensorflow as tf

SPLITS_WEIGHTS = False

_started = None


def start(processes: tuple, devices: list[str] | None) -> Any:
    """Makes a `MirroredStrategy`."""
    global _started
    if processes[0] is not None:
        raise ValueError(
            "Under TensorFlow one process has all devices. "
            f"Received: coordinator_address={processes[0]!r}"
        )
    _started = None
    if devices is not None:
        devices = [f"/device:{name.upper()}" for name in devices]
    else:
        gpus = tf.config.list_logical_devices("GPU")
        devices = [d.name for d in gpus or tf.config.list_logical_devices("CPU")]
    if len(devices) > 1:
        _started = tf.distribute.MirroredStrategy(devices)
    return _started


def num_devices() -> int:
    """Replicas of the strategy that was started."""
    return 1 if _started is None else _started.num_replicas_in_sync


def process_count() -> int:
    """One process has all devices."""
    return 1


def process_index() -> int:
    """The only process is the first."""
    return 0


def barrier() -> None:
    """One process waits for none."""


def drawing_devices(model: keras.Model) -> list[int]:
    """The devices of this process that draw their own share of its batch."""
    return list(range(model.distribute_strategy.num_replicas_in_sync))


def share_batch(x: Any) -> Any:
    """The batch, which one device takes."""
    return x
