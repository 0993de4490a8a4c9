"""What the hand-written loops are told of a model: numbers and NumPy arrays."""

import dataclasses
import math

import numpy as np

BETA_1, BETA_2, EPSILON = 0.9, 0.999, 1e-8  # of Adam


@dataclasses.dataclass(frozen=True)
class Settings:
    """Of a class-conditional DiT trained by IMM with flow matching and Euler-FM."""

    image_shape: tuple
    patch_size: int
    hidden_size: int
    depth: int
    num_heads: int
    num_classes: int
    group_size: int
    sigma_data: float
    time_scale: float
    max_time: float
    k: float
    min_gap: float
    a: float
    b: float
    label_dropout: float
    learning_rate: float
    ema_momentum: float
    half: bool

    @property
    def grid(self):
        """Rows and columns of patches."""
        height, width, _ = self.image_shape
        return height // self.patch_size, width // self.patch_size

    @property
    def dimension(self):
        return math.prod(self.image_shape)

    @property
    def eta_decrement(self):
        return self.max_time / (1 - self.max_time) / 2**self.k

    @classmethod
    def of(cls, model, learning_rate, ema_momentum):
        """Those of a `keras_imm.IMM` of a `DiT`."""
        backbone = model.backbone
        names = ("image_shape", "patch_size", "hidden_size", "depth", "num_heads")
        own = ("group_size", "sigma_data", "time_scale", "max_time", "label_dropout")
        return cls(
            **{name: getattr(backbone, name) for name in (*names, "num_classes")},
            **{name: getattr(model, name) for name in own},
            k=model.time_mapping.k,
            min_gap=model.time_mapping.min_gap,
            a=model.weighting.a,
            b=model.weighting.b,
            learning_rate=learning_rate,
            ema_momentum=ema_momentum,
            half=backbone.compute_dtype == "bfloat16",
        )


def weights_of(model, trainable=False):
    """(Trainable) weights of a model's backbone by their path, as NumPy arrays."""
    import keras

    backbone = model.backbone
    return {
        path_in(backbone, v): np.array(keras.ops.convert_to_numpy(v))
        for v in (backbone.trainable_weights if trainable else backbone.weights)
        if "seed_generator" not in v.path
    }


def trained_weights_of(model):
    """Trainable weights and their averages, as the loops' `weights` gives them."""
    import keras

    trained = weights_of(model, trainable=True)
    averages = model.optimizer._model_variables_moving_average
    names = [path_in(model.backbone, v) for v in model.backbone.trainable_weights]
    return trained | {
        f"average/{name}": keras.ops.convert_to_numpy(v)
        for name, v in zip(names, averages, strict=True)
    }


def path_in(backbone, variable):
    """Path of a variable without the names of what the backbone is part of."""
    return variable.path.split(f"{backbone.name}/")[-1]
