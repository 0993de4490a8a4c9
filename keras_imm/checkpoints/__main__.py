"""Command line: `python -m keras_imm.checkpoints convert IN OUT.keras`."""

import argparse
import sys

from keras_imm.checkpoints.keras_file import save
from keras_imm.checkpoints.official import load_official


def main(arguments: list[str] | None = None) -> int:
    """Converts a published checkpoint into a `.keras` file.

    Args:
        arguments: Of the command line; `sys.argv` by default.

    Returns:
        0, or 1 with a message on the error stream.
    """
    parser = argparse.ArgumentParser(prog="python -m keras_imm.checkpoints")
    commands = parser.add_subparsers(dest="command", required=True)
    convert = commands.add_parser(
        "convert", help="a published checkpoint into a .keras file"
    )
    convert.add_argument("source", metavar="IN", help="file or published name")
    convert.add_argument("target", metavar="OUT.keras", help="file to write")
    options = parser.parse_args(arguments)
    if not options.target.endswith(".keras"):
        parser.error(f"OUT must end in .keras, received {options.target!r}")
    try:
        model = load_official(options.source, verbose=1)
        save(model, options.target)
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{model.count_params():,} weights in {options.target}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
