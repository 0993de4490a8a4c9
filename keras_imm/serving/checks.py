"""What can be exported."""

import os
from typing import Any

import keras

from keras_imm.latents import StableDiffusionVAE
from keras_imm.model import FlowMapModel
from keras_imm.validation import check_instance


def checked_model(model: Any) -> FlowMapModel:
    """A built model, read if it is the path of one.

    Raises:
        ValueError: If it is neither.
    """
    if isinstance(model, (str, os.PathLike)):
        if not os.path.isfile(model):
            raise ValueError(f"There is no model file at {os.fspath(model)!r}.")
        model = keras.saving.load_model(model)
    check_instance("model", model, FlowMapModel)
    if not model.built:
        raise ValueError(
            "`model` must be built: train it, call it on data, or `build` it."
        )
    if None in model.data_shape:
        raise ValueError(
            "`model` must be built for data of one shape. "
            f"Received: a model of data of the shape {model.data_shape}"
        )
    return model


def check_latents(latents: Any, model: FlowMapModel) -> None:
    """Raises ValueError unless it is None or an autoencoder of the model's latents."""
    if latents is None:
        return
    check_instance("latents", latents, StableDiffusionVAE)
    channels = latents.decoder.input_shape[-1]
    if model.data_shape[-1] != channels:
        raise ValueError(
            f"`latents` decodes {channels} channels. Received: a model of data of the "
            f"shape {model.data_shape}"
        )
