"""Keras's hooks under JAX."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import keras

from keras_imm.backend.jax.train_step import devices_per_batch


class TrainableModel(keras.Model):
    """A `keras.Model` that trains by the `TrainStep` that it is given.

    It overrides Keras's hooks and calls the step and Keras, nothing else.
    """

    step = None
    _training_thread = None

    def train_step(self, state: tuple, data: Any) -> tuple[dict, tuple]:
        return self.step.train(
            state, data, self.trainable_variables, self.non_trainable_variables
        )

    def test_step(self, state: tuple, data: Any) -> tuple[dict, tuple]:
        return self.step.test(
            state, data, self.trainable_variables, self.non_trainable_variables
        )

    def make_train_function(self, force: bool = False) -> None:
        if self.train_function is None or force:
            super().make_train_function(force=True)
            self.train_function = self._naming_the_batch_size(
                self.train_function, training=True
            )

    def make_test_function(self, force: bool = False) -> None:
        if self.test_function is None or force:
            super().make_test_function(force=True)
            self.test_function = self._naming_the_batch_size(
                self.test_function, training=False
            )

    def fit(self, *args: Any, **kwargs: Any) -> Any:
        self._training_thread = threading.get_ident()
        try:
            with self._variables_put_back():
                return super().fit(*args, **kwargs)
        finally:
            self._training_thread = None

    def hold_values(self) -> None:
        """Gives the variables their present values, which a training step takes.

        Raises:
            RuntimeError: If another thread trains the model.
        """
        if self._training_thread in (None, threading.get_ident()):
            self.jax_state_sync()
            return
        raise RuntimeError(
            "`fit` is training this model in another thread and under JAX has its "
            "weights: sample in a callback of `fit`, or sample a copy, such as "
            "a model of `clone_backbone()` that was made before."
        )

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

    def _naming_the_batch_size(self, function: Callable, training: bool) -> Callable:
        """Says which batch sizes the devices can share where JAX names its shards."""

        def named(state, iterator):
            try:
                return function(state, iterator)
            except ValueError as error:
                if "divi" not in str(error) or "harding" not in str(error):
                    raise
                message = self.step.batch_size_message(training, devices_per_batch())
                raise ValueError(f"{message}as follows. {error}") from error

        return named
