"""Writes `.keras` files by way of the disk."""

import datetime
import json
import os
import pathlib
import tempfile
import zipfile

import keras

from keras_imm.files.atomic import atomic_file
from keras_imm.files.paths import user_path


def save(model: keras.Model, path: str | os.PathLike[str]) -> None:
    """Saves a model as `model.save(path)` does, with little memory.

    Where Keras finds memory enough, it makes the file in memory first and holds it
    twice. Here the weights go to a file beside `path`, and from there into it.

    Args:
        model: A built Keras model.
        path: Path ending in `.keras`. An older file is replaced once the new one is
            whole.

    Raises:
        OSError: If the folder cannot be written to.

    Example:

    ```python
    save(keras_imm.checkpoints.load_official("cifar10"), "cifar10.keras")
    ```
    """
    path = user_path(path)
    metadata = {
        "keras_version": keras.__version__,
        "date_saved": datetime.datetime.now().strftime("%Y-%m-%d@%H:%M:%S"),
    }
    config = keras.saving.serialize_keras_object(model)
    with (
        tempfile.TemporaryDirectory(dir=path.parent) as folder,
        atomic_file(path) as unfinished,
    ):
        weights = pathlib.Path(folder) / "model.weights.h5"
        model.save_weights(weights)
        with zipfile.ZipFile(unfinished, "w") as archive:
            archive.writestr("metadata.json", json.dumps(metadata))
            archive.writestr("config.json", json.dumps(config))
            archive.write(weights, weights.name)
