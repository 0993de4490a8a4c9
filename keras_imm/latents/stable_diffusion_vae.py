"""Stable Diffusion's autoencoder, from images to a model's latents and back."""

import os
from typing import Any

import keras
import numpy as np

from keras_imm.latents import autoencoder_networks, diffusers_weights, hub
from keras_imm.latents.normalization import MEAN, denormalize, normalize
from keras_imm.validation import check_integer, check_positive_number

# Images are this many times larger than latents.
DOWNSAMPLING = 8


class StableDiffusionVAE:
    """The autoencoder of Stable Diffusion 1.x, on every backend.

    The networks are KerasCV's and run in float32 whatever the policy, a batch at a
    time. Images and latents are NumPy arrays. The latents that `sample` returns and
    `decode` takes are scaled for a model: see `keras_imm.latents.normalize`. There is
    no factor of 0.18215.

    Made by `from_diffusers` or `from_keras_cv`; the constructor leaves the weights
    random.

    Args:
        sigma_data: Standard deviation of the scaled latents, above 0.
        batch_size: How many images are encoded or decoded at a time.

    Attributes:
        encoder: A `keras.Model` from float32 images (batch, H, W, 3) in [-1, 1] to the
            mean and the log-variance (batch, H / 8, W / 8, 8).
        decoder: A `keras.Model` from float32 latents (batch, h, w, 4), not scaled, to
            images (batch, 8h, 8w, 3), mostly in [-1, 1].

    Raises:
        ImportError: If KerasCV or TensorFlow, which it imports, is not installed.
        ValueError: If an argument is not allowed.

    Example:

    ```python
    vae = keras_imm.latents.StableDiffusionVAE.from_diffusers("sd-vae-ft-ema")
    images = np.zeros((2, 256, 256, 3), "uint8")
    x = vae.sample(vae.encode(images), seed=0)  # float32 (2, 32, 32, 4)
    images = vae.decode(x)  # uint8 (2, 256, 256, 3)
    ```

    Reference:
        - [High-Resolution Image Synthesis with Latent Diffusion Models](
          https://arxiv.org/abs/2112.10752)
    """

    def __init__(self, sigma_data: float = 0.5, batch_size: int = 8):
        check_positive_number("sigma_data", sigma_data)
        check_integer("batch_size", batch_size, at_least=1)
        self.sigma_data = sigma_data
        self.batch_size = batch_size
        self.encoder = autoencoder_networks.build_encoder()
        self.decoder = autoencoder_networks.build_decoder()

    @classmethod
    def from_diffusers(
        cls, path: str | os.PathLike[str], **options: Any
    ) -> "StableDiffusionVAE":
        """Makes the autoencoder with weights of diffusers' `AutoencoderKL`.

        Args:
            path: A safetensors file; a folder that holds
                `diffusion_pytorch_model.safetensors`; or "sd-vae-ft-ema" or
                "sd-vae-ft-mse", which are fetched from the Hugging Face hub.
            **options: Arguments of the constructor.

        Returns:
            The autoencoder.

        Raises:
            ImportError: If KerasCV, TensorFlow or safetensors is not installed.
            OSError: If a name cannot be fetched; the message says what to download.
            ValueError: If the file does not fit; the message names it and the first
                tensor that does not.
        """
        file = hub.find(path)
        vae = cls(**options)
        diffusers_weights.load_weights(file, vae.encoder, vae.decoder)
        return vae

    @classmethod
    def from_keras_cv(
        cls,
        encoder_path: str | os.PathLike[str] | None = None,
        decoder_path: str | os.PathLike[str] | None = None,
        **options: Any,
    ) -> "StableDiffusionVAE":
        """Makes the autoencoder with KerasCV's weights, those of Stable Diffusion 1.4.

        The files hold no factor of 0.18215: KerasCV has it in layers without weights.

        Args:
            encoder_path: KerasCV's `vae_encoder.h5`, or a `.weights.h5` of its
                `ImageEncoder`. By default it is fetched.
            decoder_path: KerasCV's `kcv_decoder.h5`, or a `.weights.h5` of its
                `Decoder`. By default it is fetched.
            **options: Arguments of the constructor.

        Returns:
            The autoencoder.

        Raises:
            ImportError: If KerasCV or TensorFlow is not installed.
            OSError: If its weights cannot be fetched.
            ValueError: If a file does not fit; the message names it.
        """
        if encoder_path is None:
            encoder_path = hub.fetch_keras_cv("encoder")
        if decoder_path is None:
            decoder_path = hub.fetch_keras_cv("decoder")
        vae = cls(**options)
        autoencoder_networks.load_keras_cv_weights(vae.encoder, encoder_path)
        autoencoder_networks.load_keras_cv_weights(vae.decoder, decoder_path)
        return vae

    def encode(self, images: Any) -> tuple[np.ndarray, np.ndarray]:
        """Encodes images to the moments of their latents.

        Args:
            images: (batch, H, W, 3), uint8 or floats in [-1, 1]; H and W multiples
                of 8, above 0.

        Returns:
            Mean and standard deviation, float32 (batch, H / 8, W / 8, 4) each, not
            scaled.

        Raises:
            ValueError: If the images have another shape, dtype or range.
        """
        images = _check_images(images)
        moments = self._run(self.encoder, images, _to_model_range)
        mean, log_variance = np.split(moments, 2, axis=-1)
        return mean, np.exp(0.5 * np.clip(log_variance, -30.0, 20.0))

    def sample(self, moments: tuple[Any, Any], seed: int) -> np.ndarray:
        """Draws latents and scales them for a model.

        Args:
            moments: Mean and standard deviation, as `encode` returns them.
            seed: Integer of at least 0. The same seed gives the same noise on every
                backend.

        Returns:
            float32 (batch, h, w, 4) with standard deviation about `sigma_data`.

        Raises:
            ValueError: If the moments are no pair of one shape or the seed is none.
        """
        check_integer("seed", seed, at_least=0)
        mean, std = _check_moments(moments)
        noise = np.random.default_rng(seed).standard_normal(mean.shape, "float32")
        return normalize(mean + std * noise, self.sigma_data)

    def decode(self, latents: Any) -> np.ndarray:
        """Decodes scaled latents to images.

        Args:
            latents: (batch, h, w, 4), as `sample` returns and a model generates them.

        Returns:
            uint8 (batch, 8h, 8w, 3): `255 clip(0.5 v + 0.5, 0, 1)`, truncated.

        Raises:
            ValueError: If the latents have another shape or are not finite.
        """
        latents = _check_latents("latents", latents)
        images = self._run(self.decoder, denormalize(latents, self.sigma_data))
        return (255 * np.clip(0.5 * images + 0.5, 0, 1)).astype("uint8")

    def _run(self, network, x, prepare=lambda batch: batch):
        """A network on all of x. A short last batch is filled, so as not to compile."""
        outputs = []
        for start in range(0, len(x), self.batch_size):
            batch = prepare(x[start : start + self.batch_size])
            missing = self.batch_size - len(batch) if start else 0
            padding = np.zeros((missing, *batch.shape[1:]), batch.dtype)
            output = network.predict_on_batch(np.concatenate([batch, padding]))
            outputs.append(output[: len(batch)])
        return np.concatenate(outputs)


