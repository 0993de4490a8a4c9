"""A model of this library, computed by the backend that Keras is set to."""

from collections.abc import Iterable, Sequence

import numpy as np

from keras_imm import backend
from keras_imm.model import FlowMapModel
from keras_imm.pixels import Pixels
from keras_imm.samplers import SamplingPlan
from keras_imm.serving.server.errors import RequestError
from keras_imm.serving.server.row_noise import row_normal
from keras_imm.serving.server.servable import (
    DEFAULT_SIGNATURE,
    Arrays,
    Servable,
    Signature,
    Tensor,
)
from keras_imm.serving.settings import Settings
from keras_imm.validation import check_integer

_NUM_STEPS = (1, 2, 4, 8)
_GROWTH = 4  # of the sizes that passes are filled up to
_FROM_NOISE = "generate_from_noise"


class KerasServable(Servable):
    """`generate` and the model's pixels, with the signatures of `export_saved_model`.

    `serving_default`, `generate_<n>_steps` and, where the sampler takes no noise after
    the first, `generate_from_noise`; the same seed and label give the image of the
    exported model, to one level. Rows of different guidance are computed one after the
    other. Passes are filled up to a few sizes, 1, 4, 16 and so on: a backend compiles
    each once.

    Args:
        model: A built `FlowMapModel`.
        num_steps: Step counts, positive. Default: 1, 2, 4, 8 and that of the model's
            `sampling_plan`.
        guidance_scale: Weight of classifier-free guidance; with it requests of
            `generate_<n>_steps` and `generate_from_noise` give their own. Default: that
            of the model's `sampling_plan`, else none.
        value_range: Values of the model's range that become the bytes 0 and 255.
            Default: those of the model's `pixels`, else -1 and 1.
        max_batch_size: The most rows of a pass, positive.

    Raises:
        ValueError: If an argument is out of its range, or the model is not built.
    """

    version = 1

    def __init__(
        self,
        model: FlowMapModel,
        num_steps: Sequence[int] | None = None,
        guidance_scale: float | None = None,
        value_range: tuple[float, float] | None = None,
        max_batch_size: int = 64,
    ):
        if not model.built or None in model.data_shape:
            raise ValueError("`model` must be built for data of one shape.")
        check_integer("max_batch_size", max_batch_size, at_least=1)
        own = model.own_plan()
        if num_steps is None:
            num_steps = sorted({*_NUM_STEPS, own.num_steps or _NUM_STEPS[0]})
        is_own = own.num_steps in np.ravel(num_steps).tolist()
        settings = Settings(
            SamplingPlan(guidance_scale=guidance_scale),
            num_steps=num_steps,
            default_num_steps=own.num_steps if is_own else None,
            value_range=(-1.0, 1.0) if value_range is None else value_range,
        ).checked()
        self._model = model
        self._default = settings.default_num_steps
        self._plans = {
            steps: model.own_plan(
                num_steps=steps, guidance_scale=guidance_scale
            ).completed(model.objective)
            for steps in settings.num_steps
        }
        for plan in self._plans.values():
            plan.checked_times(model.flow)
        self._to_bytes = model.pixels
        if value_range is not None or model.pixels is None:
            self._to_bytes = _pixels_of(settings.value_range)
        self._sizes = _sizes(max_batch_size)
        self.platform = f"keras_{backend.name()}"
        self.class_names, self.num_labels = model.class_names, model.num_classes
        self.signatures = self._signatures()

    def _signatures(self) -> dict[str, Signature]:
        rows = {"label": Tensor(np.dtype("int32"), (None,))}
        rows = rows if self._model.num_classes else {}
        seeds = {"seed": Tensor(np.dtype("int64"), (None,)), **rows}
        scale = {"guidance_scale": Tensor(np.dtype("float32"), (None,))}
        if self._plans[self._default].guidance_scale is None:
            scale = {}
        data = Tensor(np.dtype("float32"), (None, *self._model.data_shape))
        shape = self._to_bytes(np.zeros((1, *data.shape[1:]), "float32")).shape
        image = {"image": Tensor(np.dtype("uint8"), (None, *shape[1:]))}
        signatures = {DEFAULT_SIGNATURE: Signature(seeds, image)}
        for steps in self._plans:
            signatures[f"generate_{steps}_steps"] = Signature(seeds | scale, image)
        if not self._plans[self._default].noises():
            signatures[_FROM_NOISE] = Signature(
                {"noise": data, **rows, **scale}, {"image": data}
            )
        return signatures

    def check(self, name: str, inputs: Arrays) -> int:
        rows = super().check(name, inputs)
        last, labels = self._model.num_classes, inputs.get("label")
        if labels is not None and not np.all((labels >= 0) & (labels <= last)):
            wrong = labels[(labels < 0) | (labels > last)][0]
            raise RequestError(
                f"`label` must be in [0, {last}], where {last} is no class. "
                f"Received: {wrong}"
            )
        return rows

    def run(self, name: str, inputs: Arrays) -> Arrays:
        plan = self._plan(name)
        noise = self._noise(plan, inputs)
        samples = np.empty(noise.shape[1:], "float32")
        for scale, rows in _alike(inputs.get("guidance_scale"), len(samples)):
            samples[rows] = self._generate(
                plan, noise[:, rows], inputs.get("label"), rows, scale
            )
        return {"image": samples if name == _FROM_NOISE else self._to_bytes(samples)}

    def _generate(
        self,
        plan: SamplingPlan,
        noise: np.ndarray,
        label: np.ndarray | None,
        rows: np.ndarray,
        scale: float | None,
    ) -> np.ndarray:
        """Samples of some rows, in passes of the sizes."""
        count, largest = len(rows), self._sizes[-1]
        size = next((size for size in self._sizes if size >= count), count)
        filled = np.minimum(np.arange(size), count - 1)
        samples = self._model.generate(
            None if label is None else label[rows][filled],
            num_steps=plan.num_steps,
            guidance_scale=plan.guidance_scale if scale is None else scale,
            noise=noise[:, filled],
            batch_size=largest,
            verbose=0,
        )
        return samples[:count]

    def warm_up(self) -> None:
        for size in self._sizes:
            inputs = {
                name: np.zeros((size,), tensor.dtype)
                for name, tensor in self.signatures[DEFAULT_SIGNATURE].inputs.items()
            }
            self.run(DEFAULT_SIGNATURE, inputs)

    def _plan(self, name: str) -> SamplingPlan:
        if name in (DEFAULT_SIGNATURE, _FROM_NOISE):
            return self._plans[self._default]
        return self._plans[int(name.split("_")[1])]

    def _noise(self, plan: SamplingPlan, inputs: Arrays) -> np.ndarray:
        """All draws of every row, shape (draws, rows, ...)."""
        if "noise" in inputs:
            return inputs["noise"][None]
        shape, seeds = self._model.data_shape, inputs["seed"]
        size = int(np.prod(shape))
        draws = [row_normal(seeds, size, i) for i in range(1 + plan.noises())]
        return np.stack(draws).reshape(-1, len(seeds), *shape)


def _alike(
    scales: np.ndarray | None, rows: int
) -> Iterable[tuple[float | None, np.ndarray]]:
    """Every guidance scale, and the indices of its rows."""
    if scales is None:
        return [(None, np.arange(rows))]
    return [(float(one), np.flatnonzero(scales == one)) for one in np.unique(scales)]


def _sizes(largest: int) -> list[int]:
    """1, 4, 16 and so on, and the largest."""
    sizes = [1]
    while sizes[-1] * _GROWTH < largest:
        sizes.append(sizes[-1] * _GROWTH)
    return [*sizes, largest] if largest > 1 else sizes


def _pixels_of(value_range: tuple[float, float]) -> Pixels:
    low, high = value_range
    scale = 255.0 / (high - low)
    return Pixels(scale, -low * scale)
