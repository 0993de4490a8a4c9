"""Writing the SavedModel, in a process that computes with TensorFlow."""

import functools
import os
import pathlib
from typing import Any

import keras

from keras_imm.imm import IMM
from keras_imm.latents import StableDiffusionVAE, denormalize
from keras_imm.serving import server_files
from keras_imm.serving.checks import check_latents, check_model
from keras_imm.serving.settings import Settings
from keras_imm.serving.signatures import ServedModel


def write(
    model: IMM | str | os.PathLike,
    folder: pathlib.Path,
    settings: Settings,
    vae: StableDiffusionVAE | None,
) -> None:
    """Writes `saved_model.pb` and what belongs to it.

    Args:
        model: Built model, or the path of a saved one.
        folder: Where to write; it exists.
        settings: Checked settings.
        vae: Autoencoder whose decoder to include, or None.
    """
    model = load(model)
    check_latents(vae, model)
    served = serve(model, settings, vae)
    served.save(folder)
    server_files.write_warmup(folder, served.inputs(), settings.warmup)


def load(model: IMM | str | os.PathLike, safe_mode: bool | None = None) -> IMM:
    """The model, read if it is a path.

    Args:
        model: An `IMM` or the path of one.
        safe_mode: As in `keras.saving.load_model`.

    Raises:
        ValueError: If the file holds another model.
    """
    if not isinstance(model, IMM):
        options = {} if safe_mode is None else {"safe_mode": safe_mode}
        model = keras.saving.load_model(model, **options)
        check_model(model)
    return model


def serve(
    model: IMM, settings: Settings, vae: StableDiffusionVAE | None = None
) -> ServedModel:
    """The functions to export, on the weights that the settings choose.

    Under JAX they are what it compiles, as jax2tf puts it into TensorFlow.
    """
    if settings.guidance_scale is not None and not model.num_classes:
        raise ValueError(
            "`guidance_scale` needs a model with classes. "
            f"Received: guidance_scale={settings.guidance_scale!r}"
        )
    flow_map = functools.partial(_stateless, model._state(), model)
    weights = model._weights(settings.weights)
    decode, decoder_weights = None, []
    if vae is not None:
        decode = functools.partial(_stateless, vae.decoder.variables, _decoder(vae))
        decoder_weights = [v.value for v in vae.decoder.variables]
    if keras.backend.backend() == "jax":
        from keras_imm.serving import jax_functions

        return jax_functions.serve(
            model, settings, flow_map, weights, decode, decoder_weights
        )
    return ServedModel(
        model,
        functools.partial(flow_map, weights),
        settings,
        [*weights, *decoder_weights],
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
