"""Command line: `python -m keras_imm.presets measure imm_digits`."""

import argparse
import math
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np

from keras_imm.files import presets
from keras_imm.metrics import DigitsQuality, FashionMNISTQuality
from keras_imm.model import FlowMapModel

# How much a figure may differ from that of another backend or processor.
TOLERANCE = 0.02
_FIGURES = ("frechet", "agreement")
_BATCH = 500


def quality(preset: str, data_dir: str | None = None) -> list[dict[str, float]]:
    """Measures a preset as its metadata say that it was measured.

    Args:
        preset: As in `FlowMapModel.from_preset`.
        data_dir: Folder of Fashion-MNIST, where that is measured with.

    Returns:
        A row for each number of steps, as `metadata(preset)["training"]["quality"]`.

    Raises:
        ValueError: If it is no preset, or its metadata do not say by which known
            measure, with how many samples, noise and steps it was measured.
        ImportError: If a library that the measure takes is not installed.
        OSError: If the measure's data are not there.
    """
    return list(_rows(preset, data_dir))


def _rows(preset: str, data_dir: str | None) -> Iterator[dict[str, float]]:
    measured = _measured(preset)
    kind = _MEASURES[measured["measure"]]
    model = FlowMapModel.from_preset(preset)
    of_clothes = kind is FashionMNISTQuality
    score = kind(data_dir) if of_clothes else kind()
    samples = measured["samples"]
    labels = score.labels(samples)
    rng = np.random.default_rng(measured["noise_seed"])
    noise = rng.standard_normal((samples, *model.data_shape), "float32")
    for row in measured["quality"]:
        images = model.generate(
            labels, num_steps=row["steps"], noise=noise, batch_size=_BATCH, verbose=0
        )
        if of_clothes:
            images = model.to_uint8(images)
        yield {"steps": row["steps"], **score.measure(images, labels)}


_MEASURES = {kind.name: kind for kind in (DigitsQuality, FashionMNISTQuality)}


def _measured(preset: str) -> dict[str, Any]:
    """The metadata's "training", once `quality` can follow it; anybody may write them.

    Raises:
        ValueError: If an entry is not what it must be.
    """
    about = presets.metadata(preset).get("training", {})
    _check_entry(preset, "training", about, isinstance(about, dict), "an object")
    measure, rows = about.get("measure"), about.get("quality")
    if not isinstance(measure, str) or measure not in _MEASURES or not rows:
        raise ValueError(
            f"Preset {preset!r} does not say how it was measured. Known measures: "
            f"{', '.join(_MEASURES)}. Received: training.measure={measure!r}, "
            f"training.quality={rows!r}"
        )
    samples, seed = (about.get(name) for name in ("samples", "noise_seed"))
    for name, value, least, allowed in (
        ("training.samples", samples, 1, "a positive integer"),
        ("training.noise_seed", seed, 0, "a non-negative integer"),
    ):
        _check_entry(preset, name, value, _is_integer(value, least), allowed)
    is_rows = isinstance(rows, list) and all(isinstance(row, dict) for row in rows)
    _check_entry(preset, "training.quality", rows, is_rows, "a list of objects")
    for i, row in enumerate(rows):
        name, steps = f"training.quality[{i}].steps", row.get("steps")
        allowed = "a positive integer"
        _check_entry(preset, name, steps, _is_integer(steps, 1), allowed)
    return about


def _expected(preset: str) -> list[dict[str, float]]:
    """The rows of the metadata, once figures can be compared with them.

    Raises:
        ValueError: If a row has none, or one that is no positive number.
    """
    rows = _measured(preset)["quality"]
    for i, row in enumerate(rows):
        entry, names = f"training.quality[{i}]", _compared(row)
        _check_entry(preset, entry, row, bool(names), f"with {' or '.join(_FIGURES)}")
        for name in names:
            is_number = type(row[name]) in (int, float) and 0 < row[name] < math.inf
            entry = f"training.quality[{i}].{name}"
            _check_entry(preset, entry, row[name], is_number, "a positive number")
    return rows


def _compared(row: dict) -> list[str]:
    return [name for name in _FIGURES if name in row]


def _is_integer(value: Any, least: int) -> bool:
    return type(value) is int and value >= least


def _check_entry(preset: str, entry: str, value: Any, is_so: bool, what: str) -> None:
    if not is_so:
        raise ValueError(
            f"`{entry}` in the metadata of preset {preset!r} must be {what}. "
            f"Received: {value!r}"
        )


def main(arguments: list[str] | None = None) -> int:
    """Lists the presets that come with the library, or measures one.

    Args:
        arguments: Of the command line; `sys.argv` by default.

    Returns:
        0, or 1 with a message on the error stream, also where a figure is not the
        preset's own.
    """
    parser = argparse.ArgumentParser(prog="python -m keras_imm.presets")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="names of those that come with the library")
    measure = commands.add_parser("measure", help="figures beside those of its card")
    measure.add_argument("preset", metavar="PRESET", help="name, folder or hf:// uri")
    measure.add_argument("--data_dir", help="folder of Fashion-MNIST")
    options = parser.parse_args(arguments)
    if options.command == "list":
        print("\n".join(presets.names()))
        return 0
    try:
        expected = _expected(options.preset)
        rows = _rows(options.preset, options.data_dir)
        differences = [_print_row(*pair) for pair in zip(rows, expected, strict=True)]
    except (ValueError, OSError, ImportError) as error:
        print(error, file=sys.stderr)
        return 1
    if max(differences) > TOLERANCE:
        print(f"A figure is off by {max(differences):.1%}.", file=sys.stderr)
        return 1
    return 0


def _print_row(row: dict, expected: dict) -> float:
    """Prints figures beside those of the card; returns their largest difference."""
    names = _compared(expected)
    figures = (f"{name} {row[name]:.4f} ({expected[name]:.4f})" for name in names)
    steps = row["steps"]
    print(f"{steps} step{'s' if steps > 1 else ''}: {', '.join(figures)}", flush=True)
    return max(abs(row[name] / expected[name] - 1) for name in names)


if __name__ == "__main__":
    sys.exit(main())
