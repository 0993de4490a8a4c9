"""Sampling as one function of tensors, for exports of every framework."""

import contextlib
import dataclasses
import math
import os
import pathlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_imm import backend, samplers
from keras_imm.files.atomic import made_folder, remove_unfinished
from keras_imm.files.paths import user_path
from keras_imm.flow_map import FlowMap, Network
from keras_imm.latents import StableDiffusionVAE, denormalize
from keras_imm.model import FlowMapModel
from keras_imm.samplers import SamplingPlan
from keras_imm.serving import child_process
from keras_imm.serving.checks import (
    check_latents,
    checked_model,
    plan_of,
    value_range_of,
)
from keras_imm.serving.settings import Settings
from keras_imm.validation import check_choice, check_integer

_NUM_STEPS = 2


@dataclasses.dataclass(frozen=True)
class Input:
    """An input of the function.

    Attributes:
        name: Its name.
        shape: The shape of a row.
        dtype: Its type.
    """

    name: str
    shape: tuple
    dtype: str


@dataclasses.dataclass(frozen=True)
class Export:
    """What an export writes.

    Attributes:
        flow: A built flow map.
        values: Values of its variables.
        settings: Completed settings, of one number of steps unless rows have seeds.
        vae: Autoencoder whose decoder comes after the sampler, or None.
    """

    flow: FlowMap
    values: list
    settings: Settings
    vae: StableDiffusionVAE | None = None

    def size(self, width: int | None = None) -> int:
        """Bytes of the weights, those of the decoder included.

        Args:
            width: Bytes of each of the flow map's numbers. Default: of its own type.
        """
        return sum(
            _bytes_of(variable, width) for variable in self.flow.variables
        ) + sum(_bytes_of(variable) for variable in _of_decoder(self.vae))

    def check_size(self, largest: int) -> None:
        """Raises ValueError unless the weights fit into a file below 2 GB.

        Args:
            largest: Bytes that they may take.
        """
        size = self.size()
        if size > largest:
            raise ValueError(
                f"`model` must have weights of less than 2 GB. Received: {size:,} bytes"
            )

    def write(
        self,
        task: str,
        framework: str,
        write: Callable,
        path: pathlib.Path,
        **options: Any,
    ) -> None:
        """Writes in this process, or in one that computes with the framework.

        Args:
            task: As in `child_process.run`.
            framework: The backend that it takes.
            write: Function of the flow map, the values, the path, the settings, and
                `options`; of `vae`, too, unless it is None.
            path: What to write; its parent is made, and removed if writing fails.
            **options: What else the format takes.
        """
        arguments = self.flow, self.values, path, self.settings
        if self.vae is not None:
            options["vae"] = self.vae
        with made_folder(path.parent):
            with tempfile.TemporaryFile(dir=path.parent):
                pass  # or an error now and not after all that is computed
            if backend.name() == framework:
                write(*arguments, **options)
            else:
                with _cleaned(path):
                    child_process.run(task, *arguments, framework=framework, **options)


def export_of(
    model: FlowMapModel | str | os.PathLike[str],
    num_steps: int | Sequence[int] | None,
    weights: str,
    latents: Any = None,
    inputs: str = "noise",
    value_range: tuple[float, float] | None = None,
    **arguments: Any,
) -> Export:
    """What is to be written of a model.

    Args:
        model: A `FlowMapModel`, or the path of one saved as `.keras`.
        num_steps: Steps, or None for those of the plan; several for seeds alone.
        weights: "ema" or "raw".
        latents: The autoencoder of the model's latents, or None to leave it out.
        inputs: "noise", or "seeds" for rows that have one each, whose images are bytes.
        value_range: Values of the model's range that become the bytes 0 and 255; not
            used with an autoencoder.
        **arguments: Of `SamplingPlan`; None keeps the model's own.

    Raises:
        ValueError: If an argument is out of its range, or the sampler takes noise after
            the first, which it is not given.
    """
    check_choice("inputs", inputs, ("noise", "seeds"))
    model = checked_model(model)
    check_latents(latents, model)
    own = model.own_plan()
    plan = plan_of(model, weights=weights, **arguments)
    if num_steps is None:
        num_steps = plan.num_steps or own.num_steps or _NUM_STEPS
    if inputs == "noise":
        check_integer("num_steps", num_steps, at_least=1)
        if value_range is not None:
            raise ValueError(
                "`value_range` is that of bytes, which `inputs='seeds'` makes. "
                f"Received: value_range={value_range!r}, inputs='noise'"
            )
    elif value_range is None:
        value_range = value_range_of(model)
    settings = Settings(
        plan,
        num_steps=(num_steps,) if np.ndim(num_steps) == 0 else tuple(num_steps),
        value_range=value_range or (-1.0, 1.0),
        inputs=inputs,
    ).checked()
    settings = settings.completed(model.objective, model.flow, own)
    if inputs == "noise" and settings.plans()[num_steps].noises():
        sampler = arguments.get("sampler") or settings.plan.sampler
        raise ValueError(
            "`sampler` must take no noise after the first. "
            f"Received: sampler={sampler!r}"
        )
    values = model.weights_for_sampling(weights)
    return Export(model.flow, values, settings, latents)


