"""The train step under TensorFlow."""

import contextlib
import re
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from keras_imm.seeds import streams_of_device
from keras_imm.validation import batch_size_message


class Trainer:
    """Steps for `tf.function`, alone or under a `tf.distribute` strategy."""

    def train_step(self, data: Any) -> dict:
        data = self._checked(data, self.accumulation_steps)
        with self._own_streams(data):
            loss, gradients = self._accumulated(data)
        self._apply(gradients)
        return self.update_logs(loss)

    def _accumulated(self, data: Any) -> tuple[Any, list]:
        """Loss and gradients of a batch, averaged over its micro-batches."""
        particles = self.draw_particles(data, training=True)
        if not self.built:  # before a loop, which must not create variables
            self.build(particles.x_t.shape)
        steps = self.accumulation_steps
        if steps == 1:
            return self._loss_and_gradients(particles)

        def body(index, loss_sum, gradient_sum):
            loss, gradients = self._loss_and_gradients(
                self.micro_batch(particles, index)
            )
            gradients = [
                total + gradient
                for total, gradient in zip(gradient_sum, gradients, strict=True)
            ]
            return index + 1, loss_sum + loss, gradients

        zeros = [tf.zeros(v.shape, v.dtype) for v in self.trainable_variables]
        _, loss, gradients = tf.while_loop(
            lambda index, *_: index < steps,
            body,
            (0, tf.zeros((), particles.x_t.dtype), zeros),
            parallel_iterations=1,
        )
        return loss / steps, [g / steps for g in gradients]

    def _loss_and_gradients(self, particles: Any) -> tuple[Any, list]:
        # Outside the tape: the target keeps no activations.
        y_target = tf.stop_gradient(self.compute_target(particles, training=True))
        weights = [v.value for v in self.trainable_variables]
        with tf.GradientTape() as tape:
            loss = self.compute_objective(particles, y_target, training=True)
            scaled = self.optimizer.scale_loss(loss / self._replicas())
        unused = "none" if self.accumulation_steps == 1 else "zero"
        gradients = tape.gradient(scaled, weights, unconnected_gradients=unused)
        # Dense: Keras's Adam squares the slices of a label that a batch repeats one by
        # one, where it should square their sum.
        return loss, [g if g is None else tf.convert_to_tensor(g) for g in gradients]

    def _apply(self, gradients: list) -> None:
        """One optimizer step with the gradients of all replicas.

        Keras would add them up after clipping each and asking whether each is finite.
        """
        if self._replicas() > 1:
            present = [g for g in gradients if g is not None]
            context = tf.distribute.get_replica_context()
            sums = iter(context.all_reduce(tf.distribute.ReduceOp.SUM, present))
            gradients = [g if g is None else next(sums) for g in gradients]
            optimizer = getattr(self.optimizer, "inner_optimizer", self.optimizer)
            optimizer._all_reduce_sum_gradients = _reduced
        self.optimizer.apply_gradients(
            list(zip(gradients, self.trainable_variables, strict=True))
        )

    def test_step(self, data: Any) -> dict:
        data = self._checked(data, accumulation_steps=1)
        with self._own_streams(data):
            loss = self.evaluate_objective(data)
        return self.update_logs(loss)

    def devices_per_batch(self) -> int:
        """Devices that share the batch of a step: each replica sees its own."""
        return 1

    def _replicas(self) -> int:
        return self.distribute_strategy.num_replicas_in_sync

    def _own_streams(self, data: Any) -> contextlib.AbstractContextManager:
        """Noise and masks of this replica alone, once the data is there."""
        if self._replicas() == 1:
            return contextlib.nullcontext()
        replica = tf.distribute.get_replica_context().replica_id_in_sync_group
        with tf.control_dependencies(tf.nest.flatten(data)):
            replica = tf.identity(replica)
        return streams_of_device(self, replica)

    def make_train_function(self, force: bool = False) -> Callable:
        if self.train_function is None or force:
            super().make_train_function(force=True)
            self.train_function = _raise_value_error(self.train_function)
        return self.train_function

    def make_test_function(self, force: bool = False) -> Callable:
        if self.test_function is None or force:
            super().make_test_function(force=True)
            self.test_function = _raise_value_error(self.test_function)
        return self.test_function

    def _checked(self, data: Any, accumulation_steps: int) -> Any:
        """The data, once its batch size is known to be whole groups.

        `draw_particles` checks what it can see; in a graph of unknown batch size the
        check has to run before anything that uses the data.
        """
        x, _, _ = keras.utils.unpack_x_y_sample_weight(data)
        if x.shape[0] is not None:
            return data
        batch = tf.shape(x)[0]
        replicas = self._replicas()
        message = batch_size_message(self.group_size, accumulation_steps, replicas)
        if replicas > 1:
            message += "on one device "
        check = tf.debugging.Assert(
            batch % (self.group_size * accumulation_steps) == 0, [message, batch]
        )
        if check is None:  # not in a graph: the check has run
            return data
        with tf.control_dependencies([check]):
            return tf.nest.map_structure(tf.identity, data)


def _reduced(gradients_and_variables: list) -> list:
    """In place of an optimizer's own reduction: it has been done."""
    return gradients_and_variables


def _raise_value_error(function: Callable) -> Callable:
    """Turns a failed batch check in a graph into the ValueError of eager code."""

    def checked(*args):
        try:
            return function(*args)
        except tf.errors.InvalidArgumentError as error:
            found = re.search(r"(The batch size must be .*?)\] \[(\d+)\]", str(error))
            if not found:
                raise
            raise ValueError("".join(found.groups())) from None

    return checked
