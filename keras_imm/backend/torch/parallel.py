"""Several processes under PyTorch."""

import contextlib
from typing import Any

import torch
import torch.distributed as dist

from keras_imm.backend.torch.processes import process_count


class ParallelLoss:
    """A loss in `DistributedDataParallel`, for the gradients of `weights`.

    Args:
        batch_loss: The `BatchLoss`.
        weights: Tensors.
        scale_loss: The optimizer's scaling of the loss.
    """

    def __init__(self, batch_loss: Any, weights: list, scale_loss: Any):
        self._batch_loss = batch_loss
        self._weights = weights
        self._scale_loss = scale_loss
        self._module = None

    def is_for(self, weights: list) -> bool:
        """Whether these are the weights whose gradients it takes."""
        return same_objects(self._weights, weights)

    def backward(self, batch: Any, target: Any, iterations: Any, is_last: bool) -> Any:
        """Adds to the weights' gradients, and to all processes' with the last part."""
        if self._module is None:
            self._module = torch.nn.parallel.DistributedDataParallel(
                _LossModule(
                    self._batch_loss,
                    self._used(batch, target, iterations),
                    self._scale_loss,
                ),
                gradient_as_bucket_view=True,
            )
        alone = contextlib.nullcontext if is_last else self._module.no_sync
        with alone():
            scaled, losses = self._module(batch, target, iterations)
            scaled.backward()
        return losses

    def take_gradients(self) -> list:
        """Gradients of the weights, None for those that nothing depends on."""
        gradients = [weight.grad for weight in self._weights]
        for weight in self._weights:
            weight.grad = None
        return gradients

    def _used(self, batch: Any, target: Any, iterations: Any) -> list:
        """The weights that the loss depends on: the others would be waited for."""
        states = self._batch_loss.random_states()
        before = [state.value * 1 for state in states]
        loss, _ = self._batch_loss.loss(batch, target, iterations)
        gradients = torch.autograd.grad(loss, self._weights, allow_unused=True)
        for state, value in zip(states, before, strict=True):
            state.assign(value)
        pairs = zip(self._weights, gradients, strict=True)
        return [weight for weight, gradient in pairs if gradient is not None]


class _LossModule(torch.nn.Module):
    """The loss, scaled and not, as a module of its trainable weights."""

    def __init__(self, batch_loss: Any, weights: list, scale_loss: Any):
        super().__init__()
        self.weights = torch.nn.ParameterList(weights)
        self._held = (batch_loss, scale_loss)  # no submodules: other weights stay out

    def forward(self, batch: Any, target: Any, iterations: Any) -> tuple[Any, Any]:
        batch_loss, scale_loss = self._held
        loss, others = batch_loss.loss(batch, target, iterations)
        others = {name: value.detach() for name, value in others.items()}
        return scale_loss(loss), (loss.detach(), others)


def same_objects(ones: list, others: list) -> bool:
    """Whether two lists are of the same objects."""
    return len(ones) == len(others) and all(
        a is b for a, b in zip(ones, others, strict=True)
    )


def mean_of_processes(value: Any) -> Any:
    """The mean of a scalar over the processes."""
    if process_count() == 1:
        return value
    total = value.detach().clone()
    dist.all_reduce(total)
    return total / process_count()


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
