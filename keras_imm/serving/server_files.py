"""What servers read beside a model: its versions, configuration, warm-up requests."""

import pathlib
import warnings

import numpy as np

from keras_imm.files.atomic import atomic_files

_INSTALL = "`pip install --no-deps tensorflow-serving-api`"

_MODELS = """\
# tensorflow_model_server --model_config_file=/models/{name}/models.config
# In the image tensorflow/serving, with this folder at /models/{name}.
model_config_list {{
  config {{
    name: "{name}"
    base_path: "/models/{name}"
    model_platform: "tensorflow"
  }}
}}
"""
_BATCHING = """\
# tensorflow_model_server --enable_batching --batching_parameters_file=<this file>
# Requests that arrive within the timeout are answered in one pass of the network, and
# refused together if one of them has a label out of range.
max_batch_size { value: 64 }
batch_timeout_micros { value: 2000 }
max_enqueued_batches { value: 100 }
num_batch_threads { value: 2 }
"""


def versions(directory: pathlib.Path) -> set[int]:
    """The versions that are there, as TF Serving and Triton count them."""
    return {int(path.name) for path in directory.iterdir() if path.name.isdecimal()}


def write_configuration(directory: pathlib.Path) -> None:
    """Writes TF Serving's `models.config` and `batching_parameters.txt`, if not there.

    Args:
        directory: Folder of the model's versions.

    Raises:
        OSError: If the disk is full, among others. None of them is then written.
    """
    texts = {
        directory / "models.config": _MODELS.format(name=directory.resolve().name),
        directory / "batching_parameters.txt": _BATCHING,
    }
    missing = [path for path in texts if not path.exists()]
    with atomic_files(*missing) as unfinished:
        for path, temporary in zip(missing, unfinished, strict=True):
            temporary.write_text(texts[path])


def write_warmup(
    folder: pathlib.Path, inputs: dict[str, list], wanted: bool | None
) -> None:
    """Writes one request for each signature, which TF Serving replays on loading.

    Args:
        folder: Folder of the SavedModel.
        inputs: The `tf.TensorSpec`s of every signature, by its name.
        wanted: True to write them, False not to, None to do it if it can be done.

    Raises:
        ImportError: If `wanted` is True and tensorflow-serving-api is not installed.
    """
    if wanted is False:
        return
    try:
        from tensorflow_serving.apis import predict_pb2, prediction_log_pb2
    except ImportError as error:
        if wanted:
            raise ImportError(
                f"`warmup=True` takes tensorflow-serving-api: {_INSTALL}"
            ) from error
        warnings.warn(
            "No warm-up requests were written: they take tensorflow-serving-api, "
            f"{_INSTALL}.",
            stacklevel=2,
        )
        return
    import tensorflow as tf

    path = folder / "assets.extra" / "tf_serving_warmup_requests"
    path.parent.mkdir()
    with tf.io.TFRecordWriter(str(path)) as writer:
        for name, specs in inputs.items():
            request = predict_pb2.PredictRequest()
            request.model_spec.name = "model"
            request.model_spec.signature_name = name
            for spec in specs:
                value = np.zeros((1, *spec.shape[1:]), spec.dtype.as_numpy_dtype)
                request.inputs[spec.name].CopyFrom(tf.make_tensor_proto(value))
            log = prediction_log_pb2.PredictionLog(
                predict_log=prediction_log_pb2.PredictLog(request=request)
            )
            writer.write(log.SerializeToString())
