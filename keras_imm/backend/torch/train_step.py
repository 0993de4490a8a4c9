"""The train step under PyTorch."""

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any

import keras
import torch
import torch.distributed as dist
from keras import ops
from torch.utils import _pytree as pytree

from keras_imm.backend import keras_private
from keras_imm.backend.random_streams import streams_of_device
from keras_imm.backend.torch.graphs import TracedFunction
from keras_imm.backend.torch.optimizer_passes import forget_steps, fused_updates
from keras_imm.backend.torch.parallel import (
    GradientMeans,
    means_over_processes,
    same_objects,
)
from keras_imm.backend.torch.processes import process_count
from keras_imm.backend.torch.random_draws import traceable_draws


class TrainStep:
    """Steps alone or in one of several processes.

    The loss of a micro-batch and its gradients are a pure function of weights and
    particles: it is traced once for each shape of a batch and runs from then on as a
    graph of ATen operations, compiled if `jit_compile`. Eager steps call the layers:
    with `run_eagerly=True`, and those of models that a graph cannot hold. Several
    processes run the same graph and average its gradients.

    Args:
        batch_loss: The `keras_imm.objectives.BatchLoss` to differentiate.
        optimizer: Keras optimizer.
        log: `LossLog` of the losses.
    """

    def __init__(self, batch_loss: Any, optimizer: Any = None, log: Any = None):
        self._batch_loss = batch_loss
        self._optimizer = optimizer
        self._log = log
        self._graph: _TracedLoss | None = None
        self._draw: _TracedDraw | None = None
        self._said: set[str] = set()
        self._gradient_means: GradientMeans | None = None

    def train(self, data: Any, trainable: list, model: keras.Model) -> dict:
        """One optimizer step on a batch.

        Args:
            data: A batch; in several processes, this one's.
            trainable: The variables to train.
            model: Whose variables they are, and whose `compile` says how to run.

        Returns:
            The logs.
        """
        if process_count() > 1:
            self._join_processes(trainable, model)
        steps = self._batch_loss.accumulation_steps
        with self._own_streams():
            with torch.no_grad():
                iterations = self._optimizer.iterations.value.clone()
                if self._draw is None:
                    self._draw = _TracedDraw(self._batch_loss, model, self._said)
                batch = self._draw(data, iterations)
            losses, gradients = self._gradients(batch, iterations, trainable, model)
        with torch.no_grad():
            if process_count() > 1:
                gradients = self._gradient_means(gradients)
            if steps > 1:
                gradients = _at_once(torch._foreach_div, gradients, steps)
            if not keras_private.is_own_optimizer(self._optimizer):
                # It may change them in place, which results of a graph do not allow.
                gradients = [g if g is None else g.clone() for g in gradients]
            with fused_updates(self._optimizer):
                self._optimizer.apply(gradients, trainable)
            if self._batch_loss.averages:
                after = self._optimizer.iterations.value
                self._batch_loss.update_averages(iterations, after)
            self._log.update(*_means(_map(lambda v: v / steps, losses)))
            return self._log.result()

    def test(self, data: Any) -> dict:
        """The loss of a batch of an evaluation."""
        with self._own_streams():
            losses = self._batch_loss.evaluate(data)
        self._log.update(*_means(losses))
        return self._log.result()

    def forget_processes(self) -> None:
        """Has the next step make the processes equal again."""
        self._gradient_means = None

    def forget_graph(self) -> None:
        """Has the next step traced anew."""
        self._graph = self._draw = None

    def _gradients(
        self, batch: Any, iterations: Any, trainable: list, model: keras.Model
    ) -> tuple[tuple, list]:
        """Sums over the micro-batches."""
        if self._graph is None or not self._graph.is_for(trainable):
            self._graph = _TracedLoss(
                self._batch_loss, trainable, model, self._optimizer, self._said
            )
        loss_sum, gradient_sum = None, None
        for part in self._micro_batches(batch):
            losses, gradients = self._graph(part, iterations)
            with torch.no_grad():
                loss_sum = _add(loss_sum, losses)
                gradient_sum = _add_gradients(gradient_sum, gradients)
        return loss_sum, gradient_sum

    def _join_processes(self, trainable: list, model: keras.Model) -> None:
        """Gives all processes the state of the first, where they may differ."""
        weights = [v.value for v in trainable]
        means = self._gradient_means
        if means is None or not means.is_for(weights):
            rest = model.non_trainable_variables + self._optimizer.variables
            with torch.no_grad():
                for value in weights + [v.value for v in rest]:
                    dist.broadcast(value.data, src=0)
            forget_steps(self._optimizer)
            self._gradient_means = GradientMeans(weights)

    def _micro_batches(self, batch: Any) -> Iterator[Any]:
        steps = self._batch_loss.accumulation_steps
        for index in range(steps):
            yield self._batch_loss.micro_batch(batch, index) if steps > 1 else batch

    def _own_streams(self) -> contextlib.AbstractContextManager:
        """Noise and masks of this process alone."""
        if process_count() == 1:
            return contextlib.nullcontext()
        return streams_of_device(self._batch_loss.random_states(), dist.get_rank())


