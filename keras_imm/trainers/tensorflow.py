"""The train step under TensorFlow."""

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from keras_imm.validation import batch_size_message


class Trainer:
    """Steps for `tf.function`, alone or under a `tf.distribute` strategy."""

    def train_step(self, data: Any) -> dict:
        data = self._checked(data, self.accumulation_steps)
        particles = self.draw_particles(data, training=True)
        if not self.built:  # before a loop, which must not create variables
            self.build(particles.x_t.shape)
        steps = self.accumulation_steps
        if steps == 1:
            loss, gradients = self._loss_and_gradients(particles)
        else:

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
            loss, gradients = loss / steps, [g / steps for g in gradients]
        self.optimizer.apply_gradients(
            list(zip(gradients, self.trainable_variables, strict=True))
        )
        return self.update_logs(loss)

    def _loss_and_gradients(self, particles: Any) -> tuple[Any, list]:
        # Outside the tape: the target keeps no activations.
        y_target = tf.stop_gradient(self.compute_target(particles, training=True))
        weights = [v.value for v in self.trainable_variables]
        with tf.GradientTape() as tape:
            loss = self.compute_objective(particles, y_target, training=True)
            # The optimizer adds up the gradients of the replicas.
            replicas = self.distribute_strategy.num_replicas_in_sync
            scaled = self.optimizer.scale_loss(loss / replicas)
        unused = "none" if self.accumulation_steps == 1 else "zero"
        gradients = tape.gradient(scaled, weights, unconnected_gradients=unused)
        # Dense: Keras's Adam squares the slices of a label that a batch repeats one by
        # one, where it should square their sum.
        return loss, [g if g is None else tf.convert_to_tensor(g) for g in gradients]

    def test_step(self, data: Any) -> dict:
        data = self._checked(data, accumulation_steps=1)
        return self.update_logs(self.evaluate_objective(data))

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
        check = tf.debugging.Assert(
            batch % (self.group_size * accumulation_steps) == 0,
            [batch_size_message(self.group_size, accumulation_steps), batch],
        )
        if check is None:  # not in a graph: the check has run
            return data
        with tf.control_dependencies([check]):
            return tf.nest.map_structure(tf.identity, data)


def _raise_value_error(function: Callable) -> Callable:
    """Turns a failed batch check in a graph into the ValueError of eager code."""

    def checked(*args):
        try:
            return function(*args)
        except tf.errors.InvalidArgumentError as error:
            lines = [line for line in str(error).splitlines() if "`group_size`" in line]
            if not lines:
                raise
            raise ValueError(" ".join(lines)) from None

    return checked
