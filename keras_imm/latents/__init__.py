"""Latents of Stable Diffusion's autoencoder: encoding, scaling, storing, decoding."""

from keras_imm.latents.normalization import denormalize, normalize

__all__ = ["denormalize", "normalize"]