def _bytes_of(variable: Any, width: int | None = None) -> int:
    if width is None:
        is_bfloat16 = variable.dtype == "bfloat16"  # which NumPy does not know
        width = 2 if is_bfloat16 else np.dtype(variable.dtype).itemsize
    return math.prod(variable.shape) * width


def inputs_of(flow: FlowMap, settings: Settings) -> list[Input]:
    """What the function takes, beside the weights, in order."""
    inputs = [Input("noise", tuple(flow.data_shape), "float32")]
    if settings.inputs == "seeds":
        inputs = [Input("seed", (), "int64")]
    if flow.num_classes:
        inputs.append(Input("label", (), "int32"))
    if settings.plan.guidance_scale is not None:
        inputs.append(Input("guidance_scale", (), "float32"))
    return inputs


def with_decoder(values: list, vae: StableDiffusionVAE | None) -> list:
    """The values of a flow map's variables, and after them those of a decoder's."""
    return [*values, *(variable.value for variable in _of_decoder(vae))]


def _of_decoder(vae: StableDiffusionVAE | None) -> list:
    return [] if vae is None else vae.decoder.variables


def sampler_of(
    flow: FlowMap,
    settings: Settings,
    vae: StableDiffusionVAE | None = None,
    row_normal: Callable | None = None,
) -> Callable:
    """The function that samples.

    Args:
        flow: A built flow map.
        settings: Those of `export_of`.
        vae: Autoencoder whose decoder makes images of the samples, or None.
        row_normal: For seeds, `row_noise.row_normal` with another framework's tensors.

    Returns:
        Function of the values of `with_decoder` and of the inputs of `inputs_of`, of
        as many rows each. From noise of standard deviation 1 it returns samples in the
        model's range, or decoded images in [-1, 1], float32; from seeds images, uint8.
        Of several numbers of steps it returns a tuple, in rising order.
    """
    names = [one.name for one in inputs_of(flow, settings)]
    plans = dict(sorted(settings.plans().items()))
    times = {  # no tensors yet
        steps: plan.times(flow).astype("float32") for steps, plan in plans.items()
    }
    shape = (-1,) + (1,) * len(flow.data_shape)
    variables = [*flow.variables, *_of_decoder(vae)]

    def sample(values, *inputs):
        given = dict(zip(names, inputs, strict=True))
        scale = given.get("guidance_scale")
        scale = None if scale is None else ops.reshape(scale, shape)

        def noise(stream):
            if "noise" in given:
                return given["noise"] * flow.sigma_data
            rows = row_normal(given["seed"], math.prod(flow.data_shape), stream)
            return ops.reshape(rows, (-1, *flow.data_shape)) * flow.sigma_data

        first = noise(0)
        mapping = list(zip(variables, values, strict=True))
        with keras.StatelessScope(state_mapping=mapping):
            label = given.get("label")
            samples = [
                _walked(
                    plan,
                    Network(flow, label, scale, plan.guidance_interval),
                    first,
                    times[steps],
                    noise,
                )
                for steps, plan in plans.items()
            ]
            samples = [ops.cast(x, "float32") for x in samples]
            if vae is not None:
                samples = [_decoded(vae, x) for x in samples]
        if settings.inputs == "seeds":
            value_range = None if vae else settings.value_range
            samples = [_bytes(x, value_range) for x in samples]
        return samples[0] if len(samples) == 1 else tuple(samples)

    return sample


def _decoded(vae: StableDiffusionVAE, x: Any) -> Any:
    """Images in [-1, 1] of a model's latents, as `vae.decode` has them before bytes."""
    images = vae.decoder(denormalize(x, vae.sigma_data), training=False)
    return ops.clip(images, -1.0, 1.0)


@contextlib.contextmanager
def _cleaned(path: pathlib.Path) -> Iterator[None]:
    """Removes what a child process that was killed left of a file or folder."""
    try:
        yield
    except BaseException:
        stem = path.name.partition(".")[0]
        remove_unfinished(path.parent, ended=True, stem=stem)
        raise


def _walked(
    plan: SamplingPlan, network: Network, x: Any, times: np.ndarray, noise: Callable
) -> Any:
    """Samples from `x`, with the streams after the first where fresh noise is taken."""
    drawn = None

    def noise_at(i):
        nonlocal drawn
        if i < plan.noises():
            drawn = noise(i + 1)
        return drawn

    return samplers.walk(
        lambda *state: plan.sampler.step(network, *state), x, times, noise_at
    )


def _bytes(x: Any, value_range: tuple[float, float] | None) -> Any:
    """Bytes, rounded; truncated if they are decoded, as in the published code."""
    if value_range is None:
        x = 255.0 * (0.5 * x + 0.5)
    else:
        low, high = value_range
        x = (x - low) * (255.0 / (high - low)) + 0.5
    return ops.cast(ops.clip(x, 0.0, 255.0), "uint8")


def file_path(path: str | os.PathLike[str], ending: str) -> pathlib.Path:
    """The path of a file to write.

    Raises:
        ValueError: If it does not end so, or is a folder's.
    """
    path = user_path(path)
    if not str(path).endswith(ending):
        raise ValueError(f'`path` must end in "{ending}". Received: path={str(path)!r}')
    if path.is_dir():
        raise ValueError(
            "`path` must be that of a file, which is replaced. "
            f"Received: path={str(path)!r}, which is a folder"
        )
    return path
