"""A narrow decoder of the published one's layers, and a model of its latents."""

import sys

import keras
import numpy as np
from keras_cv.src.models.stable_diffusion.attention_block import AttentionBlock
from keras_cv.src.models.stable_diffusion.padded_conv2d import PaddedConv2D
from keras_cv.src.models.stable_diffusion.resnet_block import ResnetBlock

import keras_imm
from keras_imm.latents import autoencoder_networks


def decoder():
    layers = [
        PaddedConv2D(4, 1),
        PaddedConv2D(32, 3, padding=1),
        ResnetBlock(32),
        AttentionBlock(32),
        keras.layers.UpSampling2D(2),
        ResnetBlock(64),
        keras.layers.GroupNormalization(epsilon=1e-6),
        keras.layers.Activation("swish"),
        PaddedConv2D(3, 3, padding=1),
    ]
    return keras.Sequential([keras.Input((None, None, 4)), *layers], name="decoder")


class NarrowAutoencoder(keras_imm.latents.StableDiffusionVAE):
    """One with seeded weights and no encoder."""

    def __init__(self):
        self.sigma_data, self.batch_size = 0.5, 8
        self.decoder = decoder()
        randomize(self.decoder.variables)


@keras.saving.register_keras_serializable(package="narrow_autoencoder")
class LatentDiT(keras_imm.backbones.DiT):
    """A network that has the exporting process import this module."""


def latent_model():
    model = keras_imm.IMM(
        LatentDiT(
            image_shape=(4, 4, 4),
            patch_size=2,
            hidden_size=16,
            depth=1,
            num_heads=2,
            num_classes=3,
        )
    )
    randomize(model.trainable_variables)
    return model


def randomize(variables):
    rng = np.random.default_rng(0)
    for variable in variables:
        variable.assign(0.3 * rng.standard_normal(variable.shape))


if getattr(sys.modules["__main__"].__spec__, "name", "") == "keras_imm.serving.child":
    autoencoder_networks.build_decoder = decoder
