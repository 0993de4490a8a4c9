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
import warnings
from collections.abc import Sequence

import numpy as np

from keras_imm.files.paths import user_path
from keras_imm.validation import check_integer, check_number, shortened

__all__ = ["decay", "exponent", "mixture", "reconstruct", "snapshots"]

FILE = "snapshot_{step:09d}.npz"
_FILES = re.compile(r"snapshot_(\d{9})\.npz")
_STEP, _LENGTHS = "step", "lengths"  # beside the averages, whose names have a slash
_LARGEST_ERROR = 0.15  # of a profile, as a share of its norm


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
    return _read(path, lambda name: True)


def _read(path, is_wanted):
    """What `pack` was given, of the averages those of whose arrays this is wanted."""
    try:
        with np.load(path) as file:
            step, lengths = int(file[_STEP]), file[_LENGTHS].tolist()
            averages = [{} for _ in lengths]
            for key in file.files:
                index, slash, name = key.partition("/")
                if slash and is_wanted(name):
                    averages[int(index)][name] = file[key]
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
            the lengths that were kept and somewhat beyond them it is accurate; where
            the snapshots do not have it, there is a warning.
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
    paths = [path for number, path in files.items() if number <= step]
    profiles = [_read(path, lambda name: False)[:2] for path in paths]
    profiles = [(at, exponent(each)) for at, lengths in profiles for each in lengths]
    weights, error = mixture(profiles, (step, gamma))
    if error > _LARGEST_ERROR:
        warnings.warn(
            f"The snapshots in {str(folder)!r} make an average of length {length} with "
            f"an error of {error:.0%} of its profile only: keep more of them, or "
            "`lengths` nearer to it.",
            stacklevel=2,
        )
    sums: dict[str, np.ndarray] = {}
    for weight, average in zip(weights, _averages_of(paths), strict=True):
        for name, value in average.items():
            term = weight * value.astype("float64")
            sums[name] = sums[name] + term if name in sums else term
    return {name: value.astype("float32") for name, value in sums.items()}


def _averages_of(paths):
    """The averages of snapshots, of which one file's are in memory at a time."""
    for path in paths:
        yield from unpack(path)[2]


def mixture(
    profiles: Sequence[tuple[float, float]], wanted: tuple[float, float]
) -> tuple[np.ndarray, float]:
    """Weights with which power functions add up to another one, by least squares.

    They sum to 1, so that what does not change has itself as its average.

    Args:
        profiles: (step, gamma) of each: (gamma + 1) tau^gamma / step^(gamma + 1) up to
            its step, 0 beyond.
        wanted: That of the other.

    Returns:
        float64 array of shape (len(profiles),), and the norm of what is missing, as a
        share of the norm of the other.
    """
    products = np.array([[_product(a, b) for b in profiles] for a in profiles])
    with_wanted = np.array([_product(a, wanted) for a in profiles])
    # Neighbours are nearly alike, and the products of one scale. A last row, with its
    # Lagrange multiplier, is for the sum.
    scale = 1 / np.sqrt(np.diag(products))
    size = np.linalg.norm(scale)
    ones = scale[:, None] / size
    system = np.block([[products * scale[:, None] * scale, ones], [ones.T, 0.0]])
    solution = np.linalg.lstsq(
        system, np.append(with_wanted * scale, 1 / size), rcond=1e-12
    )[0]
    weights = solution[:-1] * scale
    whole = _product(wanted, wanted)
    missing = whole - 2 * weights @ with_wanted + weights @ products @ weights
    return weights, float(np.sqrt(max(missing, 0.0) / whole))


def _product(a: tuple[float, float], b: tuple[float, float]) -> float:
    """The integral of the product of two profiles."""
    (t_a, gamma_a), (t_b, gamma_b) = a, b
    end = min(t_a, t_b)
    factor = (gamma_a + 1) * (gamma_b + 1) / (gamma_a + gamma_b + 1)
    return factor / end * (end / t_a) ** (gamma_a + 1) * (end / t_b) ** (gamma_b + 1)
