"""What can be exported."""

import dataclasses
import os
from typing import Any

import keras
import numpy as np

from keras_imm.files.paths import user_path
from keras_imm.latents import StableDiffusionVAE
from keras_imm.model import FlowMapModel
from keras_imm.pixels import Pixels
from keras_imm.samplers import SamplingPlan
from keras_imm.validation import check_instance


def checked_model(model: Any) -> FlowMapModel:
    """A built model, read if it is the path of one.

    Raises:
        ValueError: If it is neither.
    """
    if isinstance(model, (str, os.PathLike)):
        path = user_path(model)
        if not os.path.isfile(path):
            raise ValueError(f"There is no model file at {str(path)!r}.")
        model = keras.saving.load_model(path)
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


def plan_of(model: FlowMapModel, **arguments: Any) -> SamplingPlan:
    """The model's own plan, with arguments in its place, for any number of steps.

    Warns, once, if it takes labels or a null label that were never trained. The plan's
    grid is left out unless it is one of the arguments: see `Settings.completed`.

    Args:
        model: The model.
        **arguments: Of `SamplingPlan`; None keeps the plan's own.

    Raises:
        ValueError: If an argument is out of its range, or contradicts the plan.
    """
    own = model.own_plan()
    anyhow = dataclasses.replace(own, num_steps=None, time_grid=None)
    plan = anyhow.with_arguments(**arguments)
    model.warn_of_untrained_labels(np.zeros(1, "int32"), plan)  # labels are served
    return plan


def value_range_of(model: FlowMapModel) -> tuple[float, float]:
    """The samples that become the bytes 0 and 255; -1 and 1 where nothing is said.

    Raises:
        ValueError: If the model's `pixels` are no `Pixels` of two numbers, of which the
            scale is positive.
    """
    pixels = model.pixels
    if pixels is None:
        return -1.0, 1.0
    if type(pixels) is Pixels:
        scale, offset = pixels.scale, pixels.offset
        if np.ndim(scale) == np.ndim(offset) == 0 and scale > 0.0:
            return (0.0 - offset) / scale, (255.0 - offset) / scale
    described = f"{type(pixels).__name__}({pixels.get_config()})"
    raise ValueError(
        "`value_range` is needed for a model whose `pixels` are no keras_imm.Pixels of "
        "a positive `scale` and an `offset` for all channels. Received: "
        f"value_range=None, pixels={described}"
    )
