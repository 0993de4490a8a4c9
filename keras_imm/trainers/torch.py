"""The train step under PyTorch."""

import contextlib
import functools
import math
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import keras
import torch
import torch.distributed as dist

from keras_imm.compilation import graphs_of
from keras_imm.seeds import random_states, streams_of_device


class Trainer:
    """Steps alone or in one of several processes.

    The loss of a micro-batch and its gradients are a pure function of weights and
    particles: it is traced once for each shape of a batch and runs from then on as a
    graph of ATen operations, compiled if `jit_compile`. Eager steps call the layers:
    those of several processes, with `run_eagerly=True`, and of models that a graph
    cannot hold.
    """

    def train_step(self, data: Any) -> dict:
        parallel = None if _processes() == 1 else self._joined(data)
        with self._own_streams():
            with torch.no_grad():
                particles = self.draw_particles(data, training=True)
            # Walks through all layers, so it is asked for once.
            variables = self.trainable_variables
            if parallel is None:
                loss, gradients = self._gradients(particles, variables)
            else:
                loss, gradients = self._gradients_of_processes(particles, parallel)
        with torch.no_grad():
            steps = self.accumulation_steps
            if steps > 1:
                gradients = [g if g is None else g / steps for g in gradients]
            if not _is_of_keras(self.optimizer):
                # It may change them in place, which results of a graph do not allow.
                gradients = [g if g is None else g.clone() for g in gradients]
            with _few_calls(self.optimizer):
                self.optimizer.apply(gradients, variables)
            return self.update_logs(_mean_of_processes(loss / steps))

    def _gradients(self, particles: Any, variables: list) -> tuple[Any, list]:
        """Sums over the micro-batches."""
        loss_sum, gradient_sum = 0.0, [None] * len(variables)
        if self._graph is None or not self._graph.is_of(variables):
            self._graph = _Graph(self)
        for part in self._micro_batches(particles):
            loss, gradients = self._loss_and_gradients(part)
            loss_sum = loss_sum + loss
            with torch.no_grad():
                gradient_sum = [
                    b if a is None else a if b is None else a + b
                    for a, b in zip(gradient_sum, gradients, strict=True)
                ]
        return loss_sum, gradient_sum

    def _loss_and_gradients(self, particles: Any) -> tuple[Any, list]:
        """Of one micro-batch."""
        scale = self.optimizer.scale_loss(torch.ones_like(particles.t[0]))
        if self._graph.usable:
            return self._graph(particles, scale)
        weights = [v.value for v in self._graph.trainable]
        return self._differentiate(particles, weights, scale)

    def _differentiate(
        self, particles: Any, weights: list, scale: Any
    ) -> tuple[Any, list]:
        """By `autograd.grad`: no gradients are stored on the weights."""
        with torch.no_grad():
            y_target = self.compute_target(particles, training=True)
        loss = self.compute_objective(particles, y_target, training=True)
        gradients = torch.autograd.grad(loss * scale, weights, allow_unused=True)
        return loss.detach(), list(gradients)

    def _gradients_of_processes(
        self, particles: Any, parallel: "_ParallelObjective"
    ) -> tuple[Any, list]:
        """Sums over the micro-batches of the means over the processes."""
        loss_sum = 0.0
        parts = self._micro_batches(particles)
        for index, part in enumerate(parts, start=1):
            with torch.no_grad():
                y_target = self.compute_target(part, training=True)
            is_last = index == self.accumulation_steps
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

    def _micro_batches(self, particles: Any) -> Iterator[Any]:
        steps = self.accumulation_steps
        for index in range(steps):
            yield self.micro_batch(particles, index) if steps > 1 else particles

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

    _graph = None
    _parallel = None

    def make_train_function(self, force: bool = False) -> None:
        if self.train_function is None or force:
            self._graph = None
        super().make_train_function(force)

    def _should_torch_compile(self) -> bool:
        """No: Keras would compile its own bookkeeping along with the step."""
        return False

    def devices_per_batch(self) -> int:
        """Devices that share the batch of a step: each process sees its own."""
        return 1

    def _own_streams(self) -> contextlib.AbstractContextManager:
        """Noise and masks of this process alone."""
        if _processes() == 1:
            return contextlib.nullcontext()
        return streams_of_device(self, dist.get_rank())


class _Graph:
    """A model's step up to the gradients, traced with its trainable variables."""

    def __init__(self, model: Any):
        self.trainable = model.trainable_variables
        self.usable = _can_be_traced(model)
        if model.jit_compile and not self.usable:
            warnings.warn(
                f"`jit_compile=True` does nothing for {model.name!r} under PyTorch: a "
                "backbone with dropout, or with PyTorch's own modules, is not traced.",
                stacklevel=2,
            )
        self._others = model.non_trainable_variables
        self._model = model
        self._compiled = graphs_of(self._step, model.jit_compile)

    def is_of(self, variables: list) -> bool:
        """Whether these are the variables that it is traced with."""
        return _are_same(self.trainable, variables)

    def __call__(self, particles: Any, scale: Any) -> tuple[Any, list]:
        """Loss and gradients of a micro-batch."""
        values = [[v.value for v in group] for group in (self.trainable, self._others)]
        self._kind = type(particles)
        loss, gradients, updates = self._compiled(*values, scale, *particles)
        for variable, value in zip(self._others, updates, strict=True):
            if value is not None:
                variable.assign(value)
        return loss, gradients

    def _step(
        self, trainable: list, others: list, scale: Any, *particles: Any
    ) -> tuple[Any, list, list]:
        """Loss, gradients, and the other variables' new values, None where old."""
        trainable = [value.detach().requires_grad_() for value in trainable]
        mapping = zip(self.trainable + self._others, trainable + others, strict=True)
        with keras.StatelessScope(state_mapping=mapping) as scope, torch.enable_grad():
            loss, gradients = self._model._differentiate(
                self._kind(*particles), trainable, scale
            )
        pairs = zip(map(scope.get_current_value, self._others), others, strict=True)
        return loss, gradients, [None if new is old else new for new, old in pairs]


