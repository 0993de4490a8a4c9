"""Averages of the weights that an objective's target takes."""

import contextlib
from collections.abc import Mapping
from typing import Any

import keras
from keras import ops

from keras_imm.backend import keras_private
from keras_imm.backend.random_streams import random_states
from keras_imm.flow_map import replaced_values
from keras_imm.validation import check_instance, check_rate


class AveragedWeights:
    """Exponential averages of a network's weights, float32, updated once per step.

    Args:
        backbone: The built network.
        momenta: Momentum in [0, 1) by the name of the averages.

    Attributes:
        variables: By name the averages, in the order of the backbone's weights. Who
            saves and loads the network keeps them, too.
    """

    def __init__(self, backbone: keras.layers.Layer, momenta: Mapping[str, float]):
        check_instance("backbone", backbone, keras.layers.Layer)
        check_momenta(momenta, "momenta")
        self._momenta = dict(momenta)
        self._backbone = backbone
        self._weights = keras_private.weights_made_trainable(backbone)
        self.variables = {
            name: [_like(weight, name) for weight in self._weights]
            for name in self._momenta
        }

    def values(self, name: str, has_begun: Any) -> contextlib.AbstractContextManager:
        """Inside, the backbone has the averages of that name for weights.

        Args:
            name: One of the names.
            has_begun: Boolean scalar tensor: whether there has been a step. Before it
                the averages are the weights. None for never.

        Raises:
            ValueError: If there are no averages of that name.
        """
        if name not in self.variables:
            names = ", ".join(map(repr, self.variables)) or "none"
            raise ValueError(
                f"The objective's `averages` are {names}. Received: {name!r}"
            )
        if has_begun is None:
            return contextlib.nullcontext()
        pairs = zip(self._weights, self.variables[name], strict=True)
        values = {
            id(weight): ops.where(
                has_begun, ops.cast(average.value, weight.dtype), weight.value
            )
            for weight, average in pairs
        }
        variables = self._backbone.weights + random_states(self._backbone)
        return replaced_values(variables, values)

    def update(self, before: Any, after: Any) -> None:
        """Moves the averages towards the weights, after an optimizer step.

        Args:
            before: The optimizer's count of steps before it. Before the first step
                there are no averages: they become the weights.
            after: Its count afterwards; the same if the step was skipped.
        """
        for name, momentum in self._momenta.items():
            keep = ops.where(before > 0, float(momentum), 0.0)
            keep = ops.cast(ops.where(after > before, keep, 1.0), "float32")
            for weight, average in zip(
                self._weights, self.variables[name], strict=True
            ):
                value = ops.cast(weight.value, "float32")
                average.assign(keep * average.value + (1.0 - keep) * value)


def check_momenta(momenta: Mapping[str, float], argument: str = "averages") -> None:
    """Raises ValueError unless an objective's `averages` are names and momenta."""
    check_instance(argument, momenta, Mapping)
    for name, momentum in momenta.items():
        if not isinstance(name, str) or not name or "/" in name:
            raise ValueError(
                "`averages` must have non-empty names without a slash, which become "
                f"part of paths. Received: {name!r}"
            )
        check_rate(f"averages[{name!r}]", momentum)


def _like(weight: keras.Variable, name: str) -> keras.Variable:
    """A variable for the average of a weight, whose path ends as the weight's does.

    Layouts of shards are found by paths.
    """
    *scopes, last = weight.path.split("/")
    with contextlib.ExitStack() as stack:
        for scope in (f"{name}_average", *scopes):
            stack.enter_context(keras.name_scope(scope))
        return keras.Variable(
            "zeros",
            shape=weight.shape,
            dtype="float32",
            trainable=False,
            aggregation="only_first_replica",
            name=last,
        )
