"""Devices under JAX: all those of all hosts, in one mesh."""

from typing import Any

import jax
import keras

SPLITS_WEIGHTS = True


class ShardedDataParallel(keras.distribution.DataParallel):
    """Data parallelism in which each device holds a part of every variable.

    A variable is split along its largest axis that the number of devices divides. A
    step gathers the weights, adds up each device's part of the gradients, and updates
    that part.
    """

    def get_variable_layout(self, variable: Any) -> keras.distribution.TensorLayout:
        whole = super().get_variable_layout(variable)
        shape, count = tuple(variable.shape), self.device_mesh.devices.size
        axes = [i for i, size in enumerate(shape) if size and size % count == 0]
        if any(whole.axes) or not axes:
            return whole
        names = [None] * len(shape)
        names[max(axes, key=lambda axis: shape[axis])] = self.batch_dim_name
        return keras.distribution.TensorLayout(names, self.device_mesh)

    def whole(self, shape: tuple) -> Any:
        """JAX's sharding of a tensor that every device holds."""
        names = [None] * len(shape)
        return keras.distribution.TensorLayout(names, self.device_mesh).backend_layout


def start(
    processes: tuple, devices: list[str] | None, shard_weights: bool = False
) -> Any:
    """Joins the other hosts and makes `DataParallel` the current distribution."""
    if shard_weights and (processes[0] is not None or process_count() > 1):
        raise ValueError(
            "`shard_weights` must be False for several hosts, of which one writes "
            f"files. Received: shard_weights=True, {processes[1]} processes"
        )
    if processes[0] is not None:
        keras.distribution.initialize(*processes)
    devices = devices or keras.distribution.list_devices()
    if len(devices) == 1:
        return None
    # Each host reads its own share of the data.
    kind = ShardedDataParallel if shard_weights else keras.distribution.DataParallel
    strategy = kind(devices=devices, auto_shard_dataset=False)
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
