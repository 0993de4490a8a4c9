"""Networks (x, c_t, c_s, labels) -> G."""

from keras_imm.backbones.dit import DiT

__all__ = ["DiT"]
