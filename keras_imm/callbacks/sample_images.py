"""Pictures of samples during `fit`."""

import os
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from keras_imm.callbacks.sampling import Sampling


def pixels_to_uint8(images: np.ndarray) -> np.ndarray:
    """Pixels in [-1, 1] to bytes: `clip(127.5 v + 128, 0, 255)`, truncated."""
    return np.clip(127.5 * images + 128.0, 0, 255).astype(np.uint8)


class SampleImages(Sampling):
    """Writes a picture of samples at the end of every `freq`-th epoch.

    The picture has one row per number of steps and one column per sample. Pillow must
    be installed.

    Args:
        filepath: Path of the pictures, with Keras's placeholders: `{epoch}` (counted
            from 1, as in `ModelCheckpoint`) and the names in the logs, such as
            `{loss:.4f}`. The ending decides the format. Missing folders are made.
        to_uint8: Maps samples `(batch, H, W, C)` of the model's range to bytes of the
            same shape, with 1, 3 or 4 channels; decodes latents, for example.
        **kwargs: Arguments of `Sampling`: `labels`, `num_steps`, `freq`, ...

    Raises:
        ValueError: If an argument is out of range; at the first picture, if `to_uint8`
            returns anything but bytes of shape `(batch, H, W, C)`.

    Example:

    ```python
    pictures = keras_imm.callbacks.SampleImages(
        "runs/samples_{epoch:04d}.png", labels=range(10), num_steps=(1, 2, 4), freq=5
    )
    model.fit(dataset, epochs=100, callbacks=[pictures])
    ```
    """

    def __init__(
        self,
        filepath: str | os.PathLike,
        to_uint8: Callable[[np.ndarray], Any] = pixels_to_uint8,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.filepath = os.fspath(filepath)
        self.to_uint8 = to_uint8

    def on_samples(
        self, samples: dict[int, np.ndarray], epoch: int, logs: dict[str, float]
    ) -> None:
        rows = [np.asarray(self.to_uint8(images)) for images in samples.values()]
        for row in rows:
            if row.ndim != 4 or row.dtype != np.uint8:
                raise ValueError(
                    "`to_uint8` must return uint8 images of shape (batch, H, W, C). "
                    f"Received {row.dtype} of shape {row.shape}."
                )
        path = self.filepath.format(epoch=epoch, **logs)
        os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
        keras.utils.save_img(path, _grid(rows), "channels_last", scale=False)


def _grid(rows, border=1):
    """Rows of images, each (columns, H, W, C), as one picture with white borders."""
    images = np.pad(
        np.stack(rows),
        ((0, 0), (0, 0), (border, border), (border, border), (0, 0)),
        constant_values=255,
    )
    row_count, columns, height, width, channels = images.shape
    return images.transpose(0, 2, 1, 3, 4).reshape(
        row_count * height, columns * width, channels
    )
