"""Several processes under PyTorch."""

import contextlib
from typing import Any

import torch
import torch.distributed as dist

from keras_imm.backend.torch.processes import process_count

# Bytes of tensors that are sent together.
_BUFFER_BYTES = 2**28


class GradientMeans:
    """Means of gradients over the processes, the same in all of them.

    What is sent must not depend on which gradients a process happens to have: before
    every step they tell each other.

    Args:
        weights: Tensors whose gradients they are.
    """

    def __init__(self, weights: list):
        self._weights = weights
        self._aside = _own_stream(weights[0].device)

    def is_for(self, weights: list) -> bool:
        """Whether these are the weights whose gradients it takes."""
        return same_objects(self._weights, weights)

    def __call__(self, gradients: list) -> list:
        """The means.

        Args:
            gradients: One for each weight, None where this process has none.

        Returns:
            As `gradients`, None where no process has one. Where some have, those of the
            others are zeros.
        """
        known = self._known_anywhere(gradients)
        sent = [
            torch.zeros_like(w.detach()) if g is None else g
            for w, g, sends in zip(self._weights, gradients, known, strict=True)
            if sends
        ]
        means = iter(means_over_processes(sent))
        return [next(means) if sends else None for sends in known]

    def _known_anywhere(self, gradients: list) -> list[bool]:
        """Which weights have a gradient in any process.

        On a GPU it is asked beside the backward pass, which nobody waits for: the host
        knows before it which gradients there will be.
        """
        flags = [float(g is not None) for g in gradients]
        with self._aside:
            flags = torch.tensor(flags, device=self._weights[0].device)
            dist.all_reduce(flags)
            return (flags > 0).tolist()


def _own_stream(device: Any) -> contextlib.AbstractContextManager:
    """Inside, what is started on a GPU waits for nothing that was started outside."""
    if device.type != "cuda":
        return contextlib.nullcontext()
    return torch.cuda.stream(torch.cuda.Stream(device))


def same_objects(ones: list, others: list) -> bool:
    """Whether two lists are of the same objects."""
    return len(ones) == len(others) and all(
        a is b for a, b in zip(ones, others, strict=True)
    )


def means_over_processes(values: list) -> list:
    """Means of tensors over the processes, sent in a few flat buffers.

    Args:
        values: Tensors, of the same shapes and dtypes in all processes.

    Returns:
        List of tensors.
    """
    if process_count() == 1:
        return values
    means = [None] * len(values)
    pending = []
    for places in _buffers(values):
        flat = torch.cat([values[i].detach().reshape(-1) for i in places])
        pending.append((places, flat, dist.all_reduce(flat, async_op=True)))
    for places, flat, work in pending:
        work.wait()
        flat /= process_count()
        parts = flat.split([values[i].numel() for i in places])
        for i, part in zip(places, parts, strict=True):
            means[i] = part.view(values[i].shape)
    return means


def _buffers(values: list) -> list[list[int]]:
    """Places of the tensors that are sent together: of one dtype, up to a size."""
    buffers, open_buffers, sizes = [], {}, {}
    for i, value in enumerate(values):
        size = value.numel() * value.element_size()
        if value.dtype not in sizes or sizes[value.dtype] + size > _BUFFER_BYTES:
            sizes[value.dtype] = 0
            open_buffers[value.dtype] = []
            buffers.append(open_buffers[value.dtype])
        open_buffers[value.dtype].append(i)
        sizes[value.dtype] += size
    return buffers


def check_lengths(data: Any) -> None:
    """Raises ValueError where processes would wait for each other's batches."""
    if process_count() == 1:
        return
    lengths = [None] * process_count()
    dist.all_gather_object(lengths, len(data) if hasattr(data, "__len__") else None)
    if len(set(lengths)) > 1:
        raise ValueError(
            "Every process must be given as much data as the others. "
            f"Received: data of lengths {lengths}"
        )
