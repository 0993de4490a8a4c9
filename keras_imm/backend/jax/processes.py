"""Devices under JAX: all those of all hosts, in one mesh."""

from typing import Any

import jax
import keras


def start(processes: tuple, devices: list[str] | None) -> Any:
    """Joins the other hosts and makes `DataParallel` the current distribution."""
    if processes[0] is not None:
        keras.distribution.initialize(*processes)
    devices = devices or keras.distribution.list_devices()
    if len(devices) == 1:
        return None
    # Each host reads its own share of the data.
    strategy = keras.distribution.DataParallel(
        devices=devices, auto_shard_dataset=False
    )
    keras.distribution.set_distribution(strategy)
    return strategy


def num_devices() -> int:
    """Shards of a batch, also under a `ModelParallel` distribution."""
    distribution = keras.distribution.distribution()
    return 1 if distribution is None else distribution.num_model_replicas


def process_count() -> int:
    """Hosts that joined; asking does not start JAX."""
    return jax.process_count() if jax.distributed.is_initialized() else 1


def process_index() -> int:
    """This host's index."""
    return jax.process_index() if jax.distributed.is_initialized() else 0


def barrier() -> None:
    """Waits for the other hosts."""
    from jax.experimental import multihost_utils

    multihost_utils.sync_global_devices("keras_imm")


def drawing_devices(model: keras.Model) -> list[int]:
    """The devices of this process that draw their own share of its batch.

    There is one draw for all devices.
    """
    return [0]


def share_batch(x: Any) -> Any:
    """A batch laid out over the devices of the current distribution, if it divides."""
    distribution = keras.distribution.distribution()
    if distribution is None or process_count() > 1 or x.shape[0] % num_devices():
        return x
    layout = distribution.get_data_layout(tuple(x.shape))
    return keras.distribution.distribute_tensor(x, layout)
