"""A SavedModel in a session of TensorFlow, as TF Serving runs it."""

import os
import pathlib
from typing import Any

import numpy as np

from keras_imm.serving.server.errors import HTTP_STATUSES, RequestError
from keras_imm.serving.server.servable import Arrays, Servable, Signature, Tensor

_PREDICT = "tensorflow/serving/predict"


def newest_version(folder: str | os.PathLike[str]) -> pathlib.Path | None:
    """The folder of a SavedModel, or of the newest of its versions; None if neither."""
    folder = pathlib.Path(folder).expanduser()
    if (folder / "saved_model.pb").is_file():
        return folder
    versions = [
        path
        for path in (folder.iterdir() if folder.is_dir() else ())
        if path.name.isdecimal() and (path / "saved_model.pb").is_file()
    ]
    return max(versions, key=lambda path: int(path.name), default=None)


class SavedModelServable(Servable):
    """The signatures of a SavedModel.

    Args:
        folder: A SavedModel's folder. A number as its name is its version.

    Raises:
        ImportError: If TensorFlow is not installed.
        ValueError: If it is incomplete, or has no signature for predictions.
    """

    platform = "tensorflow_savedmodel"

    def __init__(self, folder: str | os.PathLike[str]):
        import tensorflow as tf

        path = pathlib.Path(folder)
        self.version = int(path.name) if path.name.isdecimal() else 1
        self._codes = {
            getattr(tf.errors, code): code
            for code in HTTP_STATUSES
            if hasattr(tf.errors, code)
        }
        level = tf.get_logger().level
        tf.get_logger().setLevel("ERROR")  # "use tf.saved_model.load": not here
        try:
            with tf.Graph().as_default():
                self._session = tf.compat.v1.Session()
                meta_graph = tf.compat.v1.saved_model.load(
                    self._session, ["serve"], str(path)
                )
        except (OSError, RuntimeError, ValueError, tf.errors.OpError) as error:
            raise ValueError(
                f"Cannot load the SavedModel in {path}: {error}"
            ) from error
        finally:
            tf.get_logger().setLevel(level)
        self._definitions = {
            name: one
            for name, one in meta_graph.signature_def.items()
            if one.method_name == _PREDICT and one.inputs
        }
        self.signatures = {
            name: Signature(_tensors(one.inputs), _tensors(one.outputs))
            for name, one in self._definitions.items()
        }
        if not self.signatures:
            raise ValueError(f"The SavedModel in {path} has no signature to serve.")

    def run(self, name: str, inputs: Arrays) -> Arrays:
        import tensorflow as tf

        one = self._definitions[name]
        outputs = {key: info.name for key, info in one.outputs.items()}
        feeds = {one.inputs[key].name: array for key, array in inputs.items()}
        try:
            return self._session.run(outputs, feeds)
        except tf.errors.OpError as error:
            message = error.message.removeprefix("Graph execution error:\n\n")
            code = self._codes.get(error.error_code, "INTERNAL")
            raise RequestError(message, code) from error


def _tensors(infos: Any) -> dict[str, Tensor]:
    import tensorflow as tf

    return {
        name: Tensor(
            np.dtype(tf.dtypes.as_dtype(infos[name].dtype).as_numpy_dtype),
            tuple(
                None if dim.size < 0 else dim.size
                for dim in infos[name].tensor_shape.dim
            ),
        )
        for name in sorted(infos)
    }
