"""Published autoencoders by name, and where they are."""

import os
import pathlib

from keras_imm.files.downloads import fetch_from_hub, fetch_url
from keras_imm.latents.diffusers_weights import FILENAME, find_file

PUBLISHED = ("sd-vae-ft-ema", "sd-vae-ft-mse")
# Where KerasCV has its own, with their SHA-256: those of Stable Diffusion 1.4.
KERAS_CV = {
    "encoder": (
        "https://huggingface.co/fchollet/stable-diffusion/resolve/main/vae_encoder.h5",
        "c60fb220a40d090e0f86a6ab4c312d113e115c87c40ff75d11ffcf380aab7ebb",
    ),
    "decoder": (
        "https://huggingface.co/fchollet/stable-diffusion/resolve/main/kcv_decoder.h5",
        "ad350a65cc8bc4a80c8103367e039a3329b4231c2469a1093869a345f55b1962",
    ),
}


def find(path: str | os.PathLike[str]) -> pathlib.Path:
    """The file of an autoencoder.

    Args:
        path: The file, the folder that holds it, or one of `PUBLISHED`, unless there
            is a file or folder of that name.

    Returns:
        Path of the file.

    Raises:
        OSError: If it cannot be fetched; the message says what to download.
        ValueError: If it is not there.
    """
    name = os.fspath(path)
    if name in PUBLISHED and not os.path.exists(name):
        return fetch(name)
    return find_file(path)


def fetch(name: str) -> pathlib.Path:
    """Downloads a published autoencoder, or finds it in the cache.

    Args:
        name: One of `PUBLISHED`.

    Returns:
        Path of the file.

    Raises:
        OSError: If it cannot be fetched; the message says what to download.
    """
    return fetch_from_hub(
        f"stabilityai/{name}",
        [FILENAME],
        what=f"Autoencoder {name!r}",
        extra="latents",
        usage="StableDiffusionVAE.from_diffusers({})",
    )


def fetch_keras_cv(part: str) -> pathlib.Path:
    """Downloads KerasCV's weights, or finds them where KerasCV keeps them.

    Args:
        part: "encoder" or "decoder".

    Returns:
        Path of the file.

    Raises:
        OSError: If it cannot be fetched; the message says what to download.
    """
    return fetch_url(
        *KERAS_CV[part],
        what=f"KerasCV's {part}",
        usage=f"StableDiffusionVAE.from_keras_cv({part}_path={{}})",
    )
