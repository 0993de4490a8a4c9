"""What `fit` and `evaluate` are given, checked before a step or batch by batch."""

import inspect
import os
from collections.abc import Callable, Mapping
from typing import Any

import keras

from keras_imm import backend
from keras_imm.backend import keras_private
from keras_imm.training_data import DataChecks
from keras_imm.training_length import split_rows
from keras_imm.validation import check_batch_size, shortened


def named_arguments(method: Callable, args: tuple, kwargs: dict) -> dict[str, Any]:
    """Arguments of a method of a model by their names.

    Raises:
        TypeError: If the method does not take them.
    """
    given = inspect.signature(method).bind_partial(None, *args, **kwargs).arguments
    del given["self"]
    return given | given.pop("kwargs", {})


def check_fit_arguments(given: Mapping[str, Any]) -> None:
    """Raises ValueError if weights of samples or of classes are given."""
    for name in ("class_weight", "sample_weight"):
        if given.get(name) is not None:
            raise ValueError(
                "No sample weights are taken, nor weights of classes: to have some "
                "data more often, repeat them. Received: "
                f"{name}={shortened(repr(given[name]))}"
            )


def checked_for_fit(
    given: Mapping[str, Any],
    checks: DataChecks,
    rows_together: int,
    accumulation_steps: int,
    rows_argument: str,
) -> dict[str, Any]:
    """Arguments of `fit` whose data have been checked, or will be, batch by batch.

    Args:
        given: The arguments by their names.
        checks: What data must be like.
        rows_together: Rows that stay together.
        accumulation_steps: Parts of a batch that is trained on.
        rows_argument: What messages call `rows_together`.

    Raises:
        ValueError: If data are not what the model takes, or the last batch of arrays is
            no whole groups.
    """
    given = dict(given)

    def check_last_batch(data, rows, size, steps):
        try:
            check_batch_size(
                rows % size, rows_together, steps, rows_argument=rows_argument
            )
        except ValueError as error:
            raise ValueError(
                f"{error}, the last of {rows} rows of {data} data in batches of {size}"
            ) from None

    x, y, size = given.get("x"), given.get("y"), given.get("batch_size") or 32
    validation = given.get("validation_data")
    share = 0.0 if validation is not None else given.get("validation_split") or 0.0
    trained, held_out = split_rows(_rows(x), share)
    given["x"] = checked_data(checks, x, y, given.get("shuffle", True))
    if given.get("steps_per_epoch") is None:
        check_last_batch("training", trained, size, accumulation_steps)
    if validation is not None:
        val_x, val_y, weights = keras.utils.unpack_x_y_sample_weight(validation)
        check_fit_arguments({"sample_weight": weights})
        held_out = _rows(val_x)
        checked = checked_data(checks, val_x, val_y, shuffle=False)
        if checked is not val_x:
            given["validation_data"] = checked
    if given.get("validation_steps") is None:
        size = given.get("validation_batch_size") or size
        check_last_batch("validation", held_out, size, 1)
    return given


def checked_data(checks: DataChecks, x: Any, y: Any, shuffle: bool) -> Any:
    """x, if it is an array and has passed, or batches that will be checked.

    Args:
        checks: What data must be like.
        x: As in `keras.Model.fit`.
        y: As in `keras.Model.fit`.
        shuffle: As in `keras.Model.fit`.

    Raises:
        ValueError: If data are not what the model takes.
    """
    if isinstance(x, backend.CheckedData):
        return x
    if x is None or isinstance(x, (str, os.PathLike)):
        raise ValueError(
            "`x` must be arrays or batches, such as those of "
            f"`keras_imm.datasets.load`. Received: x={x!r}"
        )
    if isinstance(x, (tuple, list)) and y is None:
        raise ValueError(
            "Images and their labels are two arguments: `x` and `y`. Received: "
            f"x={type(x).__name__} of {len(x)}"
        )
    if keras_private.are_arrays(x, y):
        checks((x, y))
        return x
    if y is not None and hasattr(x, "shape"):
        raise ValueError(
            "`y` must be an array of integers, as `np.asarray(labels)` is. "
            f"Received: y={shortened(repr(y))}"
        )
    checks.check_classes(x)
    if y is not None:
        return x  # Keras says what is wrong
    return backend.CheckedData(x, checks, shuffle=shuffle)


def _rows(x: Any) -> int:
    """Rows of an array; 0 of batches, of which no last one is known."""
    return len(x) if hasattr(x, "shape") else 0
