"""Keras's hooks under TensorFlow."""

import contextlib
import re
from collections.abc import Callable, Iterator
from typing import Any

import keras
import tensorflow as tf

from keras_imm.backend.tensorflow.data import value_error


class TrainableModel(keras.Model):
    """A `keras.Model` that trains by the `TrainStep` that it is given.

    It overrides Keras's hooks and calls the step and Keras, nothing else.
    """

    step = None

    def hold_values(self) -> None:
        """Nothing: variables have their values at any time."""

    def train_step(self, data: Any) -> dict:
        if not self.built:  # before a loop, which must not create variables
            x, _, _ = keras.utils.unpack_x_y_sample_weight(data)
            self.build(tuple(x.shape))
        return self.step.train(data, self.trainable_variables)

    def test_step(self, data: Any) -> dict:
        return self.step.test(data)

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

    def fit(self, *args: Any, **kwargs: Any) -> Any:
        with _value_errors():
            return super().fit(*args, **kwargs)

    def evaluate(self, *args: Any, **kwargs: Any) -> Any:
        with _value_errors():
            return super().evaluate(*args, **kwargs)


def _raise_value_error(function: Callable) -> Callable:
    """Has a function raise the ValueErrors of eager code."""

    def checked(*args):
        with _value_errors():
            return function(*args)

    return checked


@contextlib.contextmanager
def _value_errors() -> Iterator[None]:
    """Turns failed checks in a graph or a pipeline into ValueErrors of eager code."""
    try:
        yield
    except tf.errors.InvalidArgumentError as error:
        found = value_error(error)
        if found is None:
            size = re.search(r"(The batch size must be .*?)\] \[(\d+)\]", str(error))
            if not size:
                raise
            found = ValueError("".join(size.groups()))
        raise found from None
