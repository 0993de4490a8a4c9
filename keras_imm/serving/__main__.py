"""A model as a server: `python -m keras_imm.serving run MODEL`."""

import argparse
import sys

from keras_imm.serving.server import command

_INTERRUPTED = 130  # as shells call what SIGINT has ended


def main(arguments: list[str] | None = None) -> int:
    """Serves a model until a signal comes.

    Args:
        arguments: Of the command line; `sys.argv` by default.

    Returns:
        0, 1 with a message on the error stream, or 130 if Ctrl-C came before it served.
    """
    parser = argparse.ArgumentParser(prog="python -m keras_imm.serving")
    commands = parser.add_subparsers(dest="command", required=True)
    command.add_arguments(commands.add_parser("run", help="serves a model"))
    options = parser.parse_args(arguments)
    try:
        command.run(options)
    except (ImportError, OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:  # while the model is loaded
        return _INTERRUPTED
    return 0


if __name__ == "__main__":
    sys.exit(main())
