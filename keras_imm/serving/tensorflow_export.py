"""Writing the SavedModel, in a process that computes with TensorFlow."""

import os
import pathlib

import keras
import tensorflow as tf

from keras_imm.imm import IMM
from keras_imm.latents import StableDiffusionVAE
from keras_imm.serving import server_files
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
    served = serve(load(model), settings, vae)
    tf.saved_model.save(served, str(folder), signatures=served.signatures())
    server_files.write_warmup(folder, served.inputs(), settings.warmup)


def load(model: IMM | str | os.PathLike) -> IMM:
    """The model, read if it is a path."""
    return model if isinstance(model, IMM) else keras.saving.load_model(model)


def serve(
    model: IMM, settings: Settings, vae: StableDiffusionVAE | None = None
) -> ServedModel:
    """The functions to export, on the weights that the settings choose."""
    if settings.guidance_scale is not None and not model.num_classes:
        raise ValueError(
            "`guidance_scale` needs a model with classes. "
            f"Received: guidance_scale={settings.guidance_scale!r}"
        )
    states = model._state()
    values = model._weights(settings.weights)

    def flow_map(x, t, s, label, guidance_scale):
        mapping = list(zip(states, values, strict=True))
        with keras.StatelessScope(state_mapping=mapping):
            return model(x, t, s, label, guidance_scale, training=False)

    decoder = None if vae is None else vae.decoder
    variables = values + ([] if decoder is None else [v.value for v in decoder.weights])
    return ServedModel(model, flow_map, settings, variables, decoder)
