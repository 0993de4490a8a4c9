"""KerasCV's Stable Diffusion encoder and decoder, without its factor of 0.18215."""

import os

import keras

from keras_imm.backend import keras_private
from keras_imm.files.paths import user_path

# The published autoencoder's; KerasCV has 1e-5.
EPSILON = 1e-6


def build_encoder() -> keras.Sequential:
    """The encoder: images in [-1, 1] to the mean and log-variance of latents.

    Returns:
        A float32 model from (batch, H, W, 3) to (batch, H / 8, W / 8, 8).

    Raises:
        ImportError: If KerasCV or TensorFlow, which it imports, is not installed.
    """
    image_encoder, _ = _keras_cv()
    with _AsPublished():
        layers = image_encoder(download_weights=False).layers
        # The last one keeps the mean alone and scales it.
        return _sequential("encoder", (None, None, 3), layers[:-1])


def build_decoder() -> keras.Sequential:
    """The decoder: latents to images, mostly in [-1, 1].

    Returns:
        A float32 model from (batch, h, w, 4) to (batch, 8h, 8w, 3).

    Raises:
        ImportError: If KerasCV or TensorFlow, which it imports, is not installed.
    """
    _, decoder = _keras_cv()
    with _AsPublished():
        layers = decoder(64, 64, download_weights=False).layers
        # The first one divides by 0.18215.
        return _sequential("decoder", (None, None, 4), layers[1:])


def load_keras_cv_weights(network: keras.Model, path: str | os.PathLike[str]) -> None:
    """Loads weights that KerasCV's `ImageEncoder` or `Decoder` were saved with.

    They hold no factor of 0.18215, which is in layers without weights.

    Args:
        network: What `build_encoder` or `build_decoder` returns.
        path: A `.h5` file as KerasCV publishes them, or a `.weights.h5`.

    Raises:
        ValueError: If the file does not fit; the message names it. The weights may
            have changed in part.
    """
    path = user_path(path)
    if not path.is_file() or path.suffix != ".h5":
        raise ValueError(
            f"The weights of KerasCV's {network.name} must be a file ending in .h5. "
            f"Received: {str(path)!r}"
        )
    try:
        network.load_weights(path)
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise ValueError(
            f"{path} does not hold the weights of KerasCV's {network.name}: {error}"
        ) from error


def _keras_cv():
    try:
        from keras_cv.models.stable_diffusion import Decoder, ImageEncoder
    except ImportError as error:
        raise ImportError(
            "The autoencoder is KerasCV's, which imports TensorFlow on every backend: "
            f'`pip install "keras_imm[latents]"`. ({error})'
        ) from error
    return ImageEncoder, Decoder


def _sequential(name, input_shape, layers):
    for layer in (one for each in layers for one in keras_private.all_layers(each)):
        if isinstance(layer, keras.layers.GroupNormalization):
            layer.epsilon = EPSILON
    return keras.Sequential([keras.Input(input_shape), *layers], name=name)


class _AsPublished:
    """Builds layers in float32, channels last, whatever Keras's settings say.

    KerasCV's take no dtype and no data format.
    """

    def __enter__(self):
        self.policy = keras.config.dtype_policy()
        self.data_format = keras.config.image_data_format()
        keras.config.set_dtype_policy("float32")
        keras.config.set_image_data_format("channels_last")

    def __exit__(self, *exception):
        keras.config.set_dtype_policy(self.policy)
        keras.config.set_image_data_format(self.data_format)
