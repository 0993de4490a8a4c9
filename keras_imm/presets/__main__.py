"""Command line: `python -m keras_imm.presets measure imm_digits`."""

import argparse
import sys
from typing import Any

import numpy as np

from keras_imm.files import presets
from keras_imm.metrics import DigitsQuality, FashionMNISTQuality
from keras_imm.model import FlowMapModel

# How much a figure may differ from that of another backend or processor.
TOLERANCE = 0.02
_BATCH = 500


def quality(preset: str, **options: Any) -> list[dict[str, float]]:
    """Measures a preset as its metadata say that it was measured.

    Args:
        preset: As in `FlowMapModel.from_preset`.
        **options: Arguments of the measure, such as `data_dir`.

    Returns:
        A row for each number of steps, as `metadata(preset)["training"]["quality"]`.

    Raises:
        ValueError: If it is no preset, or says of no known measure how it was measured.
        ImportError: If a library that the measure takes is not installed.
        OSError: If the measure's data are not there.
    """
    measured = _measured(preset)
    kind = _MEASURES[measured["measure"]]
    model = FlowMapModel.from_preset(preset)
    score, samples = kind(**options), measured["samples"]
    labels = score.labels(samples)
    rng = np.random.default_rng(measured["noise_seed"])
    noise = rng.standard_normal((samples, *model.data_shape), "float32")
    rows = []
    for row in measured["quality"]:
        images = model.generate(
            labels, num_steps=row["steps"], noise=noise, batch_size=_BATCH, verbose=0
        )
        if kind is FashionMNISTQuality:
            images = model.to_uint8(images)
        rows.append({"steps": row["steps"], **score.measure(images, labels)})
    return rows


_MEASURES = {kind.name: kind for kind in (DigitsQuality, FashionMNISTQuality)}


def _measured(preset: str) -> dict[str, Any]:
    about = presets.metadata(preset).get("training", {})
    if about.get("measure") not in _MEASURES or not about.get("quality"):
        raise ValueError(
            f"Preset {preset!r} does not say how it was measured. Known measures: "
            f"{', '.join(_MEASURES)}"
        )
    return about


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
    given = {} if options.data_dir is None else {"data_dir": options.data_dir}
    try:
        rows = quality(options.preset, **given)
        expected = _measured(options.preset)["quality"]
    except (ValueError, OSError, ImportError) as error:
        print(error, file=sys.stderr)
        return 1
    differences = [_print_row(*pair) for pair in zip(rows, expected, strict=True)]
    if max(differences) > TOLERANCE:
        print(f"A figure is off by {max(differences):.1%}.", file=sys.stderr)
        return 1
    return 0


def _print_row(row: dict, expected: dict) -> float:
    """Prints figures beside those of the card; returns their largest difference."""
    names = [name for name in ("frechet", "agreement") if name in expected]
    figures = (f"{name} {row[name]:.4f} ({expected[name]:.4f})" for name in names)
    steps = row["steps"]
    print(f"{steps} step{'s' if steps > 1 else ''}: {', '.join(figures)}")
    return max(abs(row[name] / expected[name] - 1) for name in names)


if __name__ == "__main__":
    sys.exit(main())
