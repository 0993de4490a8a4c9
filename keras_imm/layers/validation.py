"""Checks that the constructors of layers and backbones share."""

from typing import Any

import numpy as np

from keras_imm.validation import check_boolean


def check_image_shape(name: str, value: Any) -> None:
    """Raises ValueError unless `value` is three positive integers."""
    is_shape = isinstance(value, (tuple, list)) and len(value) == 3
    if not is_shape or not all(
        isinstance(side, (int, np.integer)) and not isinstance(side, bool) and side > 0
        for side in value
    ):
        raise ValueError(
            f"`{name}` must be three positive integers (height, width, channels). "
            f"Received: {name}={value!r}"
        )


def check_divides(name: str, value: int, what: str, whole: int) -> None:
    """Raises ValueError unless `value` divides `whole`, which `what` describes."""
    if whole % value != 0:
        raise ValueError(
            f"`{name}` must divide {what}, which is {whole}. Received: {name}={value!r}"
        )


def check_no_weights(load_weights: bool, preset: str) -> None:
    """Raises ValueError if weights are asked for of a preset that is a size alone."""
    check_boolean("load_weights", load_weights)
    if load_weights:
        raise ValueError(
            f"Preset {preset!r} is a size and has no weights. Trained models are made "
            "by keras_imm.FlowMapModel.from_preset (keras_imm.presets.names() lists "
            "those that come with the library) and keras_imm.checkpoints.load_official."
            f" Received: load_weights={load_weights!r}"
        )