class _TracedDraw:
    """Draws of a batch as a graph: nobody waits for a stream's state on a GPU.

    Args:
        batch_loss: The `BatchLoss`.
        model: Whose `compile` says how to run.
        said: Warnings that were given.
    """

    def __init__(self, batch_loss: Any, model: keras.Model, said: set[str]):
        self._batch_loss = batch_loss
        self._states = batch_loss.random_states()
        self._structure = None
        self._compiled = None
        if not model.run_eagerly:
            self._compiled = TracedFunction(
                self._traced,
                model.jit_compile,
                self._untraced,
                otherwise="Batches are drawn one operation at a time",
                keep_rounding=True,
                said=said,
            )

    def __call__(self, data: Any, iterations: Any) -> Any:
        """As `BatchLoss.draw`."""
        if self._compiled is None:
            return self._batch_loss.draw(data, iterations)
        fields, structure = pytree.tree_flatten(data)
        fields = [v if v is None else ops.convert_to_tensor(v) for v in fields]
        self._structure = structure
        values = [state.value for state in self._states]
        drawn, after = self._compiled(values, iterations, *fields)
        for state, value in zip(self._states, after, strict=True):
            if value is not None:
                state.assign(value)
        return drawn

    def _traced(self, states: list, iterations: Any, *fields: Any) -> tuple:
        """The batch, and the streams' new states, None where old."""
        data = pytree.tree_unflatten(fields, self._structure)
        mapping = list(zip(self._states, states, strict=True))
        with keras.StatelessScope(state_mapping=mapping) as scope:
            batch = self._batch_loss.draw(data, iterations)
        after = map(scope.get_current_value, self._states)
        pairs = zip(after, states, strict=True)
        return batch, [None if new is old else new for new, old in pairs]

    def _untraced(self, states: list, iterations: Any, *fields: Any) -> tuple:
        """As `_traced`, from and in the variables themselves."""
        data = pytree.tree_unflatten(fields, self._structure)
        return self._batch_loss.draw(data, iterations), [None] * len(states)


