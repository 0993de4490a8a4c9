"""Published arrays, checked and assigned to the variables of our backbones."""

from collections.abc import Callable

import numpy as np

from keras_imm.backbones.dit import DiT
from keras_imm.backbones.unet import UNet


def assign_published_weights(
    backbone: DiT | UNet,
    state: dict[str, np.ndarray],
    progress: Callable[[int], None] | None = None,
) -> None:
    """Assigns published weights to a backbone.

    Everything is checked first: if any weight does not fit, nothing is changed.

    Args:
        backbone: A `DiT`, or a `UNet` for a DDPM++ or NCSN++ network; it is built if it
            has not been.
        state: Dictionary of published names, with or without the prefix `model.`, to
            arrays in their published layout. Those that are fixed, the position table
            or the resampling filters, are among them and must agree with ours to 1e-6
            (4e-3 in half precision).
        progress: Called with the number of weights assigned so far.

    Raises:
        ValueError: If a weight is missing, has another shape, belongs to no variable,
            or if a fixed table differs. The message names the first such weight.

    Example:

    ```python
    backbone = keras_imm.backbones.DiT.from_preset(
        "dit_xl_2", image_shape=(32, 32, 4), num_classes=1000
    )
    assign_published_weights(backbone, state)
    ```
    """
    backbone.build()
    weights = list(backbone.published_weights())
    tables = list(backbone.published_tables())
    state = {name.removeprefix("model."): value for name, value in state.items()}
    for table in tables:
        _check_shape(table.name, state, table.values.shape)
        dtypes = {str(state[table.name].dtype), str(table.values.dtype)}
        tolerance = "4e-3" if dtypes & {"float16", "bfloat16"} else "1e-6"
        difference = np.max(np.abs(state[table.name] - table.values))
        if not difference <= float(tolerance):
            raise ValueError(
                f"Weight {table.name!r} must be the fixed {table.description} to "
                f"{tolerance}. Received a table that differs by {difference:.3g}."
            )
    for weight in weights:
        _check_shape(weight.name, state, weight.shape)
    expected = {one.name for one in (*tables, *weights)}
    for name in state:
        if name not in expected:
            raise ValueError(
                f"Weight {name!r} belongs to no variable of this "
                f"{type(backbone).__name__}."
            )

    for count, weight in enumerate(weights, start=1):
        # A copy: JAX may keep the array it is given, which may be a view of a file.
        value = weight.rearrange(np.asarray(state[weight.name]))
        weight.variable.assign(np.array(value, order="C"))
        if progress is not None:
            progress(count)


def _check_shape(name: str, state: dict[str, np.ndarray], shape: tuple[int, ...]):
    if name not in state:
        raise ValueError(f"Weight {name!r} of shape {shape} is missing.")
    received = tuple(np.shape(state[name]))
    if received != shape:
        raise ValueError(
            f"Weight {name!r} must have shape {shape}. Received: shape {received}."
        )
