"""Exporting the sampler to LiteRT, through TensorFlow, from any backend."""

import os
import pathlib
import tempfile
from typing import Any

from keras_imm.files.atomic import atomic_file
from keras_imm.flow_map import FlowMap
from keras_imm.latents import StableDiffusionVAE
from keras_imm.model import FlowMapModel
from keras_imm.serving import from_noise, litert_weights, network_dtype
from keras_imm.serving.settings import Settings
from keras_imm.validation import check_choice

_DTYPES = ("float16", "float32")
_SHOWN = 1000  # letters of the converter's error, which goes on to list the graph
_LARGEST = 2**31 - 2**24  # bytes that a flatbuffer can hold, with room for the graph


def export_litert(
    model: FlowMapModel | str | os.PathLike[str],
    path: str | os.PathLike[str],
    num_steps: int | None = None,
    guidance_scale: float | None = None,
    *,
    dtype: str = "float32",
    latents: Any = None,
    time_grid: Any = None,
    weights: str = "ema",
    sampler: Any = None,
    guidance_interval: tuple[float, float] | None = None,
) -> pathlib.Path:
    """Writes the sampler of a model for LiteRT, which was TensorFlow Lite.

    It runs where LiteRT is, on phones and small computers, without TensorFlow, Keras
    and this library, of operations that LiteRT itself has. The signature takes `noise`
    float32 (batch, H, W, C) of standard deviation 1 and, for a conditional model,
    `label` int32 (batch,), with any number of rows, and returns `image` float32 (batch,
    H, W, C) in the model's range. Labels are not checked. With a guidance scale it
    takes `guidance_scale` float32 (batch,) as well. With an autoencoder the image is
    what it decodes, in [-1, 1].

    Args:
        model: A `FlowMapModel`, or the path of one saved as `.keras`.
        path: The file to write, which ends in `.tflite`; it replaces one that is there,
            when it is complete.
        num_steps: Steps, a positive integer. Default: those of `time_grid` if it is a
            list of eta, else of the model's `sampling_plan`, else 2.
        guidance_scale: Weight of classifier-free guidance (Eq. 14). Default of this and
            of `guidance_interval`: those of the model's `sampling_plan`, else none.
        dtype: Type of matrices and kernels in the file, "float16" or "float32".
            Vectors are float32, and so is what is computed, whatever the model's
            precision.
        latents: The `keras_imm.latents.StableDiffusionVAE` whose latents the model
            makes, to have its decoder in the file, or None.
        time_grid: As in `FlowMapModel.generate`. Default of this and of `sampler`:
            those of the model's `sampling_plan`, else the objective's.
        weights: "ema" for the optimizer's averages, or "raw".
        sampler: As in `FlowMapModel.generate`; one that takes no noise after the first,
            such as "pushforward".
        guidance_interval: As in `FlowMapModel.generate`.

    Returns:
        The path of the file.

    Raises:
        ImportError: If TensorFlow is not installed.
        RuntimeError: If LiteRT has no operation for one of a layer, or the child
            process that exports under another backend than TensorFlow fails; the
            message is its own.
        ValueError: If an argument is out of its range, or the weights, with those of
            the decoder, take 2 GB or more in float32.

    Example:

    ```python
    keras_imm.serving.export_litert(model, "digits.tflite", num_steps=2)
    interpreter = ai_edge_litert.interpreter.Interpreter("digits.tflite")
    sample = interpreter.get_signature_runner("serving_default")
    noise = np.random.default_rng(0).standard_normal((2, 8, 8, 1), "float32")
    images = sample(noise=noise, label=np.array([3, 7], "int32"))["image"]
    ```
    """
    check_choice("dtype", dtype, _DTYPES)
    path = from_noise.file_path(path, ".tflite")
    export = from_noise.export_of(
        model,
        num_steps,
        weights,
        latents,
        sampler=sampler,
        time_grid=time_grid,
        guidance_scale=guidance_scale,
        guidance_interval=guidance_interval,
    )
    network_dtype.check(export.flow, "LiteRT")
    export.check_size(_LARGEST)
    export.write("litert", "tensorflow", write, path, dtype=dtype)
    return path


def write(
    flow: FlowMap,
    values: list,
    path: pathlib.Path,
    settings: Settings,
    dtype: str,
    vae: StableDiffusionVAE | None = None,
) -> None:
    """Writes the file, in a process that computes with TensorFlow."""
    import tensorflow as tf

    from keras_imm.serving.signatures import quiet

    flow = network_dtype.computing_in(flow, "float32")
    sample = from_noise.sampler_of(flow, settings, vae)
    module = tf.Module()
    module.shared_weights = from_noise.with_decoder(values, vae)
    inputs = [
        tf.TensorSpec((None, *one.shape), one.dtype, name=one.name)
        for one in from_noise.inputs_of(flow, settings)
    ]

    @tf.function(input_signature=inputs, autograph=False)
    def from_noise_to_image(*inputs):
        return {"image": sample(module.shared_weights, *inputs)}

    # Through a SavedModel: of a function of Keras's variables the converter makes NaN.
    with tempfile.TemporaryDirectory() as folder, quiet():
        signature = from_noise_to_image.get_concrete_function()
        tf.saved_model.save(module, folder, signatures=signature)
        try:
            content = tf.lite.TFLiteConverter.from_saved_model(folder).convert()
        except Exception as error:
            message = f"LiteRT cannot run the model: {str(error)[:_SHOWN]}"
            raise RuntimeError(message) from error
    if dtype == "float16":
        content = litert_weights.narrowed(content)
    with atomic_file(path) as unfinished:
        unfinished.write_bytes(content)
