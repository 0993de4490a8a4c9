"""What JAX compiles, as functions of TensorFlow: `native=True`."""

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from keras_imm.flow_map import FlowMap
from keras_imm.samplers import Pushforward
from keras_imm.serving.settings import Settings
from keras_imm.serving.signatures import ServedModel


def serve(
    flow: FlowMap,
    settings: Settings,
    functions: dict[str, Callable],
    weights: list,
    decode: Callable | None,
    decoder_weights: list,
) -> ServedModel:
    """The functions to export, each one operation that XLA runs.

    Args:
        flow: Built flow map.
        settings: Completed settings.
        functions: JAX functions of the weights and what `ServedModel` calls them with.
        weights: Their weights.
        decode: JAX function of the decoder's weights and latents, or None.
        decoder_weights: Its weights.
    """
    if not isinstance(settings.plan.sampler, Pushforward):
        raise ValueError(
            '`native=True` takes sampler="pushforward". '
            f"Received: sampler={settings.plan.sampler!r}"
        )
    variables = [_variable(value) for value in weights]
    decoder_variables = [_variable(value) for value in decoder_weights]
    return ServedModel(
        flow,
        {name: _of_rows(function, variables) for name, function in functions.items()},
        settings,
        [*variables, *decoder_variables],
        None if decode is None else _of_rows(decode, decoder_variables),
    )


def _variable(value: Any) -> tf.Variable:
    return tf.Variable(np.asarray(value), trainable=False)


def _of_rows(function: Callable, variables: list) -> Callable:
    """The function on TensorFlow's tensors, for any number of rows.

    Arguments that are None stay so; scalars become rows.
    """
    from jax.experimental import jax2tf

    def converted(*arguments):
        batch = tf.shape(arguments[0])[0]
        present = [i for i, x in enumerate(arguments) if x is not None]

        def of_present(values, *tensors):
            full = [None] * len(arguments)
            for i, tensor in zip(present, tensors, strict=True):
                full[i] = tensor
            return function(values, *full)

        tensors = []
        for i in present:
            x = tf.convert_to_tensor(arguments[i])
            tensors.append(x if x.shape.rank else tf.fill([batch], x))
        shapes = [", ".join(["b", *map(str, x.shape[1:])]) for x in tensors]
        native = jax2tf.convert(
            of_present,
            with_gradient=False,
            polymorphic_shapes=[None, *(f"({shape})" for shape in shapes)],
        )
        return native(variables, *tensors)

    return converted
