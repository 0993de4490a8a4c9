"""Keras layers that the backbones are made of."""

from keras_imm.layers.dit_block import DiTBlock
from keras_imm.layers.final_layer import FinalLayer
from keras_imm.layers.patch_embedding import PatchEmbedding
from keras_imm.layers.self_attention import SelfAttention
from keras_imm.layers.sincos_position_embedding import SinCosPositionEmbedding
from keras_imm.layers.timestep_embedding import TimestepEmbedding

__all__ = [
    "DiTBlock",
    "FinalLayer",
    "PatchEmbedding",
    "SelfAttention",
    "SinCosPositionEmbedding",
    "TimestepEmbedding",
]
