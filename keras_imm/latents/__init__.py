"""Latents of Stable Diffusion's autoencoder: encoding, scaling, storing, decoding."""

from keras_imm.latents.normalization import denormalize, normalize
from keras_imm.latents.stable_diffusion_vae import StableDiffusionVAE

__all__ = ["StableDiffusionVAE", "denormalize", "normalize"]
