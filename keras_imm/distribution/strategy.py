"""Starting the devices, and which of the processes this one is."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import keras

from keras_imm.backend import processes as backend_processes
from keras_imm.validation import check_boolean, check_integer


class Strategy:
    """The devices that `initialize` started.

    Attributes:
        native: What the backend calls them: a `keras.distribution.DataParallel`, a
            `tf.distribute.MirroredStrategy`, or None under PyTorch and for one device.
    """

    def __init__(self, native: Any = None):
        self.native = native

    @property
    def num_devices(self) -> int:
        """Devices that share one batch, in all processes."""
        return num_devices()

    def scope(self) -> contextlib.AbstractContextManager:
        """Where a model, its optimizer and what is loaded into it are made."""
        return contextlib.nullcontext() if self.native is None else self.native.scope()


def initialize(
    coordinator_address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    devices: Sequence[str] | None = None,
    shard_weights: bool = False,
) -> Strategy:
    """Starts all devices for one training run. Call it before anything is computed.

    - JAX: all devices of all processes, with `keras.distribution.DataParallel`. One
      process per host; the three arguments say which. `fit` is given batches for all
      devices of the process.
    - TensorFlow: the devices of this process, with `tf.distribute.MirroredStrategy`.
      `fit` is given batches for all of them.
    - PyTorch: one device per process; `torch.distributed` averages the gradients of
      the graph that each runs. Start the processes with `torchrun`, whose environment
      variables stand for the three arguments. `fit` is given batches
      for this process's device, of other data than those of the other processes and
      as many: `keras_imm.datasets.load` takes `process_index` and `process_count`.

    A batch of any device must be a multiple of the model's `group_size` times its
    `accumulation_steps`. Where there is one device, nothing changes.

    Args:
        coordinator_address: "host:port" of process 0, the same in every process; with
            it come `num_processes` and `process_id`. Default: one process, or what
            torchrun says.
        num_processes: Number of processes, at least 1.
        process_id: Which of them this is, from 0.
        devices: Names such as "gpu:0" of the devices to use, as
            `keras.distribution.list_devices` gives them. Default: all GPUs or TPUs,
            or else all CPU devices. Not under PyTorch.
        shard_weights: Whether each device holds a part of every weight, moment and
            average, and updates that part, instead of the whole (ZeRO, FSDP): for
            networks whose state is large beside a device's memory. JAX only, on one
            host.

    Returns:
        `Strategy`, in whose `scope()` the model is made.

    Raises:
        ValueError: If the arguments do not fit each other or the backend.

    Example:

    ```python
    strategy = keras_imm.distribution.initialize()
    with strategy.scope():
        model = keras_imm.recipes.build("imagenet256_dit_xl_2_stride")
    model.fit(dataset)
    ```
    """
    _check_processes(coordinator_address, num_processes, process_id)
    check_boolean("shard_weights", shard_weights)
    if shard_weights and not backend_processes.SPLITS_WEIGHTS:
        raise ValueError(
            "`shard_weights` must be False under this backend; JAX splits weights over "
            "devices. Received: shard_weights=True"
        )
    if devices is not None:
        if isinstance(devices, str) or not devices:
            raise ValueError(
                "`devices` must be a non-empty sequence of names such as 'gpu:0'. "
                f"Received: devices={devices!r}"
            )
        devices = [str(device) for device in devices]
    processes = (coordinator_address, num_processes, process_id)
    options = {"shard_weights": True} if shard_weights else {}
    return Strategy(backend_processes.start(processes, devices, **options))


def num_devices() -> int:
    """Number of devices that share one batch, in all processes.

    Returns:
        Positive integer: 1 before `initialize`.
    """
    return backend_processes.num_devices()


def process_count() -> int:
    """Number of processes of this run, each of which reads data of its own.

    Returns:
        Positive integer: 1 before `initialize`.
    """
    return backend_processes.process_count()


def process_index() -> int:
    """Which of the processes this one is.

    Returns:
        Integer in [0, process_count()).
    """
    return backend_processes.process_index()


def is_chief() -> bool:
    """Whether this process is the one that writes files and prints."""
    return process_index() == 0


def barrier() -> None:
    """Waits until every process of the run is here."""
    if process_count() > 1:
        backend_processes.barrier()


def alone() -> contextlib.AbstractContextManager:
    """Where one process does what the others do not, such as saving a model.

    JAX would wait for the other processes whenever a variable is made. `fit`,
    `evaluate` and `generate` are for all processes together.

    Example:

    ```python
    if keras_imm.distribution.is_chief():
        with keras_imm.distribution.alone():
            model.save("model.keras")
    keras_imm.distribution.barrier()
    ```
    """
    distribution = keras.distribution.distribution()
    if distribution is None or process_count() == 1:
        return contextlib.nullcontext()
    return _without_distribution(distribution)


@contextlib.contextmanager
def _without_distribution(
    distribution: keras.distribution.DataParallel,
) -> Iterator[None]:
    keras.distribution.set_distribution(None)
    try:
        yield
    finally:
        keras.distribution.set_distribution(distribution)


def _check_processes(
    coordinator_address: Any, num_processes: Any, process_id: Any
) -> None:
    given = (coordinator_address, num_processes, process_id)
    if given == (None, None, None):
        return
    received = (
        f"Received: coordinator_address={coordinator_address!r}, "
        f"num_processes={num_processes!r}, process_id={process_id!r}"
    )
    if None in given:
        raise ValueError(
            "`coordinator_address`, `num_processes` and `process_id` come together. "
            f"{received}"
        )
    host, _, port = str(coordinator_address).rpartition(":")
    if not host or not port.isdecimal():
        raise ValueError(f"`coordinator_address` must be 'host:port'. {received}")
    check_integer("num_processes", num_processes, at_least=1)
    check_integer("process_id", process_id, at_least=0)
    if process_id >= num_processes:
        raise ValueError(f"`process_id` must be below `num_processes`. {received}")
