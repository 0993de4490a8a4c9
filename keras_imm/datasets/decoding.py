"""Encoded images to pixels, as the diffusion papers crop and resize them."""

import io
from typing import Any

import numpy as np

from keras_imm.datasets.extras import extra, pillow


class CorruptRecordError(ValueError):
    """A record whose content cannot be used, whoever reads it."""


def decode(data: bytes, channels: int = 3) -> Any:
    """Decodes an image file.

    Palettes, CMYK and the like are converted; transparency is dropped, and what lies
    under it shows; 16 bits are cut to their upper 8; an orientation noted in the EXIF
    data is not followed; of an animation the first picture is taken.

    Args:
        data: Content of the file: JPEG, PNG or what else Pillow reads.
        channels: 3 for colour, 1 for grey.

    Returns:
        A `PIL.Image.Image` of mode "RGB" or "L".

    Raises:
        CorruptRecordError: If it is no image, or is cut off.
    """
    pil_image = pillow()
    try:
        image = pil_image.open(io.BytesIO(data))
        image.load()
        return _convert(image, "RGB" if channels == 3 else "L")
    except extra("PIL", "Reading images").UnidentifiedImageError:
        raise CorruptRecordError("it is no image") from None
    except Exception as error:  # decoders raise what they like
        raise CorruptRecordError(str(error) or type(error).__name__) from error


def _convert(image, mode):
    if image.mode.startswith("I"):
        pixels = np.asarray(image)
        if pixels.min() < 0 or pixels.max() > 0xFFFF:
            raise CorruptRecordError("its pixels have more than 16 bits")
        image = pillow().fromarray((pixels >> 8).astype("uint8"))
    elif image.mode == "F":
        raise CorruptRecordError("its pixels are floating point numbers")
    elif image.mode in ("P", "PA"):
        image = image.convert("RGBA")
    return image.convert(mode)


def center_crop(image: Any, size: int) -> Any:
    """Resizes an image and cuts out the square in the middle.

    It is halved with a box filter while its short side is at least twice `size`, then
    resized with bicubic interpolation until the short side is `size`.

    Args:
        image: A `PIL.Image.Image`.
        size: Side of the square in pixels, above 0.

    Returns:
        The `PIL.Image.Image` of `size` by `size` pixels.

    Reference:
        - [Diffusion Models Beat GANs on Image Synthesis](
            https://arxiv.org/abs/2105.05233) and its published code.
    """
    resampling = pillow().Resampling
    width, height = image.size
    while min(width, height) >= 2 * size:
        width, height = width // 2, height // 2
        image = image.resize((width, height), resampling.BOX)
    scale = size / min(width, height)
    width, height = round(width * scale), round(height * scale)
    if (width, height) != image.size:
        image = image.resize((width, height), resampling.BICUBIC)
    left, top = (width - size) // 2, (height - size) // 2
    return image.crop((left, top, left + size, top + size))
