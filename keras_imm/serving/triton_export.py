"""A model repository for NVIDIA's Triton and for KServe, from any backend."""

import os
import pathlib
import re
from collections.abc import Sequence
from typing import Any

from keras_imm.files.atomic import (
    atomic_directory,
    made_folder,
    remove_directory,
    remove_unfinished,
    write_text,
)
from keras_imm.files.paths import user_path
from keras_imm.latents.stable_diffusion_vae import DOWNSAMPLING
from keras_imm.model import FlowMapModel
from keras_imm.serving import from_noise, onnx_export, server_files
from keras_imm.validation import check_integer

_CONFIG = "config.pbtxt"
_TYPES = {
    "float32": "TYPE_FP32",
    "int32": "TYPE_INT32",
    "int64": "TYPE_INT64",
    "uint8": "TYPE_UINT8",
}


def export_triton(
    model: FlowMapModel | str | os.PathLike[str],
    repository: str | os.PathLike[str],
    name: str,
    num_steps: int | Sequence[int] | None = None,
    guidance_scale: float | None = None,
    *,
    inputs: str = "seeds",
    dtype: str = "float32",
    max_batch_size: int = 64,
    preferred_batch_sizes: Sequence[int] = (),
    max_queue_delay_microseconds: int = 2000,
    more_config: str = "",
    version: int | None = None,
    value_range: tuple[float, float] | None = None,
    latents: Any = None,
    time_grid: Any = None,
    weights: str = "ema",
    sampler: Any = None,
    guidance_interval: tuple[float, float] | None = None,
) -> pathlib.Path:
    """Writes a model into a model repository of Triton, which KServe reads too.

    `repository/name` gets `config.pbtxt` and, as `<version>/model.onnx` with its
    weights in `model.onnx.data`, what `export_onnx` writes; inputs and `image` are as
    said there. Requests send rows, and inputs of one number a row in the shape (batch,
    1). Those that arrive within the delay are answered in one batch. A new model and a
    new version each appear whole or not at all.

    Args:
        model: A `FlowMapModel`, or the path of one saved as `.keras`.
        repository: Folder of the server's models; it is made if it is not there.
        name: What clients call the model: letters, digits, "_", "-" and ".".
        num_steps: As in `export_onnx`.
        guidance_scale: As in `export_onnx`.
        inputs: As in `export_onnx`.
        dtype: As in `export_onnx`.
        max_batch_size: Most rows of one batch, positive.
        preferred_batch_sizes: Sizes that a batch is sent off at before the delay has
            passed, each in [1, max_batch_size]. Default: as Triton's makers advise,
            whatever has arrived.
        max_queue_delay_microseconds: How long a request waits for others, 0 or more.
        more_config: What else to put into `config.pbtxt`, such as an `instance_group`.
            The file is written anew with every version.
        version: Positive integer. Default: one more than the newest.
        value_range: As in `export_onnx`.
        latents: As in `export_onnx`.
        time_grid: As in `export_onnx`.
        weights: As in `export_onnx`.
        sampler: As in `export_onnx`.
        guidance_interval: As in `export_onnx`.

    Returns:
        Path of the version's folder.

    Raises:
        ImportError: As in `export_onnx`.
        RuntimeError: As in `export_onnx`.
        ValueError: If an argument is out of its range, `version` exists, or there is
            something else of that name in the repository.

    Example:

    ```python
    keras_imm.serving.export_triton(model, "models", "digits", num_steps=(1, 2))
    # tritonserver --model-repository=models
    ```

    Reference:
        - [Triton's model configuration](https://docs.nvidia.com/deeplearning/triton-inference-server/user-guide/docs/user_guide/model_configuration.html)
    """
    if not isinstance(name, str) or not re.fullmatch(r"[\w-][\w.-]*", name, re.ASCII):
        raise ValueError(
            "`name` must consist of letters, digits, '_', '-' and '.', which it does "
            f"not begin with. Received: name={name!r}"
        )
    check_integer("max_batch_size", max_batch_size, at_least=1)
    check_integer(
        "max_queue_delay_microseconds", max_queue_delay_microseconds, at_least=0
    )
    for size in preferred_batch_sizes:
        check_integer("preferred_batch_sizes", size, at_least=1)
        if size > max_batch_size:
            raise ValueError(
                f"`preferred_batch_sizes` must be at most `max_batch_size`, "
                f"{max_batch_size}. Received: {size}"
            )
    if version is not None:
        check_integer("version", version, at_least=1)
    export = onnx_export.export_of(
        model,
        num_steps,
        weights,
        dtype,
        inputs=inputs,
        value_range=value_range,
        latents=latents,
        sampler=sampler,
        time_grid=time_grid,
        guidance_scale=guidance_scale,
        guidance_interval=guidance_interval,
    )
    config = _config(
        name,
        max_batch_size,
        onnx_export.inputs_of(export.flow, export.settings),
        _image_of(export),
        preferred_batch_sizes,
        max_queue_delay_microseconds,
    )
    folder = user_path(repository, "repository").absolute() / name
    return _write(export, folder, config + more_config, version, dtype)


