"""Backbones that compute what a test says."""

from collections.abc import Callable
from typing import Any

import keras


class FunctionNetwork(keras.layers.Layer):
    """Calls a function with all inputs of a backbone: x, c_t, c_s and what follows.

    Args:
        function: The network.
        num_classes: As a backbone's.
        augmentation_dim: As a backbone's.
    """

    def __init__(
        self, function: Callable, num_classes: int = 0, augmentation_dim: int = 0
    ):
        super().__init__(autocast=False)
        self.function = function
        self.num_classes = num_classes
        self.augmentation_dim = augmentation_dim

    def call(self, inputs: list, training: bool = False) -> Any:
        return self.function(*inputs)
