"""Few-step generative models in Keras 3: Inductive Moment Matching and others."""

from keras_imm import (
    augmentation,
    averages,
    backbones,
    callbacks,
    checkpoints,
    datasets,
    devices,
    distribution,
    flops,
    kernels,
    latents,
    memory,
    metrics,
    objective,
    objectives,
    optimizers,
    parameterizations,
    pixels,
    presets,
    recipes,
    samplers,
    schedules,
    serving,
    time_distributions,
    time_mappings,
    weightings,
)
from keras_imm.flow_map import FlowMap
from keras_imm.imm import IMM
from keras_imm.model import FlowMapModel
from keras_imm.pixels import DecodedLatents, Pixels
from keras_imm.presets import upload_preset

__version__ = "0.1.0"

distribution.dit_layout_map = backbones.DiT.layout_map  # where it was in 0.1.0

__all__ = [
    "IMM",
    "DecodedLatents",
    "FlowMap",
    "FlowMapModel",
    "Pixels",
    "augmentation",
    "averages",
    "backbones",
    "callbacks",
    "checkpoints",
    "datasets",
    "devices",
    "distribution",
    "flops",
    "kernels",
    "latents",
    "memory",
    "metrics",
    "objective",
    "objectives",
    "optimizers",
    "parameterizations",
    "pixels",
    "presets",
    "recipes",
    "samplers",
    "schedules",
    "serving",
    "time_distributions",
    "time_mappings",
    "upload_preset",
    "weightings",
]
