"""What JAX compiles, as functions of TensorFlow: `native=True`."""

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from keras_imm.imm import IMM
from keras_imm.serving.settings import Settings
from keras_imm.serving.signatures import ServedModel


def serve(
    model: IMM,
    settings: Settings,
    flow_map: Callable,
    weights: list,
    decode: Callable | None,
    decoder_weights: list,
) -> ServedModel:
    """The functions to export, each one operation that XLA runs.

    Args:
        model: Built model.
        settings: Checked settings.
        flow_map: JAX function of the weights and the flow map's arguments.
        weights: Its weights.
        decode: JAX function of the decoder's weights and latents, or None.
        decoder_weights: Its weights.
    """
    if settings.sampler != "pushforward":
        raise ValueError(
            '`native=True` takes sampler="pushforward". '
            f"Received: sampler={settings.sampler!r}"
        )
    variables = [_variable(value) for value in weights]
    decoder_variables = [_variable(value) for value in decoder_weights]
    return ServedModel(
        model,
        _of_rows(flow_map, variables),
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
