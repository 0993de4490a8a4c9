"""Exporting the sampler to ONNX, through PyTorch, from any backend."""

import contextlib
import importlib.util
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

from keras_imm.files.atomic import atomic_file, made_folder, replaced_directory
from keras_imm.files.paths import replaceable_folder, user_path
from keras_imm.flow_map import FlowMap
from keras_imm.model import FlowMapModel
from keras_imm.serving import from_noise, network_dtype
from keras_imm.serving.settings import Settings
from keras_imm.validation import check_choice

FILES = ("model.onnx", "model.onnx.data")
_DTYPES = ("float16", "float32")
_LARGEST = 2**31 - 2**24  # bytes that protobuf can hold, with room for the graph


def export_onnx(
    model: FlowMapModel | str | os.PathLike[str],
    path: str | os.PathLike[str],
    num_steps: int | Sequence[int] | None = None,
    guidance_scale: float | None = None,
    *,
    inputs: str = "noise",
    dtype: str = "float32",
    value_range: tuple[float, float] | None = None,
    latents: Any = None,
    time_grid: Any = None,
    weights: str = "ema",
    sampler: Any = None,
    guidance_interval: tuple[float, float] | None = None,
) -> pathlib.Path:
    """Writes the sampler of a model as an ONNX file.

    From noise the graph takes `noise` float32 (batch, H, W, C) of standard deviation 1
    and, for a conditional model, `label` int32 (batch,), with any number of rows, and
    returns `image` float32 (batch, H, W, C) in the model's range. Labels are not
    checked. With a guidance scale it takes `guidance_scale` float32 (batch,) as well.

    From seeds it takes `seed` int64 (batch,) in the place of `noise`, and returns
    bytes, `image` uint8. Each row's image depends on its own seed and label alone, and
    is that of `export_saved_model`, but for single bytes that rounding moves by 1. With
    several numbers of steps it takes `num_steps` int32 (batch,) too, last; a number
    that is not one of them counts as the next lower one, or else as the lowest. Rows of
    one batch may differ in it: it is then sampled once for each number that occurs.

    Args:
        model: A `FlowMapModel`, or the path of one saved as `.keras`.
        path: A file that ends in `.onnx`, for weights of less than 2 GB; otherwise a
            folder for weights of any size, with `model.onnx` and `model.onnx.data`.
            What is there is replaced, when the new one is complete.
        num_steps: Steps, a positive integer; for seeds also several. Default: those of
            `time_grid` if it is a list of eta, else of the model's `sampling_plan`,
            else 2.
        guidance_scale: Weight of classifier-free guidance (Eq. 14). Default of this and
            of `guidance_interval`: those of the model's `sampling_plan`, else none.
        inputs: What rows start from, "noise" or "seeds".
        dtype: What the network computes in, "float32" or "float16", whatever the
            model's own policy. In float16 weights are stored so too; times and what is
            outside of the network stay float32.
        value_range: For seeds, the values of the model's range that become the bytes 0
            and 255. Default: those of the model's `pixels`, else -1 and 1.
        latents: A `keras_imm.latents.StableDiffusionVAE`, whose decoder then makes
            images of the samples: float32 in [-1, 1], or bytes for seeds. It computes
            in float32. None for a model of pixels.
        time_grid: As in `FlowMapModel.generate`. Default of this and of `sampler`:
            those of the model's `sampling_plan`, else the objective's.
        weights: "ema" for the optimizer's averages, or "raw".
        sampler: As in `FlowMapModel.generate`; from noise one that takes none after the
            first, such as "pushforward".
        guidance_interval: As in `FlowMapModel.generate`.

    Returns:
        The path of the file that a runtime opens: `path`, or `model.onnx` in it.

    Raises:
        ImportError: If PyTorch, onnx or onnxscript is not installed:
            `pip install "keras_imm[onnx]"`.
        RuntimeError: If PyTorch cannot translate a layer, or the child process that
            exports under another backend fails; the message is its own.
        ValueError: If an argument is out of its range, the weights are too large for a
            file, or the folder has something else in it.

    Example:

    ```python
    keras_imm.serving.export_onnx(model, "digits.onnx", num_steps=2)
    session = onnxruntime.InferenceSession("digits.onnx")
    noise = np.random.default_rng(0).standard_normal((2, 8, 8, 1), "float32")
    session.run(None, {"noise": noise, "label": np.array([3, 7], "int32")})
    ```
    """
    is_file = str(user_path(path)).endswith(".onnx")
    if is_file:
        path = from_noise.file_path(path, ".onnx")
    else:
        path = replaceable_folder(path, FILES, FILES[0], "an export")
    export = export_of(
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
    if is_file:
        size = export.size(width=2 if dtype == "float16" else 4)
        if size > _LARGEST:
            raise ValueError(
                '`path` must be a folder, of a name that does not end in ".onnx", for '
                f"weights of 2 GB or more. Received: path={str(path)!r}, and weights "
                f"of {size:,} bytes"
            )
    place = atomic_file if is_file else _model_in_folder
    with made_folder(path.parent), place(path) as unfinished:
        write_files(export, unfinished, dtype, external=not is_file)
    return path if is_file else path / FILES[0]


def export_of(
    model: Any, num_steps: Any, weights: str, dtype: str, **arguments: Any
) -> from_noise.Export:
    """What is to be written, once it is known that it can be."""
    check_choice("dtype", dtype, _DTYPES)
    export = from_noise.export_of(model, num_steps, weights, **arguments)
    network_dtype.check(export.flow, "ONNX")
    for package in ("torch", "onnx", "onnxscript"):
        if importlib.util.find_spec(package) is None:
            raise ImportError(f'ONNX takes {package}: `pip install "keras_imm[onnx]"`')
    return export


def inputs_of(flow: FlowMap, settings: Settings) -> list[from_noise.Input]:
    """What the graph takes, in order."""
    inputs = from_noise.inputs_of(flow, settings)
    if len(settings.num_steps) > 1:
        inputs.append(from_noise.Input("num_steps", (), "int32"))
    return inputs


def write_files(
    export: from_noise.Export, path: pathlib.Path, dtype: str, external: bool
) -> None:
    """Writes the file and, if `external`, its weights as `path` with `.data` behind."""
    export.write("onnx", "torch", write, path, dtype=dtype, external=external)


def write(
    flow: FlowMap,
    values: list,
    path: pathlib.Path,
    settings: Settings,
    dtype: str,
    external: bool,
    vae: Any = None,
) -> None:
    """Writes the file, in a process that computes with PyTorch."""
    import onnx_ir

    from keras_imm.serving import onnx_graph, torch_export

    flow = network_dtype.computing_in(flow, dtype)
    program = torch_export.program_of(flow, values, settings, vae)
    inputs = from_noise.inputs_of(flow, settings)
    counts = sorted(settings.num_steps)
    graph = onnx_graph.graph_of(program, inputs, counts, dtype)
    onnx_ir.save(graph, path, external_data=f"{path.name}.data" if external else None)


@contextlib.contextmanager
def _model_in_folder(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    with replaced_directory(folder) as unfinished:
        yield unfinished / FILES[0]
