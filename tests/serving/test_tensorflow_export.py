"""Writing the SavedModel with an autoencoder in it."""

import keras
import numpy as np
from served_models import on_tensorflow

import keras_imm


class Autoencoder(keras_imm.latents.StableDiffusionVAE):
    def __init__(self, decoder, sigma_data):
        self.decoder, self.sigma_data = decoder, sigma_data


def trained_latent_model():
    backbone = keras_imm.backbones.DiT(
        image_shape=(4, 4, 4), patch_size=2, hidden_size=16, depth=1, num_heads=2
    )
    model = keras_imm.IMM(backbone)
    for v in model.trainable_variables:
        v.assign(0.3 * np.random.default_rng(0).standard_normal(v.shape))
    return model


@on_tensorflow
def test_latents_are_decoded(model, served):
    """With a stand-in for the autoencoder, which doubles the sides of an image."""
    import tensorflow as tf

    from keras_imm.latents import denormalize

    latents = trained_latent_model()
    inputs = keras.Input((None, None, 4))
    x = keras.layers.Conv2DTranspose(3, 2, 2, activation="tanh")(inputs)
    vae = Autoencoder(keras.Model(inputs, x), sigma_data=0.5)
    signatures = served(latents, latents=vae)
    z = np.random.default_rng(0).standard_normal((2, 4, 4, 4)).astype("float32")
    found = signatures["decode"](latents=tf.constant(z))["image"].numpy()
    pixels = vae.decoder(denormalize(z), training=False).numpy()
    np.testing.assert_array_equal(
        found, (255 * np.clip(0.5 * pixels + 0.5, 0, 1)).astype("uint8")
    )
    images = signatures["serving_default"](seed=tf.constant([1, 2], tf.int64))
    assert images["image"].shape == (2, 8, 8, 3)