def _to_model_range(images):
    if images.dtype == np.uint8:
        return images.astype("float32") / 127.5 - 1
    return images.astype("float32")


def _check_images(images):
    images = _to_numpy(images)
    # NumPy does not count bfloat16 among its floats.
    is_bfloat16 = images.dtype.name == "bfloat16"
    is_float = is_bfloat16 or np.issubdtype(images.dtype, np.floating)
    if images.ndim != 4 or images.shape[3] != 3 or not len(images):
        raise ValueError(
            "`images` must have shape (batch, H, W, 3) with a batch of at least 1. "
            f"Received: shape {images.shape}"
        )
    if any(side % DOWNSAMPLING or not side for side in images.shape[1:3]):
        raise ValueError(
            f"H and W of `images` must be multiples of {DOWNSAMPLING}, above 0. "
            f"Received: shape {images.shape}"
        )
    if images.dtype != np.uint8 and not is_float:
        raise ValueError(
            "`images` must be uint8 or floats in [-1, 1]. "
            f"Received: dtype {images.dtype}"
        )
    if is_float and not (images.min() >= -1 and images.max() <= 1):
        raise ValueError(
            "`images` must be uint8 or floats in [-1, 1]. Received: floats in "
            f"[{images.min()}, {images.max()}]"
        )
    return images


def _check_moments(moments):
    if not isinstance(moments, (tuple, list)) or len(moments) != 2:
        raise ValueError(
            "`moments` must be the pair of mean and standard deviation that `encode` "
            f"returns. Received: {type(moments).__name__}"
        )
    mean = _check_latents("moments[0]", moments[0])
    std = _check_latents("moments[1]", moments[1])
    if mean.shape != std.shape:
        raise ValueError(
            "`moments` must be a mean and a standard deviation of one shape. "
            f"Received: shapes {mean.shape} and {std.shape}"
        )
    return mean, std


def _check_latents(name, latents):
    latents = _to_numpy(latents)
    if latents.ndim != 4 or latents.shape[3] != len(MEAN) or not latents.size:
        raise ValueError(
            f"`{name}` must have shape (batch, h, w, {len(MEAN)}) with batch, h and w "
            f"of at least 1. Received: shape {latents.shape}"
        )
    latents = latents.astype("float32")
    if not np.isfinite(latents).all():
        raise ValueError(f"`{name}` must be finite. Received: NaN or infinity")
    return latents


def _to_numpy(x):
    return keras.ops.convert_to_numpy(x) if keras.ops.is_tensor(x) else np.asarray(x)
