"""Keras's hooks under TensorFlow."""

import re
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf


class TrainableModel(keras.Model):
    """A `keras.Model` that trains by the `TrainStep` that it is given.

    It overrides Keras's hooks and calls the step and Keras, nothing else.
    """

    step = None

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
