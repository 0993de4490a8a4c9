"""Exporting a model to TF Serving's format, from any backend."""

import contextlib
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from keras_imm import backend
from keras_imm.files.atomic import (
    atomic_directory,
    made_folder,
    remove_directory,
    remove_unfinished,
)
from keras_imm.files.paths import user_path
from keras_imm.model import FlowMapModel
from keras_imm.serving import child_process, server_files
from keras_imm.serving.checks import (
    check_latents,
    checked_model,
    plan_of,
    value_range_of,
)
from keras_imm.serving.settings import Settings
from keras_imm.validation import check_boolean, check_integer

_NUM_STEPS = (1, 2, 8)
_DECODED = (-1.0, 1.0)  # what an autoencoder makes


def export_saved_model(
    model: FlowMapModel | str | os.PathLike[str],
    directory: str | os.PathLike[str],
    num_steps: int | Sequence[int] | None = None,
    guidance_scale: float | None = None,
    latents: Any = None,
    *,
    default_num_steps: int | None = None,
    sampler: Any = None,
    time_grid: Any = None,
    weights: str = "ema",
    value_range: tuple[float, float] | None = None,
    signatures: Sequence[str] | None = None,
    version: int | None = None,
    warmup: bool | None = None,
    native: bool = False,
    guidance_interval: tuple[float, float] | None = None,
) -> pathlib.Path:
    """Writes a model as a SavedModel that TF Serving can serve.

    The export runs through TensorFlow: in this process under the TensorFlow backend,
    otherwise in a child process that loads a copy of the flow map. TensorFlow must
    be installed. The folder appears whole or not at all.

    Every signature takes rows, as many as it is given, and answers for each row alone:

    - `serving_default`: `seed` int64, `label` int32 -> `image` uint8 (H, W, C). The
      same seed and label always give the same image; all 64 bits of the seed count.
    - `serving_png`: the same -> `image_bytes`, a PNG file.
    - `generate_<n>_steps`: the same with n steps.
    - `generate_from_noise`: `noise` float32 (H, W, C), `label` -> `image` float32 in
      the range of `model.generate(noise=...)`, which it equals. Only with samplers
      that take no noise after the first, such as "pushforward".
    - `flow_map`: `x_t`, `t`, `s`, `label` -> `x_s`, one jump.
    - `decode`, with an autoencoder: `latents` -> `image` uint8.

    `label` is there for conditional models only. With a guidance scale
    `generate_<n>_steps`, `generate_from_noise` and `flow_map` must be given one for
    each row as `guidance_scale` float32; the others use the one given here.
    `serving_png` is there for images of 1 to 4 channels. Half-precision models answer
    as `generate` does to what half precision rounds.

    Args:
        model: A `FlowMapModel`, or the path of one saved as `.keras`.
        directory: Folder of the served model; this export becomes its subfolder
            `<version>`. With it come `models.config` and `batching_parameters.txt`.
        num_steps: Step counts to export, positive. Default: 1, 2, 8 and that of the
            model's `sampling_plan`.
        guidance_scale: Weight of classifier-free guidance (Eq. 14). Default of this and
            of `guidance_interval`: those of the model's `sampling_plan`, else none.
        latents: The `keras_imm.latents.StableDiffusionVAE` whose latents the model
            makes, or None for pixels.
        default_num_steps: The step count of the signatures that do not name one.
            Default: that of the model's `sampling_plan`, else 2 if it is exported,
            otherwise the first.
        sampler: As in `FlowMapModel.generate`. Default of this and of `time_grid`:
            those of the model's `sampling_plan`, else the objective's.
        time_grid: As in `FlowMapModel.generate`. A list of eta has a number of steps of
            its own, which must then be the only one of `num_steps`.
        weights: "ema" for the optimizer's averages, or "raw".
        value_range: Values of the model's range that become the bytes 0 and 255.
            Default: those of the model's `pixels`, else -1 and 1. Bytes are then those
            of `to_uint8`, or differ by 1 where a value lies halfway between two.
        signatures: Names of the signatures to export. Default: all.
        version: Positive integer. Default: one more than the newest.
        warmup: Whether to write requests that TF Serving replays when it loads the
            model, which takes the package tensorflow-serving-api. Default: if it is
            installed.
        native: Under JAX, whether to put what JAX compiles into the SavedModel, by
            jax2tf, in place of TensorFlow's operations. Converters cannot read it.
        guidance_interval: As in `FlowMapModel.generate`.

    Returns:
        Path of the version's folder.

    Raises:
        ImportError: If TensorFlow, or what `warmup=True` takes, is not installed.
        RuntimeError: If the child process fails; the message is its own.
        ValueError: If an argument is out of its range, `version` exists, or a range
            does not say what the model's `pixels` do and `value_range` is not given.

    Example:

    ```python
    path = keras_imm.serving.export_saved_model(model, "served/digits")
    served = tf.saved_model.load(str(path)).signatures["serving_default"]
    served(seed=tf.constant([1, 2], tf.int64), label=tf.constant([3, 7]))["image"]
    ```
    """
    directory = user_path(directory, "directory")
    check_boolean("native", native)
    if native and backend.name() != "jax":
        raise ValueError(
            "`native=True` is for the JAX backend. Received: backend="
            f"{backend.name()!r}"
        )
    if version is not None:
        check_integer("version", version, at_least=1)
    model = checked_model(model)
    check_latents(latents, model)
    own = model.own_plan()
    if num_steps is None:
        num_steps = sorted({*_NUM_STEPS, own.num_steps or _NUM_STEPS[0]})
    if default_num_steps is None and own.num_steps in np.ravel(num_steps).tolist():
        default_num_steps = own.num_steps
    if value_range is None:
        value_range = _DECODED if latents is not None else value_range_of(model)
    settings = Settings(
        plan_of(
            model,
            sampler=sampler,
            time_grid=time_grid,
            guidance_scale=guidance_scale,
            guidance_interval=guidance_interval,
            weights=weights,
        ),
        num_steps=num_steps,
        default_num_steps=default_num_steps,
        value_range=value_range,
        signatures=signatures,
        warmup=warmup,
    ).checked()
    settings = settings.completed(model.objective, model.flow, own)
    values = model.weights_for_sampling(weights)
    with _new_version(directory, version) as (folder, path):
        if backend.name() == "tensorflow" or native:
            from keras_imm.serving import tensorflow_export

            tensorflow_export.write(model.flow, values, folder, settings, latents)
        else:
            child_process.run(
                "saved_model", model.flow, values, folder, settings, latents
            )
    return path()


@contextlib.contextmanager
def _new_version(
    directory: pathlib.Path, version: int | None
) -> Iterator[tuple[pathlib.Path, Callable]]:
    """Yields a folder to write into, and a function that returns what it becomes.

    If the body fails, or what stands beside it cannot be written, nothing is left.
    """
    chosen = [directory / str(version)]

    def next_version():
        chosen.append(
            directory / str(max(server_files.versions(directory), default=0) + 1)
        )
        return chosen[-1]

    with made_folder(directory):
        remove_unfinished(directory, ended=True)
        if version is not None and version in server_files.versions(directory):
            raise ValueError(
                f"`version` must be new in {directory}. Received: version={version}"
            )
        with atomic_directory(chosen[0] if version else next_version) as folder:
            yield folder, lambda: chosen[-1]
        try:
            server_files.write_configuration(directory)
        except BaseException:
            remove_directory(chosen[-1])
            raise
