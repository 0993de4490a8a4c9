"""The train step under JAX."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import keras

from keras_imm.validation import batch_size_message


class Trainer:
    """Stateless steps of `(trainable, non_trainable, optimizer, metrics)`."""

    def train_step(self, state: tuple, data: Any) -> tuple[dict, tuple]:
        trainable, non_trainable, optimizer, metrics = state
        variables = self.trainable_variables, self.non_trainable_variables

        def stateless(function, trainable, non_trainable):
            references = [*variables[0], *variables[1], *self.optimizer.variables]
            values = [*trainable, *non_trainable, *optimizer]
            mapping = list(zip(references, values, strict=True))
            with keras.StatelessScope(state_mapping=mapping) as scope:
                result = function()
            return result, [scope.get_current_value(v) for v in variables[1]]

        def loss_and_gradients(particles, non_trainable):
            # The masks drawn for the target are drawn again for the output.
            y_target, _ = stateless(
                lambda: self.compute_target(particles, training=True),
                trainable,
                non_trainable,
            )
            y_target = jax.lax.stop_gradient(y_target)

            def scaled_loss(trainable):
                def function():
                    loss = self.compute_objective(particles, y_target, training=True)
                    return self.optimizer.scale_loss(loss), loss

                (scaled, loss), updates = stateless(function, trainable, non_trainable)
                return scaled, (loss, updates)

            gradients, (loss, updates) = jax.grad(scaled_loss, has_aux=True)(trainable)
            return loss, gradients, updates

        particles, non_trainable = stateless(
            lambda: self.draw_particles(data, training=True), trainable, non_trainable
        )
        particles = _shared_by_groups(particles)
        if self.accumulation_steps == 1:
            loss, gradients, non_trainable = loss_and_gradients(
                particles, non_trainable
            )
        else:

            def body(carry, index):
                loss_sum, gradient_sum, non_trainable = carry
                loss, gradients, non_trainable = loss_and_gradients(
                    _shared_by_groups(self.micro_batch(particles, index)),
                    non_trainable,
                )
                gradient_sum = jax.tree.map(jnp.add, gradient_sum, gradients)
                return (loss_sum + loss, gradient_sum, non_trainable), None

            zeros = jax.tree.map(jnp.zeros_like, trainable)
            loss_dtype = jnp.result_type(particles.x_t)
            carry = (jnp.zeros((), loss_dtype), zeros, non_trainable)
            steps = self.accumulation_steps
            (loss, gradients, non_trainable), _ = jax.lax.scan(
                body, carry, jnp.arange(steps)
            )
            loss, gradients = jax.tree.map(lambda v: v / steps, (loss, gradients))

        trainable, optimizer = self.optimizer.stateless_apply(
            optimizer, gradients, trainable
        )
        logs, metrics = self._stateless_logs(loss, metrics)
        return logs, (trainable, non_trainable, optimizer, metrics)

    def test_step(self, state: tuple, data: Any) -> tuple[dict, tuple]:
        trainable, non_trainable, metrics = state
        variables = self.trainable_variables + self.non_trainable_variables
        mapping = list(zip(variables, trainable + non_trainable, strict=True))
        with keras.StatelessScope(state_mapping=mapping) as scope:
            loss = self.evaluate_objective(data)
        non_trainable = [
            scope.get_current_value(v) for v in self.non_trainable_variables
        ]
        logs, metrics = self._stateless_logs(loss, metrics)
        return logs, (trainable, non_trainable, metrics)

    def devices_per_batch(self) -> int:
        """Devices that share the batch of a step."""
        distribution = keras.distribution.distribution()
        return 1 if distribution is None else distribution.num_model_replicas

    def make_train_function(self, force: bool = False) -> None:
        if self.train_function is None or force:
            super().make_train_function(force=True)
            self.train_function = self._naming_the_batch_size(
                self.train_function, self.accumulation_steps
            )

    def make_test_function(self, force: bool = False) -> None:
        if self.test_function is None or force:
            super().make_test_function(force=True)
            self.test_function = self._naming_the_batch_size(self.test_function, 1)

    def fit(self, *args: Any, **kwargs: Any) -> Any:
        with self._variables_put_back():
            return super().fit(*args, **kwargs)

    def evaluate(self, *args: Any, **kwargs: Any) -> Any:
        with self._variables_put_back():
            return super().evaluate(*args, **kwargs)

    def _get_jax_state(
        self, purge_model_variables: bool = False, **wanted: bool
    ) -> tuple:
        state = super()._get_jax_state(
            purge_model_variables=purge_model_variables, **wanted
        )
        if purge_model_variables:
            # Keras has emptied the variables: if the first step fails, this is
            # where their values are.
            names = [name for name, included in wanted.items() if included]
            self._jax_state = dict(zip(names, state, strict=True))
        return state

    @contextlib.contextmanager
    def _variables_put_back(self) -> Iterator[None]:
        """Gives the variables their last values back when training fails."""
        try:
            yield
        except BaseException:
            self.jax_state_sync()
            self._jax_state = None
            raise

    def _naming_the_batch_size(self, function: Callable, steps: int) -> Callable:
        """Says which batch sizes the devices can share where JAX names its shards."""

        def named(state, iterator):
            try:
                return function(state, iterator)
            except ValueError as error:
                if "divi" not in str(error) or "harding" not in str(error):
                    raise
                devices = self.devices_per_batch()
                message = batch_size_message(self.group_size, steps, devices)
                raise ValueError(f"{message}as follows. {error}") from error

        return named

    def _stateless_logs(self, loss: Any, metrics: list) -> tuple[dict, list]:
        mapping = list(zip(self.metrics_variables, metrics, strict=True))
        with keras.StatelessScope(state_mapping=mapping) as scope:
            logs = self.update_logs(loss)
        return logs, [scope.get_current_value(v) for v in self.metrics_variables]


def _shared_by_groups(particles: Any) -> Any:
    """Particles split over the devices by whole groups, where there are several."""
    distribution = keras.distribution.distribution()
    if distribution is None:
        return particles

    def shared(field):
        layout = distribution.get_data_layout(field.shape).backend_layout
        return jax.lax.with_sharding_constraint(field, layout)

    return jax.tree.map(shared, particles)