class _TracedLoss:
    """Losses and gradients of a micro-batch, traced with the trainable variables.

    Args:
        batch_loss: The `BatchLoss`.
        trainable: The variables to take gradients of.
        model: Whose other variables the loss may depend on and change.
        optimizer: Whose scaling of the loss the gradients have.
        said: Warnings that were given.
    """

    def __init__(
        self,
        batch_loss: Any,
        trainable: list,
        model: keras.Model,
        optimizer: Any,
        said: set[str],
    ):
        self._batch_loss = batch_loss
        self._trainable = trainable
        self._others = model.non_trainable_variables
        self._optimizer = optimizer
        self._structure = None
        self._compiled = None
        if _can_be_traced(model):
            self._compiled = TracedFunction(
                self._traced, model.jit_compile, self._untraced, said=said
            )
        elif model.jit_compile:
            warnings.warn(
                f"Steps of {model.name!r} are not compiled: a backbone with PyTorch's "
                "own modules runs layer by layer.",
                stacklevel=2,
            )

    def is_for(self, variables: list) -> bool:
        """Whether these are the variables that it is traced with."""
        return same_objects(self._trainable, variables)

    def __call__(self, batch: Any, iterations: Any) -> tuple[tuple, list]:
        """Losses and gradients of a micro-batch."""
        scale = self._optimizer.scale_loss(ops.ones((), dtype=batch.dtype))
        if self._compiled is None:
            return self._by_layers(batch, iterations, scale)
        values = [[v.value for v in group] for group in (self._trainable, self._others)]
        fields, self._structure = pytree.tree_flatten(batch)
        losses, gradients, updates = self._compiled(*values, scale, iterations, *fields)
        for variable, value in zip(self._others, updates, strict=True):
            if value is not None:
                variable.assign(value)
        return losses, gradients

    def _traced(
        self, trainable: list, others: list, scale: Any, iterations: Any, *fields: Any
    ) -> tuple[tuple, list, list]:
        """Losses, gradients, and the other variables' new values, None where old."""
        trainable = [value.detach().requires_grad_() for value in trainable]
        batch = pytree.tree_unflatten(fields, self._structure)
        mapping = zip(self._trainable + self._others, trainable + others, strict=True)
        with keras.StatelessScope(state_mapping=mapping) as scope, torch.enable_grad():
            losses, gradients = self._differentiate(batch, iterations, trainable, scale)
        pairs = zip(map(scope.get_current_value, self._others), others, strict=True)
        return losses, gradients, [None if new is old else new for new, old in pairs]

    def _untraced(
        self, _: list, others: list, scale: Any, iterations: Any, *fields: Any
    ) -> tuple[tuple, list, list]:
        """As `_traced`, from and in the variables themselves."""
        batch = pytree.tree_unflatten(fields, self._structure)
        with torch.enable_grad():
            losses, gradients = self._by_layers(batch, iterations, scale)
        return losses, gradients, [None] * len(others)

    def _by_layers(self, batch: Any, iterations: Any, scale: Any) -> tuple[tuple, list]:
        # What a graph drew was made in inference mode, of which no gradient is kept.
        batch = pytree.tree_map(_differentiable, batch)
        weights = [v.value for v in self._trainable]
        return self._differentiate(batch, iterations, weights, scale)

    def _differentiate(
        self, batch: Any, iterations: Any, weights: list, scale: Any
    ) -> tuple[tuple, list]:
        """By `autograd.grad`: no gradients are stored on the weights."""
        # Blocks that are computed again in the backward pass are so in this thread.
        threads = torch.autograd.set_multithreading_enabled(False)
        with traceable_draws(), threads:
            with torch.no_grad():
                target = self._batch_loss.target(batch, iterations)
            loss, others = self._batch_loss.loss(batch, target, iterations)
            if not loss.requires_grad:
                self._batch_loss.check_gradients([None] * len(weights))
            gradients = torch.autograd.grad(loss * scale, weights, allow_unused=True)
            self._batch_loss.check_gradients(gradients)
        return _map(lambda v: v.detach(), (loss, others)), list(gradients)


def _can_be_traced(model: keras.Model) -> bool:
    """Whether all that the loss depends on are the variables it is given."""
    return not (model.run_eagerly or keras_private.has_torch_modules(model))


def _differentiable(value: Any) -> Any:
    return value.clone() if torch.is_tensor(value) and value.is_inference() else value


def _map(function: Any, losses: tuple) -> tuple[Any, dict]:
    """A function of the loss and of each of the other scalars."""
    loss, others = losses
    return function(loss), {name: function(value) for name, value in others.items()}


def _means(losses: tuple) -> tuple[Any, dict]:
    """Over the processes."""
    values, structure = pytree.tree_flatten(losses)
    return pytree.tree_unflatten(means_over_processes(values), structure)


def _add_gradients(sums: list | None, gradients: list) -> list:
    """In few calls, where the same weights have a gradient."""
    if sums is None:
        return gradients
    pairs = list(zip(sums, gradients, strict=True))
    if all((a is None) == (b is None) for a, b in pairs):
        present = [g for g in gradients if g is not None]
        return _at_once(torch._foreach_add, sums, present)
    return [b if a is None else a if b is None else a + b for a, b in pairs]


def _at_once(function: Any, values: list, argument: Any) -> list:
    """A function of the tensors in a list; None stays None."""
    present = [value for value in values if value is not None]
    results = iter(function(present, argument) if present else ())
    return [value if value is None else next(results) for value in values]


def _add(sums: tuple | None, losses: tuple) -> tuple[Any, dict]:
    if sums is None:
        return losses
    others = {name: sums[1][name] + value for name, value in losses[1].items()}
    return sums[0] + losses[0], others
