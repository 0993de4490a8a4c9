"""The smallest network that has all parts of a DiT."""

from typing import Any

import keras_imm


def small_dit(**options: Any) -> keras_imm.backbones.DiT:
    defaults = {
        "image_shape": (4, 4, 1),
        "patch_size": 2,
        "hidden_size": 16,
        "depth": 1,
        "num_heads": 2,
        "num_classes": 3,
    }
    return keras_imm.backbones.DiT(**defaults | options)
