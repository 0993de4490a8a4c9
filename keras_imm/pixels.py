"""From a model's samples to images of bytes."""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from keras_imm import latents
from keras_imm.latents.hub import PUBLISHED
from keras_imm.validation import check_choice, check_number, check_positive_number


@keras.saving.register_keras_serializable(package="keras_imm")
class Pixels:
    """Images of bytes: clip(round(scale samples + offset), 0, 255).

    Args:
        scale: Finite number, or a list of one for each channel, the last axis. Default
            of this and of the next: samples in [-1, 1].
        offset: Finite number, or a list of one for each channel.

    Call arguments:
        samples: Floats of shape (..., channels), as `generate` returns them.

    Returns:
        uint8 array of the shape of `samples`.

    Raises:
        ValueError: If an argument is not so, or a sample is not finite.

    Example:

    ```python
    # Trained on images with mean 0 and standard deviation 0.5.
    model.pixels = keras_imm.Pixels(scale=images.std() / 0.5, offset=images.mean())
    pictures = model.to_uint8(model.generate(labels=[3, 1, 4]))
    ```
    """

    def __init__(
        self,
        scale: float | Sequence[float] = 127.5,
        offset: float | Sequence[float] = 127.5,
    ):
        self.scale = _checked("scale", scale)
        self.offset = _checked("offset", offset)

    def __call__(self, samples: Any) -> np.ndarray:
        samples = np.asarray(samples, "float64")
        if not np.all(np.isfinite(samples)):
            raise ValueError("`samples` must be finite to become pixels.")
        for name in ("scale", "offset"):
            value = getattr(self, name)
            if np.ndim(value) and samples.shape[-1:] != (len(value),):
                raise ValueError(
                    f"`samples` must have {len(value)} channels, as many as `{name}`. "
                    f"Received: shape {samples.shape}"
                )
        pixels = np.asarray(self.scale) * samples + np.asarray(self.offset)
        return np.clip(np.rint(pixels), 0, 255).astype("uint8")

    def get_config(self) -> dict[str, Any]:
        """Constructor arguments, for saving."""
        return {"scale": self.scale, "offset": self.offset}

    @classmethod
    def from_config(cls, config: dict) -> "Pixels":
        """The object that `get_config` described."""
        return cls(**config)


@keras.saving.register_keras_serializable(package="keras_imm")
class DecodedLatents:
    """Images of bytes from samples of latents, by Stable Diffusion's autoencoder.

    It is fetched, or found in the hub's cache, at the first call.

    Args:
        autoencoder: "sd-vae-ft-ema" or "sd-vae-ft-mse".
        sigma_data: Standard deviation of the latents. Positive.

    Call arguments:
        samples: Floats of shape (batch, h, w, 4), as `generate` returns them.

    Returns:
        uint8 array (batch, 8h, 8w, 3).

    Raises:
        ValueError: If an argument is out of its range.
        ImportError: If KerasCV, TensorFlow or safetensors is not installed.
        OSError: If the autoencoder cannot be fetched.
    """

    def __init__(self, autoencoder: str = "sd-vae-ft-ema", sigma_data: float = 0.5):
        check_choice("autoencoder", autoencoder, PUBLISHED)
        check_positive_number("sigma_data", sigma_data)
        self.autoencoder = autoencoder
        self.sigma_data = float(sigma_data)
        self._decoder = None

    def __call__(self, samples: Any) -> np.ndarray:
        if self._decoder is None:
            self._decoder = latents.StableDiffusionVAE.from_diffusers(
                self.autoencoder, sigma_data=self.sigma_data
            )
        return self._decoder.decode(samples)

    def get_config(self) -> dict[str, Any]:
        """Constructor arguments, for saving."""
        return {"autoencoder": self.autoencoder, "sigma_data": self.sigma_data}

    @classmethod
    def from_config(cls, config: dict) -> "DecodedLatents":
        """The object that `get_config` described."""
        return cls(**config)


def _checked(name: str, value: Any) -> float | list[float]:
    """A finite number, or a list of them, in plain types."""
    if np.ndim(value) > 1 or (np.ndim(value) == 1 and not len(value)):
        raise ValueError(
            f"`{name}` must be a finite number, or one for each channel. "
            f"Received: {name}={value!r}"
        )
    numbers = list(value) if np.ndim(value) else [value]
    for number in numbers:
        check_number(
            name, number, "a finite number, or one for each channel", lambda _: True
        )
    numbers = [float(number) for number in numbers]
    return numbers if np.ndim(value) else numbers[0]
