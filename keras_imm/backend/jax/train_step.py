"""The train step under JAX."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import keras

from keras_imm.backend.jax.processes import ShardedDataParallel


class TrainStep:
    """Stateless steps on `(trainable, non_trainable, optimizer, metrics)`.

    Args:
        batch_loss: The `keras_imm.objectives.BatchLoss` to differentiate.
        optimizer: Keras optimizer.
        log: `LossLog` of the losses.
    """

    def __init__(self, batch_loss: Any, optimizer: Any = None, log: Any = None):
        self._batch_loss = batch_loss
        self._optimizer = optimizer
        self._log = log

    def train(
        self, state: tuple, data: Any, trainable: list, non_trainable: list
    ) -> tuple[dict, tuple]:
        """One optimizer step on a batch.

        Args:
            state: Values of trainable, other, optimizer and metric variables.
            data: A batch.
            trainable: The variables that the first list in `state` belongs to.
            non_trainable: Those of the second.

        Returns:
            The logs and the new state.
        """
        *values, optimizer_values, metric_values = state
        references = [*trainable, *non_trainable, *self._optimizer.variables]

        def stateless(function, values, optimizer_values=optimizer_values):
            """The function's result, and what becomes of the other variables."""
            result, current = _stateless(
                function, references, [*values[0], *values[1], *optimizer_values]
            )
            return result, [current(v) for v in non_trainable]

        def loss_and_gradients(batch, values):
            target, _ = stateless(
                lambda: self._batch_loss.target(batch, iterations), values
            )

            reached = []

            def scaled_loss(trainable_values):
                trainable_values = _noting_gradients(trainable_values, reached)

                def function():
                    loss, others = self._batch_loss.loss(batch, target, iterations)
                    return self._optimizer.scale_loss(loss), (loss, others)

                # The masks drawn for the target are drawn again for the output.
                (scaled, loss), updates = stateless(
                    function, (trainable_values, values[1])
                )
                return scaled, (loss, updates)

            gradients, (loss, updates) = jax.grad(scaled_loss, has_aux=True)(values[0])
            if not reached:  # zeros by definition, and not by value
                self._batch_loss.check_gradients([None] * len(trainable))
            return loss, _split_over_devices(gradients, trainable), updates

        iterations, _ = stateless(lambda: self._optimizer.iterations.value, values)
        batch, values[1] = stateless(
            lambda: self._batch_loss.draw(data, iterations, devices_per_batch()), values
        )
        batch = _shared_by_devices(batch)
        own, values[0] = values[0], _gathered_from_devices(values[0])
        steps = self._batch_loss.accumulation_steps
        if steps == 1:
            losses, gradients, values[1] = loss_and_gradients(batch, values)
        else:

            def body(carry, index):
                gradient_sum, others = carry
                losses, gradients, others = loss_and_gradients(
                    _shared_by_devices(self._batch_loss.micro_batch(batch, index)),
                    (values[0], others),
                )
                gradient_sum = jax.tree.map(jnp.add, gradient_sum, gradients)
                return (gradient_sum, others), losses

            zeros = jax.tree.map(jnp.zeros_like, own)
            (gradients, values[1]), losses = jax.lax.scan(
                body, (zeros, values[1]), jnp.arange(steps)
            )
            gradients = jax.tree.map(lambda v: v / steps, gradients)
            losses = jax.tree.map(lambda v: jnp.sum(v) / steps, losses)

        values[0], optimizer_values = self._optimizer.stateless_apply(
            optimizer_values, gradients, own
        )
        if self._batch_loss.averages:

            def update_averages():
                after = self._optimizer.iterations.value
                self._batch_loss.update_averages(iterations, after)

            _, values[1] = stateless(update_averages, values, optimizer_values)
        logs, metric_values = self._logs(losses, metric_values)
        return logs, (*values, optimizer_values, metric_values)

    def test(
        self, state: tuple, data: Any, trainable: list, non_trainable: list
    ) -> tuple[dict, tuple]:
        """The loss of a batch of an evaluation.

        Args:
            state: Values of trainable, other and metric variables.
            data: A batch.
            trainable: As in `train`.
            non_trainable: As in `train`.

        Returns:
            The logs and the new state.
        """
        trainable_values, other_values, metric_values = state
        losses, current = _stateless(
            lambda: self._batch_loss.evaluate(data, devices_per_batch()),
            [*trainable, *non_trainable],
            [*trainable_values, *other_values],
        )
        other_values = [current(v) for v in non_trainable]
        logs, metric_values = self._logs(losses, metric_values)
        return logs, (trainable_values, other_values, metric_values)

    def batch_size_message(self, training: bool, devices: int) -> str:
        """What is wrong with a batch size, up to the batch size."""
        return self._batch_loss.batch_size_message(training, devices)

    def _logs(self, losses: tuple, metric_values: list) -> tuple[dict, list]:
        def update():
            self._log.update(*losses)
            return self._log.result()

        logs, current = _stateless(update, self._log.variables, metric_values)
        return logs, [current(v) for v in self._log.variables]


def devices_per_batch() -> int:
    """Devices that share the batch of a step."""
    distribution = keras.distribution.distribution()
    return 1 if distribution is None else distribution.num_model_replicas


def _stateless(function: Callable, variables: list, values: list) -> tuple:
    """A function's result with variables of other values, and their values after it."""
    mapping = list(zip(variables, values, strict=True))
    with keras.StatelessScope(state_mapping=mapping) as scope:
        result = function()
    return result, scope.get_current_value


def _noting_gradients(weights: list, reached: list) -> list:
    """The same weights; `reached` gets an entry if a gradient is traced to any."""

    def backward(_, gradients):
        reached.append(True)
        return (gradients,)

    same = jax.custom_vjp(lambda weights: weights)
    same.defvjp(lambda weights: (weights, None), backward)
    return same(weights)


def _shared_by_devices(batch: Any) -> Any:
    """A batch split over the devices by whole groups, where there are several."""
    distribution = keras.distribution.distribution()
    if distribution is None:
        return batch

    def shared(field):
        layout = distribution.get_data_layout(field.shape).backend_layout
        return jax.lax.with_sharding_constraint(field, layout)

    return jax.tree.map(shared, batch)


def _gathered_from_devices(values: list) -> list:
    """Whole weights on each device, where each holds a part of them."""
    distribution = keras.distribution.distribution()
    if not isinstance(distribution, ShardedDataParallel):
        return values
    return [
        jax.lax.with_sharding_constraint(v, distribution.whole(v.shape)) for v in values
    ]


def _split_over_devices(gradients: list, variables: list) -> list:
    """Each device's part of the gradients, where it updates a part of the weights."""
    distribution = keras.distribution.distribution()
    if not isinstance(distribution, ShardedDataParallel):
        return gradients
    return [
        jax.lax.with_sharding_constraint(
            gradient, distribution.get_variable_layout(v).backend_layout
        )
        for gradient, v in zip(gradients, variables, strict=True)
    ]
