"""The train step under PyTorch."""

import contextlib
from collections.abc import Iterator
from typing import Any

import keras
import torch
import torch.distributed as dist

from keras_imm.seeds import random_states, streams_of_device


class Trainer:
    """Eager steps, alone or in one of several processes."""

    def train_step(self, data: Any) -> dict:
        parallel = None if _processes() == 1 else self._joined(data)
        with self._own_streams():
            with torch.no_grad():
                particles = self.draw_particles(data, training=True)
            if parallel is None:
                loss, gradients = self._gradients(particles)
            else:
                loss, gradients = self._gradients_of_processes(particles, parallel)
        with torch.no_grad():
            steps = self.accumulation_steps
            if steps > 1:
                gradients = [g if g is None else g / steps for g in gradients]
            self.optimizer.apply(gradients, self.trainable_variables)
            return self.update_logs(_mean_of_processes(loss / steps))

    def _gradients(self, particles: Any) -> tuple[Any, list]:
        """Sums over the micro-batches, by `autograd.grad`: none stored on weights."""
        weights = [v.value for v in self.trainable_variables]
        loss_sum, gradient_sum = 0.0, [None] * len(weights)
        for part, y_target, _ in self._parts(particles):
            loss = self.compute_objective(part, y_target, training=True)
            gradients = torch.autograd.grad(
                self.optimizer.scale_loss(loss), weights, allow_unused=True
            )
            loss_sum = loss_sum + loss.detach()
            with torch.no_grad():
                gradient_sum = [
                    b if a is None else a if b is None else a + b
                    for a, b in zip(gradient_sum, gradients, strict=True)
                ]
        return loss_sum, gradient_sum

    def _gradients_of_processes(
        self, particles: Any, parallel: "_ParallelObjective"
    ) -> tuple[Any, list]:
        """Sums over the micro-batches of the means over the processes."""
        loss_sum = 0.0
        for part, y_target, is_last in self._parts(particles):
            loss_sum = loss_sum + parallel.backward(part, y_target, is_last)
        return loss_sum, parallel.take_gradients()

    def _joined(self, data: Any) -> "_ParallelObjective":
        """The loss of all processes, which go on from the state of the first."""
        if not self.built:
            x, _, _ = keras.utils.unpack_x_y_sample_weight(data)
            self.build(tuple(x.shape))
        weights = [v.value for v in self.trainable_variables]
        if self._parallel is None or not self._parallel.is_of(weights):
            rest = self.non_trainable_variables + self.optimizer.variables
            with torch.no_grad():
                for value in weights + [v.value for v in rest]:
                    dist.broadcast(value.data, src=0)
            self._parallel = _ParallelObjective(self, weights)
        return self._parallel

    def _parts(self, particles: Any) -> Iterator[tuple]:
        """Micro-batch, its target, and whether it is the last."""
        steps = self.accumulation_steps
        for index in range(steps):
            part = self.micro_batch(particles, index) if steps > 1 else particles
            with torch.no_grad():
                y_target = self.compute_target(part, training=True)
            yield part, y_target, index == steps - 1

    def test_step(self, data: Any) -> dict:
        with self._own_streams():
            loss = self.evaluate_objective(data)
        return self.update_logs(_mean_of_processes(loss))

    def fit(self, x: Any = None, *args: Any, **kwargs: Any) -> Any:
        _check_lengths(x)
        self._parallel = None  # the first step makes the processes equal again
        return super().fit(x, *args, **kwargs)

    def evaluate(self, x: Any = None, *args: Any, **kwargs: Any) -> Any:
        _check_lengths(x)
        return super().evaluate(x, *args, **kwargs)

    _parallel = None

    def devices_per_batch(self) -> int:
        """Devices that share the batch of a step: each process sees its own."""
        return 1

    def _own_streams(self) -> contextlib.AbstractContextManager:
        """Noise and masks of this process alone."""
        if _processes() == 1:
            return contextlib.nullcontext()
        return streams_of_device(self, dist.get_rank())


class _ParallelObjective:
    """The loss of a model in `DistributedDataParallel`, for `weights`."""

    def __init__(self, model: Any, weights: list):
        self._model = model
        self._weights = weights
        self._objective = None

    def is_of(self, weights: list) -> bool:
        """Whether these are the weights whose gradients it takes."""
        same = len(weights) == len(self._weights)
        return same and all(a is b for a, b in zip(weights, self._weights, strict=True))

    def backward(self, particles: Any, y_target: Any, is_last: bool) -> Any:
        """Adds to the weights' gradients, and to all processes' with the last part."""
        if self._objective is None:
            self._objective = torch.nn.parallel.DistributedDataParallel(
                _Objective(self._model, self._used(particles, y_target)),
                gradient_as_bucket_view=True,
            )
        alone = contextlib.nullcontext if is_last else self._objective.no_sync
        with alone():
            scaled, loss = self._objective(particles, y_target)
            scaled.backward()
        return loss

    def take_gradients(self) -> list:
        """Gradients of the weights, None for those that nothing depends on."""
        gradients = [weight.grad for weight in self._weights]
        for weight in self._weights:
            weight.grad = None
        return gradients

    def _used(self, particles: Any, y_target: Any) -> list:
        """The weights that the loss depends on: the others would be waited for."""
        states = random_states(self._model)
        before = [state.value * 1 for state in states]
        loss = self._model.compute_objective(particles, y_target, training=True)
        gradients = torch.autograd.grad(loss, self._weights, allow_unused=True)
        for state, value in zip(states, before, strict=True):
            state.assign(value)
        pairs = zip(self._weights, gradients, strict=True)
        return [weight for weight, gradient in pairs if gradient is not None]


class _Objective(torch.nn.Module):
    """A model's loss, scaled and not, as a module of its trainable weights."""

    def __init__(self, model: Any, weights: list):
        super().__init__()
        self.weights = torch.nn.ParameterList(weights)
        self._model = (model,)  # not a submodule: its other weights stay out

    def forward(self, particles: Any, y_target: Any) -> tuple[Any, Any]:
        (model,) = self._model
        loss = model.compute_objective(particles, y_target, training=True)
        return model.optimizer.scale_loss(loss), loss.detach()


def _processes() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def _mean_of_processes(loss: Any) -> Any:
    if _processes() == 1:
        return loss
    total = loss.detach().clone()
    dist.all_reduce(total)
    return total / _processes()


def _check_lengths(data: Any) -> None:
    """Raises ValueError where processes would wait for each other's batches."""
    if _processes() == 1:
        return
    lengths = [None] * _processes()
    dist.all_gather_object(lengths, len(data) if hasattr(data, "__len__") else None)
    if len(set(lengths)) > 1:
        raise ValueError(
            "Every process must be given as much data as the others. "
            f"Received: data of lengths {lengths}"
        )
