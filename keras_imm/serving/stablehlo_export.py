"""Exporting the sampler as StableHLO, through JAX, from any backend."""

import functools
import importlib.util
import os
import pathlib
from collections.abc import Sequence
from typing import Any

from keras_imm.files.atomic import atomic_file
from keras_imm.flow_map import FlowMap
from keras_imm.latents import StableDiffusionVAE
from keras_imm.model import FlowMapModel
from keras_imm.serving import from_noise
from keras_imm.serving.settings import Settings

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
_LARGEST = 2**31 - 2**20  # bytes that the file's format can hold, with room for code


def export_stablehlo(
    model: FlowMapModel | str | os.PathLike[str],
    path: str | os.PathLike[str],
    num_steps: int | None = None,
    guidance_scale: float | None = None,
    *,
    platforms: Sequence[str] = ("cpu", "cuda", "tpu"),
    latents: Any = None,
    time_grid: Any = None,
    weights: str = "ema",
    sampler: Any = None,
    guidance_interval: tuple[float, float] | None = None,
) -> pathlib.Path:
    """Writes the sampler of a model as StableHLO, as `jax.export` serializes it.

    It runs where JAX is, without Keras and this library, on any of `platforms`, and,
    as JAX promises, with versions of it of the next six months at least. The function
    takes `noise` float32 (batch, H, W, C) of standard deviation 1 and, for a
    conditional model, `label` int32 (batch,), with any number of rows, and returns
    images float32 (batch, H, W, C) in the model's range. Labels are not checked. With a
    guidance scale it takes `guidance_scale` float32 (batch,) as well. With an
    autoencoder images are what it decodes, in [-1, 1].

    Args:
        model: A `FlowMapModel`, or the path of one saved as `.keras`.
        path: The file to write, which ends in `.jax`; it replaces one that is there,
            when it is complete.
        num_steps: Steps, a positive integer. Default: those of `time_grid` if it is a
            list of eta, else of the model's `sampling_plan`, else 2.
        guidance_scale: Weight of classifier-free guidance (Eq. 14). Default of this and
            of `guidance_interval`: those of the model's `sampling_plan`, else none.
        platforms: Some of "cpu", "cuda", "rocm" and "tpu", each once.
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
        ImportError: If JAX, or FlatBuffers, is not installed:
            `pip install "keras_imm[stablehlo]"`.
        RuntimeError: If the child process that exports under another backend than JAX
            fails; the message is its own.
        ValueError: If an argument is out of its range, or the weights, with those of
            the decoder, take 2 GB or more.

    Example:

    ```python
    keras_imm.serving.export_stablehlo(model, "digits.jax", num_steps=2)
    sample = jax.export.deserialize(open("digits.jax", "rb").read()).call
    noise = jax.random.normal(jax.random.key(0), (2, 8, 8, 1))
    images = sample(noise, jax.numpy.array([3, 7], "int32"))
    ```
    """
    path = from_noise.file_path(path, ".jax")
    platforms = _checked_platforms(platforms)
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
    export.check_size(_LARGEST)
    if importlib.util.find_spec("flatbuffers") is None:  # jax.export imports it late
        raise ImportError('Needed, too: `pip install "keras_imm[stablehlo]"`')
    export.write("stablehlo", "jax", write, path, platforms=platforms)
    return path


def write(
    flow: FlowMap,
    values: list,
    path: pathlib.Path,
    settings: Settings,
    platforms: Sequence[str],
    vae: StableDiffusionVAE | None = None,
) -> None:
    """Writes the file, in a process that computes with JAX."""
    import jax
    from jax import export

    (batch,) = export.symbolic_shape("batch")
    inputs = [
        jax.ShapeDtypeStruct((batch, *one.shape), one.dtype)
        for one in from_noise.inputs_of(flow, settings)
    ]
    values = map(jax.numpy.asarray, from_noise.with_decoder(values, vae))
    sample = functools.partial(from_noise.sampler_of(flow, settings, vae), list(values))
    exported = export.export(jax.jit(sample), platforms=platforms)(*inputs)
    with atomic_file(path) as unfinished:
        unfinished.write_bytes(exported.serialize())


def _checked_platforms(platforms: Any) -> tuple[str, ...]:
    is_sequence = isinstance(platforms, (list, tuple)) and platforms
    if (
        not is_sequence
        or len({*platforms}) < len(platforms)
        or {*platforms} - {*PLATFORMS}
    ):
        raise ValueError(
            f"`platforms` must be some of {', '.join(map(repr, PLATFORMS))}, each "
            f"once. Received: platforms={platforms!r}"
        )
    return tuple(platforms)
