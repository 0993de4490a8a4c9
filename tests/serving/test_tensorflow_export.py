"""Writing the SavedModel with an autoencoder in it."""

import errno
import os

import keras
import numpy as np
import pytest
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


@pytest.mark.one_backend("files are TensorFlow's on each")
@pytest.mark.parametrize(
    "number", [errno.EFBIG, errno.ENOSPC, errno.EACCES, errno.EROFS]
)
def test_errors_of_files_are_those_of_python(number):
    """By TensorFlow's own errors, of which those of its file system end so."""
    tf = pytest.importorskip("tensorflow")
    from keras_imm.serving.tensorflow_export import os_errors

    message = f"folder/variables; {os.strerror(number)}"
    with pytest.raises(OSError, match="folder/variables") as raised, os_errors():
        raise tf.errors.OutOfRangeError(None, None, message)
    assert raised.value.errno == number
    with pytest.raises(tf.errors.OutOfRangeError), os_errors():
        raise tf.errors.OutOfRangeError(None, None, "End of sequence")


@pytest.mark.one_backend("files are TensorFlow's on each")
def test_a_file_that_tensorflow_cannot_write(tmp_path):
    tf = pytest.importorskip("tensorflow")
    from keras_imm.serving.tensorflow_export import os_errors

    place = tmp_path / "file" / "below"
    place.parent.write_text("no folder")
    with pytest.raises(NotADirectoryError, match="below"), os_errors():
        tf.io.write_file(str(place), "content")


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