def _write(
    export: from_noise.Export,
    folder: pathlib.Path,
    config: str,
    version: int | None,
    dtype: str,
) -> pathlib.Path:
    """Writes a new model, or a new version of one."""

    def write_version(folder):
        path = folder / onnx_export.FILES[0]
        onnx_export.write_files(export, path, dtype, external=True)

    if not folder.exists():
        with made_folder(folder.parent):
            stem = folder.name.split(".")[0]
            remove_unfinished(folder.parent, ended=True, stem=stem)
            with atomic_directory(folder) as unfinished:
                (unfinished / _CONFIG).write_text(config)
                (unfinished / str(version or 1)).mkdir()
                write_version(unfinished / str(version or 1))
        return folder / str(version or 1)
    if not folder.is_dir() or not (folder / _CONFIG).is_file():
        raise ValueError(
            f"`name` must be new, or a model with a {_CONFIG}. "
            f"Received: name={folder.name!r}, where there is {str(folder)!r}"
        )
    remove_unfinished(folder, ended=True)
    if version in server_files.versions(folder):
        raise ValueError(
            f"`version` must be new in {folder}. Received: version={version}"
        )
    chosen = [folder / str(version)]

    def next_version():
        newest = max(server_files.versions(folder), default=0)
        chosen.append(folder / str(newest + 1))
        return chosen[-1]

    with atomic_directory(chosen[0] if version else next_version) as unfinished:
        write_version(unfinished)
    try:
        write_text(folder / _CONFIG, config)
    except BaseException:
        remove_directory(chosen[-1])
        raise
    return chosen[-1]


def _image_of(export: from_noise.Export) -> from_noise.Input:
    dtype = "uint8" if export.settings.inputs == "seeds" else "float32"
    shape = tuple(export.flow.data_shape)
    if export.vae is not None:
        shape = (*(DOWNSAMPLING * side for side in shape[:2]), 3)
    return from_noise.Input("image", shape, dtype)


def _config(
    name: str,
    max_batch_size: int,
    inputs: Sequence[from_noise.Input],
    image: from_noise.Input,
    preferred: Sequence[int],
    delay: int,
) -> str:
    """`config.pbtxt`, without the batch in any shape."""
    sizes = f"  preferred_batch_size: {list(preferred)}\n" if preferred else ""
    return (
        f'name: "{name}"\n'
        'backend: "onnxruntime"\n'
        f"max_batch_size: {max_batch_size}\n"
        + "".join(_port("input", one) for one in inputs)
        + _port("output", image)
        + "dynamic_batching {\n"
        + sizes
        + f"  max_queue_delay_microseconds: {delay}\n"
        + "}\n"
    )


def _port(kind: str, one: from_noise.Input) -> str:
    """An input or output; Triton knows no rows without an axis."""
    reshape = "" if one.shape else "  reshape { shape: [] }\n"
    return (
        f"{kind} {{\n"
        f'  name: "{one.name}"\n'
        f"  data_type: {_TYPES[one.dtype]}\n"
        f"  dims: {list(one.shape) or [1]}\n"
        f"{reshape}"
        "}\n"
    )
