"""Inductive Moment Matching in Keras 3: train few-step generators from scratch."""

from keras_imm import (
    augmentation,
    backbones,
    callbacks,
    checkpoints,
    datasets,
    devices,
    distribution,
    flops,
    kernels,
    latents,
    metrics,
    objective,
    optimizers,
    parameterizations,
    recipes,
    samplers,
    schedules,
    serving,
    time_mappings,
    weightings,
)
from keras_imm.imm import IMM

__version__ = "0.1.0"

__all__ = [
    "IMM",
    "augmentation",
    "backbones",
    "callbacks",
    "checkpoints",
    "datasets",
    "devices",
    "distribution",
    "flops",
    "kernels",
    "latents",
    "metrics",
    "objective",
    "optimizers",
    "parameterizations",
    "recipes",
    "samplers",
    "schedules",
    "serving",
    "time_mappings",
    "weightings",
]
