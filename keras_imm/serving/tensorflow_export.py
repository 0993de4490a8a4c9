"""Writing the SavedModel, in a process that computes with TensorFlow."""

import contextlib
import errno
import functools
import os
import pathlib
from collections.abc import Iterator
from typing import Any

import keras

from keras_imm import backend
from keras_imm.flow_map import FlowMap
from keras_imm.latents import StableDiffusionVAE, denormalize
from keras_imm.serving import server_files
from keras_imm.serving.settings import Settings
from keras_imm.serving.signatures import ServedModel


def write(
    flow: FlowMap,
    values: list,
    folder: pathlib.Path,
    settings: Settings,
    vae: StableDiffusionVAE | None = None,
) -> None:
    """Writes `saved_model.pb` and what belongs to it.

    Args:
        flow: Built flow map.
        values: Values of its variables.
        folder: Where to write; it exists.
        settings: Completed settings.
        vae: Autoencoder whose decoder to include, or None.

    Raises:
        OSError: If the disk is full or read-only, among others.
    """
    served = serve(flow, values, settings, vae)
    with os_errors():
        served.save(folder)
        server_files.write_warmup(folder, served.inputs(), settings.warmup)


@contextlib.contextmanager
def os_errors() -> Iterator[None]:
    """TensorFlow's errors of files as Python's.

    Raises:
        OSError: If TensorFlow's message ends in that of the system: a file too large is
            its OutOfRangeError, a full disk its ResourceExhaustedError.
    """
    import tensorflow as tf

    try:
        yield
    except tf.errors.OpError as error:
        said = error.message.partition(" [Op:")[0]
        for number in errno.errorcode:
            if said.endswith(f"; {os.strerror(number)}"):
                raise OSError(number, error.message) from error
        raise


def serve(
    flow: FlowMap,
    values: list,
    settings: Settings,
    vae: StableDiffusionVAE | None = None,
) -> ServedModel:
    """The functions to export, on the given weights.

    Under JAX they are what it compiles, as jax2tf puts it into TensorFlow.
    """
    interval = settings.plan.guidance_interval
    functions = {
        name: functools.partial(_stateless, flow.variables, function)
        for name, function in (
            ("flow_map", lambda x, t, s, *given: flow(x, t, s, *given, interval)),
            (
                "output",
                lambda x, t, s, label, scale: flow.output(
                    x, t, s, label, guidance_scale=scale, guidance_interval=interval
                ),
            ),
            (
                "velocity",
                lambda x, t, label, scale: flow.velocity(
                    x, t, label, guidance_scale=scale, guidance_interval=interval
                ),
            ),
        )
    }
    decode, decoder_weights = None, []
    if vae is not None:
        decode = functools.partial(_stateless, vae.decoder.variables, _decoder(vae))
        decoder_weights = [v.value for v in vae.decoder.variables]
    if backend.name() == "jax":
        from keras_imm.serving import jax_functions

        return jax_functions.serve(
            flow, settings, functions, values, decode, decoder_weights
        )
    return ServedModel(
        flow,
        {
            name: functools.partial(function, values)
            for name, function in functions.items()
        },
        settings,
        [*values, *decoder_weights],
        None if decode is None else functools.partial(decode, decoder_weights),
    )


def _stateless(variables: list, function: Any, values: list, *arguments: Any) -> Any:
    """A function of Keras variables as one of their values."""
    mapping = list(zip(variables, values, strict=True))
    with keras.StatelessScope(state_mapping=mapping):
        return function(*arguments)


def _decoder(vae: StableDiffusionVAE) -> Any:
    """A model's latents to images in [-1, 1]."""

    def decode(latents):
        return vae.decoder(denormalize(latents, vae.sigma_data), training=False)

    return decode
