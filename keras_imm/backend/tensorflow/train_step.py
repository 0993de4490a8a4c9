"""The train step under TensorFlow."""

import contextlib
from typing import Any

import keras
import tensorflow as tf

from keras_imm.backend import keras_private
from keras_imm.backend.random_streams import streams_of_device


class TrainStep:
    """Steps for `tf.function`, alone or under a `tf.distribute` strategy.

    Args:
        batch_loss: The `keras_imm.objectives.BatchLoss` to differentiate.
        optimizer: Keras optimizer.
        log: `LossLog` of the losses.
    """

    def __init__(self, batch_loss: Any, optimizer: Any = None, log: Any = None):
        self._batch_loss = batch_loss
        self._optimizer = optimizer
        self._log = log

    def train(self, data: Any, trainable: list) -> dict:
        """One optimizer step on a batch.

        Args:
            data: A batch; under a strategy, this replica's share.
            trainable: The variables to train.

        Returns:
            The logs.
        """
        data = self._checked(data, training=True)
        with _once_there_is(data):
            # As it is before the step.
            iterations = self._optimizer.iterations.value * 1
            with self._own_streams():
                losses, gradients = self._accumulated(data, trainable, iterations)
            self._apply(gradients, trainable)
            if self._batch_loss.averages:
                after = self._optimizer.iterations.value
                self._batch_loss.update_averages(iterations, after)
            self._log.update(*losses)
            return self._log.result()

    def test(self, data: Any) -> dict:
        """The loss of a batch of an evaluation."""
        data = self._checked(data, training=False)
        with _once_there_is(data):
            with self._own_streams():
                losses = self._batch_loss.evaluate(data)
            self._log.update(*losses)
            return self._log.result()

    def _accumulated(self, data: Any, trainable: list, iterations: Any) -> tuple:
        """Losses and gradients of a batch, averaged over its micro-batches."""
        batch = self._batch_loss.draw(data, iterations)
        steps = self._batch_loss.accumulation_steps
        if steps == 1:
            return self._loss_and_gradients(batch, trainable, iterations)

        names = []  # of the scalars beside the loss: known once the loop is traced

        def body(index, sums, gradient_sum):
            losses, gradients = self._loss_and_gradients(
                self._batch_loss.micro_batch(batch, index), trainable, iterations
            )
            names[:] = losses[1]
            gradients = [
                total + gradient
                for total, gradient in zip(gradient_sum, gradients, strict=True)
            ]
            return index + 1, sums + self._log.as_vector(*losses), gradients

        sums = tf.zeros((self._log.length,), batch.dtype)
        zeros = [tf.zeros(v.shape, v.dtype) for v in trainable]
        _, sums, gradients = tf.while_loop(
            lambda index, *_: index < steps,
            body,
            (0, sums, zeros),
            parallel_iterations=1,
        )
        loss, *others = tf.unstack(sums / steps)
        losses = loss, dict(zip(names, others, strict=False))
        return losses, [g / steps for g in gradients]

    def _loss_and_gradients(
        self, batch: Any, trainable: list, iterations: Any
    ) -> tuple:
        # Outside the tape: the target keeps no activations.
        target = self._batch_loss.target(batch, iterations)
        weights = [v.value for v in trainable]
        with tf.GradientTape() as tape:
            loss, others = self._batch_loss.loss(batch, target, iterations)
            scaled = self._optimizer.scale_loss(loss / _replicas())
        gradients = tape.gradient(scaled, weights)
        self._batch_loss.check_gradients(gradients)
        if self._batch_loss.accumulation_steps > 1:  # they are added in a loop
            pairs = zip(gradients, weights, strict=True)
            gradients = [tf.zeros_like(w) if g is None else g for g, w in pairs]
        # Dense: Keras's Adam squares the slices of a label that a batch repeats one by
        # one, where it should square their sum.
        dense = [g if g is None else tf.convert_to_tensor(g) for g in gradients]
        return (loss, others), dense

    def _apply(self, gradients: list, trainable: list) -> None:
        """One optimizer step with the gradients of all replicas.

        Keras would add them up after clipping each and asking whether each is finite.
        """
        if _replicas() > 1:
            present = [g for g in gradients if g is not None]
            context = tf.distribute.get_replica_context()
            sums = iter(context.all_reduce(tf.distribute.ReduceOp.SUM, present))
            gradients = [g if g is None else next(sums) for g in gradients]
            keras_private.take_gradients_as_reduced(self._optimizer)
        self._optimizer.apply_gradients(list(zip(gradients, trainable, strict=True)))

    def _own_streams(self) -> contextlib.AbstractContextManager:
        """Noise and masks of this replica alone."""
        if _replicas() == 1:
            return contextlib.nullcontext()
        replica = tf.distribute.get_replica_context().replica_id_in_sync_group
        # Once the data is there, on which it does not depend.
        replica = tf.identity(replica)
        return streams_of_device(self._batch_loss.random_states(), replica)

    def _checked(self, data: Any, training: bool) -> Any:
        """The data, once its batch size is known to be whole groups.

        `BatchLoss.draw` checks what it can see; in a graph of unknown batch size the
        check has to run before anything that uses the data.
        """
        x, _, _ = keras.utils.unpack_x_y_sample_weight(data)
        if x.shape[0] is not None:
            return data
        batch = tf.shape(x)[0]
        replicas = _replicas()
        message = self._batch_loss.batch_size_message(training, replicas)
        if replicas > 1:
            message += "on one device "
        divisor = self._batch_loss.batch_divisor(training)
        check = tf.debugging.Assert(batch % divisor == 0, [message, batch])
        if check is None:  # not in a graph: the check has run
            return data
        with tf.control_dependencies([check]):
            return tf.nest.map_structure(tf.identity, data)


def _replicas() -> int:
    return tf.distribute.get_strategy().num_replicas_in_sync


def _once_there_is(data: Any) -> contextlib.AbstractContextManager:
    """Inside, nothing runs before the data is there: it may end, or be refused."""
    tensors = [part for part in tf.nest.flatten(data) if tf.is_tensor(part)]
    return tf.control_dependencies(tensors)
