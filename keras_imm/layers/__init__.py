"""Keras layers that the backbones are made of."""

from keras_imm.layers.dit_block import DiTBlock
from keras_imm.layers.final_layer import FinalLayer
from keras_imm.layers.fourier_embedding import FourierEmbedding
from keras_imm.layers.patch_embedding import PatchEmbedding
from keras_imm.layers.positional_embedding import PositionalEmbedding
from keras_imm.layers.self_attention import SelfAttention
from keras_imm.layers.sincos_position_embedding import SinCosPositionEmbedding
from keras_imm.layers.timestep_embedding import TimestepEmbedding
from keras_imm.layers.unet_block import UNetBlock

__all__ = [
    "DiTBlock",
    "FinalLayer",
    "FourierEmbedding",
    "PatchEmbedding",
    "PositionalEmbedding",
    "SelfAttention",
    "SinCosPositionEmbedding",
    "TimestepEmbedding",
    "UNetBlock",
]
