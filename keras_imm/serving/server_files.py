"""What TF Serving reads beside the SavedModel: configuration and warm-up requests."""

import pathlib
import warnings

import numpy as np

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


def write_configuration(directory: pathlib.Path) -> None:
    """Writes `models.config` and `batching_parameters.txt`, if they are not there.

    Args:
        directory: Folder of the model's versions.
    """
    name = directory.resolve().name
    for file, text in (
        ("models.config", _MODELS.format(name=name)),
        ("batching_parameters.txt", _BATCHING),
    ):
        path = directory / file
        if not path.exists():
            path.write_text(text)


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
