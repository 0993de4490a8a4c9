"""Averages of the weights of any length, made after training from snapshots.

A power-function average of training up to step t weights the weights of step tau by
tau^gamma. `keras_imm.callbacks.PowerAverages` keeps two of them and writes snapshots;
an average with another gamma, which nobody kept, is a sum of the snapshots.

Reference:
    - [Karras et al., 2024](https://arxiv.org/abs/2312.02696), Section 3 and Appendix C
"""

import os
import pathlib
import re
from collections.abc import Sequence

import numpy as np

from keras_imm.files.paths import user_path
from keras_imm.validation import check_integer, check_number, shortened

__all__ = ["decay", "exponent", "mixture", "reconstruct", "snapshots"]

FILE = "snapshot_{step:09d}.npz"
_FILES = re.compile(r"snapshot_(\d{9})\.npz")
_STEP, _LENGTHS = "step", "lengths"  # beside the averages, whose names have a slash


def exponent(length: float) -> float:
    """gamma of the power function tau^gamma with a relative width.

    Args:
        length: Standard deviation of the power function over the length of training,
            sigma_rel in the paper: in (0, 0.288], where gamma is 0.

    Returns:
        gamma, at least 0.

    Raises:
        ValueError: If `length` is out of its range.
    """
    largest = 1 / np.sqrt(12)  # of a constant
    check_number(
        "length", length, "a number in (0, 0.288]", lambda v: 0 < v <= largest + 1e-12
    )
    # (gamma + 1) / ((gamma + 2)^2 (gamma + 3)) = length^2
    inverse = length**-2.0
    roots = np.roots([1.0, 7.0, 16.0 - inverse, 12.0 - inverse])
    return max(0.0, float(roots.real.max()))


def decay(before: float, after: float, gamma: float) -> float:
    """Weight of the average at step `before` in that at step `after`."""
    return (before / after) ** (gamma + 1.0)


def snapshots(folder: str | os.PathLike[str]) -> dict[int, pathlib.Path]:
    """The files of a folder by their steps, in order."""
    found = {}
    folder = user_path(folder)
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        match = _FILES.fullmatch(path.name)
        if match:
            found[int(match[1])] = path
    return found


def pack(step: int, lengths: Sequence[float], averages: Sequence[dict]) -> dict:
    """Arrays of a snapshot by their names in its file.

    Args:
        step: Steps that were made.
        lengths: Of the averages.
        averages: For each length arrays by the names of the weights.
    """
    arrays = {_STEP: np.int64(step), _LENGTHS: np.asarray(lengths, "float64")}
    for i, values in enumerate(averages):
        arrays |= {f"{i}/{name}": value for name, value in values.items()}
    return arrays


def unpack(path: pathlib.Path) -> tuple[int, list[float], list[dict]]:
    """What `pack` was given.

    Raises:
        ValueError: If the file is no snapshot.
    """
    try:
        with np.load(path) as file:
            arrays = {name: file[name] for name in file.files}
        step, lengths = int(arrays.pop(_STEP)), arrays.pop(_LENGTHS).tolist()
        averages = [{} for _ in lengths]
        for name, value in arrays.items():
            index, _, name = name.partition("/")
            averages[int(index)][name] = value
    except (OSError, KeyError, IndexError, ValueError, EOFError) as error:
        raise ValueError(f"{path} is no snapshot of averages: {error}") from None
    return step, lengths, averages


def reconstruct(
    folder: str | os.PathLike[str], length: float, step: int | None = None
) -> dict[str, np.ndarray]:
    """The average of some length, from the snapshots of a training run.

    Args:
        folder: What `keras_imm.callbacks.PowerAverages` wrote.
        length: Relative width of the average, as in `exponent`, such as 0.05. Between
            the lengths that were kept and somewhat beyond them it is accurate.
        step: At which the average ends: one that has a snapshot. Default: the last.

    Returns:
        float32 arrays by the names of the weights, for `generate(weights=...)`.

    Raises:
        ValueError: If there is no such snapshot, or `length` is out of its range.

    Example:

    ```python
    averages = keras_imm.callbacks.PowerAverages("averages")
    model.fit(dataset, epochs=100, callbacks=[averages])
    for length in (0.02, 0.05, 0.1, 0.15):
        weights = keras_imm.averages.reconstruct("averages", length)
        images = model.generate(labels, num_steps=2, weights=weights)
    ```
    """
    gamma = exponent(length)
    files = snapshots(folder)
    if not files:
        raise ValueError(f"There are no snapshots of averages in {str(folder)!r}.")
    step = max(files) if step is None else step
    check_integer("step", step, at_least=1)
    if step not in files:
        raise ValueError(
            f"`step` must be one of the snapshots in {str(folder)!r}: "
            f"{shortened(', '.join(map(str, files)))}. Received: step={step}"
        )
    kept = [unpack(path) for number, path in files.items() if number <= step]
    profiles = [(at, exponent(each)) for at, lengths, _ in kept for each in lengths]
    weights = mixture(profiles, (step, gamma))
    averages = [average for _, _, each in kept for average in each]
    return {
        name: sum(
            weight * average[name].astype("float64")
            for weight, average in zip(weights, averages, strict=True)
        ).astype("float32")
        for name in averages[0]
    }


def mixture(
    profiles: Sequence[tuple[float, float]], wanted: tuple[float, float]
) -> np.ndarray:
    """Weights with which power functions add up to another one, by least squares.

    Args:
        profiles: (step, gamma) of each: (gamma + 1) tau^gamma / step^(gamma + 1) up to
            its step, 0 beyond.
        wanted: That of the other.

    Returns:
        float64 array of shape (len(profiles),).
    """
    products = np.array([[_product(a, b) for b in profiles] for a in profiles])
    with_wanted = np.array([_product(a, wanted) for a in profiles])
    # Neighbours are nearly alike, and the products of one scale.
    scale = 1 / np.sqrt(np.diag(products))
    solution = np.linalg.lstsq(
        products * scale[:, None] * scale, with_wanted * scale, rcond=1e-12
    )[0]
    return solution * scale


def _product(a: tuple[float, float], b: tuple[float, float]) -> float:
    """The integral of the product of two profiles."""
    (t_a, gamma_a), (t_b, gamma_b) = a, b
    end = min(t_a, t_b)
    factor = (gamma_a + 1) * (gamma_b + 1) / (gamma_a + gamma_b + 1)
    return factor / end * (end / t_a) ** (gamma_a + 1) * (end / t_b) ** (gamma_b + 1)
