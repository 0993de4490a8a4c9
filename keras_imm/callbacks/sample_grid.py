"""Pictures of samples during `fit`."""

import os
import string
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from keras_imm import distribution
from keras_imm.callbacks.sampling import Sampling
from keras_imm.datasets.extras import extra
from keras_imm.files.atomic import atomic_file
from keras_imm.files.paths import user_path
from keras_imm.validation import check_integer


def pixels_to_uint8(images: np.ndarray) -> np.ndarray:
    """Pixels in [-1, 1] to bytes: `clip(127.5 v + 128, 0, 255)`, truncated."""
    return np.clip(127.5 * images + 128.0, 0, 255).astype(np.uint8)


class SampleGrid(Sampling):
    """Shows samples of the same noise and labels as training goes on.

    A picture has one block per number of steps, in the order of `num_steps`, with the
    samples in the order of `labels`, `columns` to a row. It becomes a file, an entry in
    TensorBoard, or both. Pillow must be installed. In a run of several processes the
    first one writes.

    Args:
        filepath: Path of the pictures, with placeholders: `{epoch}` (counted from 1, as
            in `ModelCheckpoint`), `{step}` (of the optimizer) and, without
            `every_n_steps`, the names in the epoch's logs, such as `{loss:.4f}`. The
            ending decides the format. Missing folders are made. Default: no files.
        to_uint8: Maps samples `(batch, H, W, C)` of the model's range to bytes of the
            same shape, with 1, 3 or 4 channels; decodes latents, for example.
        columns: Samples in one row of the picture. Default: up to 16.
        **kwargs: Arguments of `Sampling`: `labels`, `num_steps`, `freq` or
            `every_n_steps`, `tensorboard`, ...

    Raises:
        ValueError: If an argument is out of range, or neither `filepath` nor
            `tensorboard` is given; at the first picture, if `to_uint8` returns anything
            but bytes of shape `(batch, H, W, C)`.

    Example:

    ```python
    grid = keras_imm.callbacks.SampleGrid(
        "runs/samples_{step:07d}.png",
        labels=range(10),
        num_steps=(1, 2, 4),
        every_n_steps=1000,
    )
    model.fit(dataset, epochs=100, callbacks=[grid])
    ```
    """

    def __init__(
        self,
        filepath: str | os.PathLike[str] | None = None,
        to_uint8: Callable[[np.ndarray], Any] = pixels_to_uint8,
        columns: int | None = None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        if columns is not None:
            check_integer("columns", columns, at_least=1)
        if not callable(to_uint8):
            raise ValueError(
                "`to_uint8` must be a function of samples. "
                f"Received: to_uint8={to_uint8!r}"
            )
        if filepath is None and self.tensorboard is None:
            raise ValueError(
                "Give `filepath`, `tensorboard` or both. "
                "Received: filepath=None, tensorboard=None"
            )
        self.filepath = None if filepath is None else _path(filepath)
        if self.filepath is not None and self.every_n_steps is not None:
            _check_placeholders(self.filepath)
        self.to_uint8 = to_uint8
        self.columns = columns

    def on_samples(
        self,
        samples: dict[int, np.ndarray],
        epoch: int,
        step: int,
        logs: dict[str, float],
    ) -> None:
        if not distribution.is_chief():
            return
        blocks = [np.asarray(self.to_uint8(images)) for images in samples.values()]
        for block in blocks:
            if (
                block.ndim != 4
                or block.dtype != np.uint8
                or block.shape[-1] not in (1, 3, 4)
            ):
                raise ValueError(
                    "`to_uint8` must return uint8 images of shape (batch, H, W, C) "
                    "with 1, 3 or 4 channels. "
                    f"Received {block.dtype} of shape {block.shape}."
                )
        columns = self.columns or min(16, len(blocks[0]))
        picture = np.concatenate([_rows(block, columns) for block in blocks])
        if self.filepath is not None:
            names = {**logs, "epoch": epoch, "step": step}
            path = self.filepath.format(**names)
            os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
            with atomic_file(path) as unfinished:
                keras.utils.save_img(unfinished, picture, "channels_last", scale=False)
        if self.tensorboard is not None:
            self.tensorboard.add_image("samples", picture, step)


def _path(filepath: Any) -> str:
    """The path, once its placeholders can be filled and Pillow knows its ending."""
    pillow = extra("PIL.Image", "`SampleGrid`")
    path = os.fspath(filepath) if isinstance(filepath, (str, os.PathLike)) else ""
    try:
        names = {name for _, name, _, _ in string.Formatter().parse(path) if name}
        counts = {"epoch", "step"}
        tried = path.format(**{name: 1 if name in counts else 1.0 for name in names})
    except (ValueError, LookupError) as error:
        raise ValueError(
            "`filepath` must have placeholders with names, such as {epoch} or "
            f"{{loss:.4f}}. Received: filepath={path!r} ({error})"
        ) from error
    pillow.init()
    ending = os.path.splitext(tried)[1]
    if ending[1:].upper() not in {"JPG", *pillow.SAVE}:
        raise ValueError(
            "`filepath` must be a path that ends in a format of pictures, such as "
            f"'.png' or '.jpg'. Received: filepath={filepath!r}"
        )
    return os.fspath(user_path(path))


def _check_placeholders(filepath: str) -> None:
    parsed = string.Formatter().parse(filepath)
    fields = {field for _, field, _, _ in parsed if field is not None}
    if fields - {"epoch", "step"}:
        raise ValueError(
            "With `every_n_steps`, `filepath` may have the placeholders {epoch} and "
            f"{{step}} alone. Received: filepath={filepath!r}"
        )


def _rows(images: np.ndarray, columns: int, border: int = 1) -> np.ndarray:
    """Images (count, H, W, C) as rows of one picture, each with a white border."""
    missing = -len(images) % columns
    images = np.pad(
        images,
        ((0, missing), (border, border), (border, border), (0, 0)),
        constant_values=255,
    )
    _, height, width, channels = images.shape
    grid = images.reshape(-1, columns, height, width, channels)
    return grid.transpose(0, 2, 1, 3, 4).reshape(-1, columns * width, channels)
