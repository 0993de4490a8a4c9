"""Networks (x, c_t, c_s, labels) -> G."""

from keras_imm.backbones.dit import DiT
from keras_imm.backbones.unet import UNet

__all__ = ["DiT", "UNet"]
