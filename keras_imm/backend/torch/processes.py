"""Devices under PyTorch: one for each process."""

import atexit
import os
import time
import warnings
from typing import Any

import keras
import torch
import torch.distributed as dist

SPLITS_WEIGHTS = False


def start(processes: tuple, devices: list[str] | None) -> None:
    """Joins the other processes: torchrun's, or those of the arguments."""
    if devices is not None:
        raise ValueError(
            "Under PyTorch each process has one device: start them with torchrun. "
            f"Received: devices={devices!r}"
        )
    if dist.is_initialized():
        return
    address, world_size, rank = processes
    if address is None:
        if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
            _warn_of_idle_devices()
            return
        arguments = {"init_method": "env://"}
        local_rank = int(os.environ.get("LOCAL_RANK", os.environ["RANK"]))
    else:
        arguments = {
            "init_method": f"tcp://{address}",
            "world_size": world_size,
            "rank": rank,
        }
        local_rank = int(os.environ.get("LOCAL_RANK", rank))
    if torch.cuda.is_available():
        device = local_rank % torch.cuda.device_count()
        torch.cuda.set_device(device)
        arguments["device_id"] = torch.device("cuda", device)
        dist.init_process_group("nccl", **arguments)
    else:
        dist.init_process_group("gloo", **arguments)
    atexit.register(_leave)


def num_devices() -> int:
    """One for each process."""
    return process_count()


def process_count() -> int:
    """Processes that joined."""
    return dist.get_world_size() if dist.is_initialized() else 1


def process_index() -> int:
    """This process's rank."""
    return dist.get_rank() if dist.is_initialized() else 0


def barrier() -> None:
    """Waits for the other processes."""
    dist.barrier()


def drawing_devices(model: keras.Model) -> list[int]:
    """The devices of this process that draw their own share of its batch."""
    return [process_index()]


def share_batch(x: Any) -> Any:
    """The batch, which one device takes."""
    return x


def _warn_of_idle_devices() -> None:
    count = torch.cuda.device_count()
    if count > 1:
        warnings.warn(
            f"One of {count} GPUs is used. Start one process for each: "
            f"torchrun --nproc_per_node={count} ...",
            stacklevel=4,
        )


def _leave() -> None:
    # Threads of gloo may still hold Python's tensors: they let go while this one
    # sleeps, and would abort the process once Python is gone.
    time.sleep(0.1)
    if dist.is_initialized():
        dist.destroy_process_group()