def _can_be_traced(model: Any) -> bool:
    """Whether all that the step depends on are the variables it is given.

    PyTorch's own modules hold their parameters themselves, and a generator of masks
    would be traced as it is.
    """
    layers = model._flatten_layers()
    foreign = any(isinstance(one, keras.layers.TorchModuleWrapper) for one in layers)
    states = [v for v in random_states(model) if v is not model.seed_generator.state]
    return not (model.run_eagerly or foreign or states)


class _ParallelObjective:
    """The loss of a model in `DistributedDataParallel`, for `weights`."""

    def __init__(self, model: Any, weights: list):
        self._model = model
        self._weights = weights
        self._objective = None

    def is_of(self, weights: list) -> bool:
        """Whether these are the weights whose gradients it takes."""
        return _are_same(self._weights, weights)

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


@contextlib.contextmanager
def _few_calls(optimizer: Any) -> Iterator[None]:
    """Has an optimizer update all variables in few calls of PyTorch.

    Keras makes three calls for the average of each variable, and eleven passes over the
    variables for Adam where PyTorch has one.
    """
    optimizer = getattr(optimizer, "inner_optimizer", optimizer)
    replacements = {"_update_model_variables_moving_average": _update_averages}
    if _is_adam(optimizer):
        replacements["_parallel_update_step"] = _update_adam
    replacements = {
        name: function
        for name, function in replacements.items()
        if name not in vars(optimizer)  # somebody's own
    }
    for name, function in replacements.items():
        own = functools.partial(function, optimizer, getattr(optimizer, name))
        setattr(optimizer, name, own)
    try:
        yield
    finally:
        for name in replacements:
            delattr(optimizer, name)


def _is_of_keras(optimizer: Any) -> bool:
    """Whether an optimizer, and the one inside it, are Keras's or this library's."""
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    return all(
        type(one).__module__.startswith(("keras.src.", "keras_imm."))
        for one in (optimizer, inner)
    )


def _is_adam(optimizer: Any) -> bool:
    """Whether Keras's own Adam or AdamW will update all variables at once."""
    return (
        _is_of_keras(optimizer)
        and type(optimizer).__name__ in ("Adam", "AdamW")
        and not optimizer.amsgrad
    )


def _update_averages(optimizer: Any, each: Callable, variables: list) -> None:
    """What Keras's own `each` computes, with its rounding."""
    averages = optimizer._model_variables_moving_average
    pairs = [
        (v.value, a.value)
        for v, a in zip(variables, averages, strict=True)
        if a is not None
    ]
    dtypes = {value.dtype for pair in pairs for value in pair}
    if len(dtypes) != 1:
        each(variables)
        return
    weights, averages = map(list, zip(*pairs, strict=True))
    started = (optimizer.iterations.value != 0).to(dtypes.pop())
    momentum = started * optimizer.ema_momentum
    torch._foreach_mul_(averages, momentum)
    torch._foreach_add_(averages, torch._foreach_mul(weights, 1 - momentum))


def _update_adam(
    optimizer: Any, own: Callable, gradients: list, variables: list, learning_rate: Any
) -> None:
    """What Keras's `own` update of Adam computes, up to rounding.

    On a CPU alone: PyTorch's kernel takes epsilon as a number, and Keras's epsilon
    depends on the step, for which a GPU would be waited for.
    """
    indices = [optimizer._get_variable_index(v) for v in variables]
    weights = [v.value for v in variables]
    momentums = [optimizer._momentums[i].value for i in indices]
    velocities = [optimizer._velocities[i].value for i in indices]
    # The kernel walks through memory, whatever the strides: those of a convolution's
    # gradient are not its weight's.
    state = [*weights, *momentums, *velocities]
    kinds = {(t.dtype, t.device.type, t.is_contiguous()) for t in state}
    if kinds != {(torch.float32, "cpu", True)} or any(
        g.dtype != torch.float32 for g in gradients
    ):
        own(gradients, variables, learning_rate)
        return
    step = int(optimizer.iterations.value) + 1
    torch._fused_adam_(
        weights,
        [g.contiguous() for g in gradients],
        momentums,
        velocities,
        [],
        [torch.tensor(float(step))] * len(variables),
        lr=float(learning_rate),
        beta1=optimizer.beta_1,
        beta2=optimizer.beta_2,
        weight_decay=0.0,  # has been done
        # PyTorch adds it after the second moment is corrected, Keras before.
        eps=optimizer.epsilon / math.sqrt(1 - optimizer.beta_2**step),
        amsgrad=False,
        maximize=False,
    )


def _are_same(ones: list, others: list) -> bool:
    """Whether two lists are of the same objects."""
    return len(ones) == len(others) and all(
        a is b for a, b in zip(ones, others, strict=True)
    )


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
