"""Exporting the sampler as a program of PyTorch, from any backend."""

import os
import pathlib
from typing import Any

from keras_imm.files.atomic import atomic_file
from keras_imm.flow_map import FlowMap
from keras_imm.latents import StableDiffusionVAE
from keras_imm.model import FlowMapModel
from keras_imm.serving import from_noise
from keras_imm.serving.settings import Settings
from keras_imm.validation import check_boolean

_ROWS = 3  # of the inputs that it is traced with: no number is special


def export_torch(
    model: FlowMapModel | str | os.PathLike[str],
    path: str | os.PathLike[str],
    num_steps: int | None = None,
    guidance_scale: float | None = None,
    *,
    compiled: bool = False,
    latents: Any = None,
    time_grid: Any = None,
    weights: str = "ema",
    sampler: Any = None,
    guidance_interval: tuple[float, float] | None = None,
) -> pathlib.Path:
    """Writes the sampler of a model as a program of `torch.export`, a `.pt2` file.

    It runs where PyTorch is, without Keras and this library. The program takes `noise`
    float32 (batch, H, W, C) of standard deviation 1 and, for a conditional model,
    `label` int32 (batch,), with any number of rows, and returns images float32 (batch,
    H, W, C) in the model's range. Labels are not checked. With a guidance scale it
    takes `guidance_scale` float32 (batch,) as well. With an autoencoder images are what
    it decodes, in [-1, 1].

    Args:
        model: A `FlowMapModel`, or the path of one saved as `.keras`.
        path: The file to write, which ends in `.pt2`; it replaces one that is there,
            when it is complete.
        num_steps: Steps, a positive integer. Default: those of `time_grid` if it is a
            list of eta, else of the model's `sampling_plan`, else 2.
        guidance_scale: Weight of classifier-free guidance (Eq. 14). Default of this and
            of `guidance_interval`: those of the model's `sampling_plan`, else none.
        compiled: Whether to write a package of AOTInductor for this machine's
            processor, which `torch._inductor.aoti_load_package` loads, in place of the
            program. It takes a C++ compiler.
        latents: The `keras_imm.latents.StableDiffusionVAE` whose latents the model
            makes, to have its decoder in the program, or None.
        time_grid: As in `FlowMapModel.generate`. Default of this and of `sampler`:
            those of the model's `sampling_plan`, else the objective's.
        weights: "ema" for the optimizer's averages, or "raw".
        sampler: As in `FlowMapModel.generate`; one that takes no noise after the first,
            such as "pushforward".
        guidance_interval: As in `FlowMapModel.generate`.

    Returns:
        The path of the file.

    Raises:
        ImportError: If PyTorch is not installed.
        RuntimeError: If PyTorch cannot export or compile a layer, or the child process
            that exports under another backend fails; the message is its own.
        ValueError: If an argument is out of its range.

    Example:

    ```python
    keras_imm.serving.export_torch(model, "digits.pt2", num_steps=2)
    program = torch.export.load("digits.pt2").module()
    noise = torch.randn(2, 8, 8, 1)
    images = program(noise, torch.tensor([3, 7], dtype=torch.int32))
    ```
    """
    check_boolean("compiled", compiled)
    path = from_noise.file_path(path, ".pt2")
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
    export.write("torch", "torch", write, path, compiled=compiled)
    return path


def write(
    flow: FlowMap,
    values: list,
    path: pathlib.Path,
    settings: Settings,
    compiled: bool = False,
    vae: StableDiffusionVAE | None = None,
) -> None:
    """Writes the file, in a process that computes with PyTorch."""
    import torch

    program = program_of(flow, values, settings, vae)
    with atomic_file(path) as unfinished:
        if compiled:
            torch._inductor.aoti_compile_and_package(
                program, package_path=str(unfinished)
            )
        else:
            torch.export.save(program, unfinished)


def program_of(
    flow: FlowMap,
    values: list,
    settings: Settings,
    vae: StableDiffusionVAE | None = None,
) -> Any:
    """The sampler as `torch.export.ExportedProgram`, for any number of rows.

    Args:
        flow: A built flow map.
        values: Values of its variables.
        settings: Those of `from_noise.export_of`.
        vae: Autoencoder whose decoder comes after the sampler, or None.
    """
    import torch

    from keras_imm.backend.torch.precision import older_name_agrees
    from keras_imm.serving import torch_seeds

    sample = from_noise.sampler_of(flow, settings, vae, torch_seeds.row_normal)
    values = from_noise.with_decoder(values, vae)

    class Sampler(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weights = torch.nn.ParameterList(
                torch.nn.Parameter(value.detach().cpu(), requires_grad=False)
                for value in values
            )

        def forward(self, *inputs):
            return sample(list(self.weights), *inputs)

    batch = torch.export.Dim("batch", min=1, max=2**20)
    inputs = from_noise.inputs_of(flow, settings)
    examples = tuple(
        torch.zeros((_ROWS, *one.shape), dtype=getattr(torch, one.dtype))
        for one in inputs
    )
    with torch.no_grad(), older_name_agrees():
        return torch.export.export(
            Sampler(),
            examples,
            dynamic_shapes={"inputs": tuple({0: batch} for _ in inputs)},
            strict=False,
        )
