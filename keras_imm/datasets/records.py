"""Records as arrays: what a source holds, decoded, cropped, flipped or sampled."""

from typing import Any

import numpy as np

from keras_imm.datasets.array_checks import check_float
from keras_imm.datasets.decoding import CorruptRecordError, center_crop, decode
from keras_imm.datasets.extras import pillow
from keras_imm.datasets.latent_shards import LatentShards
from keras_imm.latents.normalization import normalize


class ImageRecords:
    """Images of a source in one size.

    Args:
        source: Holds `{"image": bytes or array, "label": int}` at each index.
        image_size: Side of the square that is cut out of the middle, or None to keep
            the sizes, which must then all be the same.
        channels: 3 or 1, or None for what the source says, or else 3.
        flip: Whether to mirror an image with probability 1/2.
        labels: Whether labels are read.
    """

    def __init__(
        self,
        source: Any,
        image_size: int | None,
        channels: int | None,
        flip: bool,
        labels: bool = True,
    ):
        self.source = source
        self.num_classes = source.num_classes if labels else 0
        self.image_size = image_size
        self.flip = flip
        shape = getattr(source, "image_shape", None) or (None, None, None)
        self.channels = channels or shape[-1] or 3
        size = (image_size, image_size) if image_size else shape[:2]
        self.image_shape = None if None in size else (*size, self.channels)
        self.settings = {"image_size": image_size, "flip": flip}

    def read(
        self, index: int, rng: np.random.Generator | None
    ) -> tuple[np.ndarray, int]:
        """Image and label of a record, as it is without a random generator.

        Returns:
            The image, uint8 or float32 (H, W, C), and its label, -1 without labels.

        Raises:
            CorruptRecordError: If the image cannot be decoded or is not finite.
            ValueError: If it is another in size, range or label than it has to be.
        """
        record = self.source[index]
        pixels = self._pixels(record["image"])
        if pixels.shape != (self.image_shape or pixels.shape):
            raise ValueError(
                f"All images must have the shape {self.image_shape}, unless "
                "`image_size` is given. Received: "
                f"{self.source.record_name(index)} of shape {pixels.shape}"
            )
        if pixels.dtype != np.uint8:
            self._check_floats(pixels, index)
        if self.flip and rng is not None and rng.random() < 0.5:
            pixels = pixels[:, ::-1]
        return pixels, self._checked_label(record["label"], index)

    def finish(self, images: np.ndarray) -> np.ndarray:
        """A batch as the model sees it: float32 in [-1, 1]."""
        if images.dtype != np.uint8:
            return images.astype(np.float32)
        images = np.divide(images, np.float32(127.5), dtype=np.float32)
        images -= np.float32(1.0)
        return images

    def _pixels(self, image):
        if isinstance(image, bytes):
            image = decode(image, self.channels)
        elif self._fits(image):
            return image
        elif image.dtype != np.uint8:
            raise ValueError(
                f"Images of floats must have the shape {self.image_shape}. Received: "
                f"shape {image.shape}"
            )
        else:
            squeezed = image[..., 0] if image.shape[-1] == 1 else image
            image = pillow().fromarray(squeezed)
            image = image.convert("RGB" if self.channels == 3 else "L")
        if self.image_size:
            image = center_crop(image, self.image_size)
        pixels = np.asarray(image)
        return pixels[..., None] if pixels.ndim == 2 else pixels

    def _fits(self, array):
        size = (self.image_size or array.shape[0], self.image_size or array.shape[1])
        return array.shape == (*size, self.channels)

    def _check_floats(self, pixels, index):
        if not np.isfinite(pixels).all():
            raise CorruptRecordError("its pixels are not finite")
        check_float(np.abs(pixels).max(initial=0), self.source.record_name(index))

    def _checked_label(self, label, index):
        if not self.num_classes:
            return -1
        if not 0 <= label < self.num_classes:
            raise ValueError(
                f"Labels must be in [0, {self.num_classes}). Received: "
                f"{self.source.record_name(index)} with label {label}. Give "
                "labels=False to read images alone."
            )
        return label


class LatentRecords:
    """Latents, sampled from the moments that shards hold.

    Args:
        shards: The shards.
        sigma_data: The standard deviation to scale them to.
    """

    def __init__(self, shards: LatentShards, sigma_data: float):
        self.source = shards
        self.sigma_data = sigma_data
        self.image_shape = shards.image_shape
        self.settings = {"sigma_data": sigma_data}

    def read(
        self, index: int, rng: np.random.Generator | None
    ) -> tuple[np.ndarray, int]:
        """A sample of the latents, float32 (H, W, C) without scaling, and the label.

        Without a random generator, the mean of the latents.

        Raises:
            CorruptRecordError: If it is not finite.
        """
        record = self.source[index]
        mean, std = np.split(record["moments"].astype(np.float32), 2, axis=-1)
        z = mean
        if rng is not None:
            z = mean + std * rng.standard_normal(mean.shape, dtype=np.float32)
        if not np.isfinite(z).all():
            raise CorruptRecordError("its latents are not finite")
        return z, record["label"]

    def finish(self, latents: np.ndarray) -> np.ndarray:
        """A batch as the model sees it: float32 of standard deviation sigma_data."""
        return normalize(latents, self.sigma_data)
