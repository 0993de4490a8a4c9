"""Exporting `generate_from_noise` to ONNX, through TensorFlow, from any backend."""

import os
import pathlib

from keras_imm import backend
from keras_imm.files.atomic import atomic_file
from keras_imm.flow_map import FlowMap
from keras_imm.model import FlowMapModel
from keras_imm.serving import child_process
from keras_imm.serving.checks import checked_model, plan_of
from keras_imm.serving.settings import Settings
from keras_imm.validation import check_integer

_OPSET = 18
_NUM_STEPS = 2


def export_onnx(
    model: FlowMapModel | str | os.PathLike,
    path: str | os.PathLike,
    num_steps: int | None = None,
    guidance_scale: float | None = None,
    *,
    time_grid: object = None,
    weights: str = "ema",
    sampler: object = None,
    guidance_interval: tuple[float, float] | None = None,
) -> pathlib.Path:
    """Writes the sampler of a model as an ONNX file.

    The graph takes `noise` float32 (batch, H, W, C) of standard deviation 1 and, for a
    conditional model, `label` int32 (batch,), with any number of rows, and returns
    `image` float32 (batch, H, W, C) in the model's range. Labels are not checked. With
    a guidance scale it takes `guidance_scale` float32 (batch,) as well.

    Args:
        model: A `FlowMapModel`, or the path of one saved as `.keras`.
        path: The file to write; it replaces one that is there, when it is complete.
        num_steps: Steps, a positive integer. Default: those of `time_grid` if it is a
            list of eta, else of the model's `sampling_plan`, else 2.
        guidance_scale: Weight of classifier-free guidance (Eq. 14). Default of this and
            of `guidance_interval`: those of the model's `sampling_plan`, else none.
        time_grid: As in `FlowMapModel.generate`. Default of this and of `sampler`:
            those of the model's `sampling_plan`, else the objective's.
        weights: "ema" for the optimizer's averages, or "raw".
        sampler: As in `FlowMapModel.generate`; one that takes no noise after the first,
            such as "pushforward".
        guidance_interval: As in `FlowMapModel.generate`.

    Returns:
        The path of the file.

    Raises:
        ImportError: If TensorFlow or tf2onnx is not installed:
            `pip install "keras_imm[serving]"`.
        RuntimeError: If the child process that exports under another backend than
            TensorFlow fails; the message is its own.
        ValueError: If an argument is out of its range.

    Example:

    ```python
    keras_imm.serving.export_onnx(model, "digits.onnx", num_steps=2)
    session = onnxruntime.InferenceSession("digits.onnx")
    noise = np.random.default_rng(0).standard_normal((2, 8, 8, 1), "float32")
    session.run(None, {"noise": noise, "label": np.array([3, 7], "int32")})
    ```
    """
    model = checked_model(model)
    own = model.own_plan()
    plan = plan_of(
        model,
        sampler=sampler,
        time_grid=time_grid,
        guidance_scale=guidance_scale,
        guidance_interval=guidance_interval,
        weights=weights,
    )
    if num_steps is None:
        num_steps = plan.num_steps or own.num_steps or _NUM_STEPS
    check_integer("num_steps", num_steps, at_least=1)
    settings = Settings(plan, num_steps=(num_steps,)).checked()
    settings = settings.completed(model.objective, model.flow, own)
    if settings.plans()[num_steps].noises():
        raise ValueError(
            "`sampler` must take no noise after the first. "
            f"Received: sampler={sampler or settings.plan.sampler!r}"
        )
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    values = model.weights_for_sampling(weights)
    if backend.name() == "tensorflow":
        write(model.flow, values, path, settings)
    else:
        child_process.run("onnx", model.flow, values, path, settings)
    return path


def write(flow: FlowMap, values: list, path: pathlib.Path, settings: Settings) -> None:
    """Writes the file, in a process that computes with TensorFlow."""
    from keras_imm.serving import tensorflow_export

    try:
        import tf2onnx
    except ImportError as error:
        raise ImportError(
            'ONNX takes tf2onnx: `pip install "keras_imm[serving]"`'
        ) from error
    served = tensorflow_export.serve(flow, values, settings)
    function, inputs = served.from_noise_unchecked()
    with atomic_file(path) as unfinished:
        tf2onnx.convert.from_function(
            function,
            input_signature=inputs,
            opset=_OPSET,
            output_path=str(unfinished),
        )
