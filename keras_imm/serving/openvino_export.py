"""Exporting the sampler to OpenVINO, through PyTorch, from any backend."""

import importlib.util
import os
import pathlib
from typing import Any

from keras_imm.files.atomic import replaced_directory
from keras_imm.files.paths import replaceable_folder
from keras_imm.flow_map import FlowMap
from keras_imm.latents import StableDiffusionVAE
from keras_imm.model import FlowMapModel
from keras_imm.serving import from_noise, network_dtype, torch_export
from keras_imm.serving.settings import Settings
from keras_imm.validation import check_choice

FILES = ("model.bin", "model.xml")
_DTYPES = ("float16", "float32")


def export_openvino(
    model: FlowMapModel | str | os.PathLike[str],
    folder: str | os.PathLike[str],
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
    """Writes the sampler of a model in OpenVINO's format, a folder of two files.

    It runs where OpenVINO is, without Keras and this library. The graph takes `noise`
    float32 (batch, H, W, C) of standard deviation 1 and, for a conditional model,
    `label` int32 (batch,), with any number of rows, and returns `image` float32 (batch,
    H, W, C) in the model's range. Labels are not checked. With a guidance scale it
    takes `guidance_scale` float32 (batch,) as well. With an autoencoder the image is
    what it decodes, in [-1, 1].

    Args:
        model: A `FlowMapModel`, or the path of one saved as `.keras`.
        folder: The folder to make, with `model.xml` and `model.bin`. Such a folder that
            is there is replaced, when the new one is complete.
        num_steps: Steps, a positive integer. Default: those of `time_grid` if it is a
            list of eta, else of the model's `sampling_plan`, else 2.
        guidance_scale: Weight of classifier-free guidance (Eq. 14). Default of this and
            of `guidance_interval`: those of the model's `sampling_plan`, else none.
        dtype: Type of the weights on the disk, "float16" or "float32".
        latents: The `keras_imm.latents.StableDiffusionVAE` whose latents the model
            makes, to have its decoder in the graph, or None.
        time_grid: As in `FlowMapModel.generate`. Default of this and of `sampler`:
            those of the model's `sampling_plan`, else the objective's.
        weights: "ema" for the optimizer's averages, or "raw".
        sampler: As in `FlowMapModel.generate`; one that takes no noise after the first,
            such as "pushforward".
        guidance_interval: As in `FlowMapModel.generate`.

    Returns:
        The path of `model.xml`.

    Raises:
        ImportError: If PyTorch or OpenVINO is not installed:
            `pip install "keras_imm[openvino]"`.
        RuntimeError: If OpenVINO knows no operation of a layer, or the child process
            that exports under another backend than PyTorch fails; the message is its
            own.
        ValueError: If an argument is out of its range, or the folder has something
            else in it.

    Example:

    ```python
    path = keras_imm.serving.export_openvino(model, "digits_openvino", num_steps=2)
    compiled = openvino.Core().compile_model(path, "CPU")
    noise = np.random.default_rng(0).standard_normal((2, 8, 8, 1), "float32")
    images = compiled({"noise": noise, "label": np.array([3, 7], "int32")})["image"]
    ```
    """
    check_choice("dtype", dtype, _DTYPES)
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
    network_dtype.check_not_quantized(export.flow, "OpenVINO")
    if importlib.util.find_spec("openvino") is None:
        raise ImportError('OpenVINO is needed: `pip install "keras_imm[openvino]"`')
    folder = replaceable_folder(folder, FILES, "model.xml", "an export")
    export.write("openvino", "torch", write, folder, dtype=dtype)
    return folder / "model.xml"


def write(
    flow: FlowMap,
    values: list,
    folder: pathlib.Path,
    settings: Settings,
    dtype: str,
    vae: StableDiffusionVAE | None = None,
) -> None:
    """Writes the folder, in a process that computes with PyTorch."""
    import openvino

    from keras_imm.backend.torch.precision import older_name_agrees

    program = torch_export.program_of(flow, values, settings, vae)
    with older_name_agrees():
        graph = openvino.convert_model(program)
    inputs = from_noise.inputs_of(flow, settings)
    for port, one in zip(graph.inputs, inputs, strict=True):
        port.get_tensor().set_names({one.name})
    graph.outputs[0].get_tensor().set_names({"image"})
    graph.reshape({one.name: [-1, *one.shape] for one in inputs})
    with replaced_directory(folder) as unfinished:
        openvino.save_model(
            graph, unfinished / "model.xml", compress_to_fp16=dtype == "float16"
        )
