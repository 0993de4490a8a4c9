"""`python -m keras_imm.serving run`: from flags to a running server."""

import argparse
import asyncio
import contextlib
import dataclasses
import os
import re
import sys
from typing import Any

from keras_imm.serving.server import loading
from keras_imm.serving.server.errors import missing
from keras_imm.serving.server.limits import Limits

_LABELS = 10  # that the page offers of a model that does not say how many it has
_HELP = {
    "max_batch_size": "most rows in one pass of the network; 1 joins no requests",
    "max_delay_ms": "milliseconds that an idle server waits to fill a pass",
    "max_rows": "most rows of a request",
    "max_queue": "most rows under way; more are refused with 503",
    "max_body_mb": "largest body of a request, in 2^20 bytes",
    "timeout_s": "seconds that a body, and an answer, may take",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the model and all flags."""
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="a .keras file, a preset's name, folder or hf:// uri, or a SavedModel",
    )
    parser.add_argument("--name", type=_name, help="in paths; default: MODEL's own")
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 for all")
    parser.add_argument("--port", type=_port, default=8501, help="0 for any free one")
    parser.add_argument("--grpc_port", type=_port, help="default: no gRPC")
    parser.add_argument(
        "--num_steps", type=_integers, help="such as 1,2,8; not of a SavedModel"
    )
    parser.add_argument(
        "--guidance_scale", type=float, help="default: of the model's sampling plan"
    )
    parser.add_argument(
        "--value_range",
        type=_numbers,
        help="values that become black and white, as in --value_range=-1,1; default: "
        "those of the model's pixels",
    )
    parser.add_argument(
        "--class_names", type=_words, help="labels on the page, from 0: shirt,bag"
    )
    for field in dataclasses.fields(Limits):
        parser.add_argument(
            f"--{field.name}",
            type=type(field.default),
            default=field.default,
            help=f"{_HELP[field.name]}; default: {field.default:g}",
        )


def run(options: argparse.Namespace) -> None:
    """Serves until a signal comes.

    Raises:
        ImportError: If a library is not installed; the message says how to.
        OSError: If nobody can listen there.
        ValueError: If there is no such model, or a flag is out of its range.
    """
    fields = [field.name for field in dataclasses.fields(Limits)]
    limits = Limits(**{name: getattr(options, name) for name in fields})
    try:
        from keras_imm.serving.server import running
        from keras_imm.serving.server.service import Service

        if options.grpc_port is not None:
            from keras_imm.serving.server import grpc_service  # noqa: F401
    except ImportError as error:
        raise missing(error) from error
    bound = running.bound_socket(options.host, options.port)
    if options.grpc_port is not None:  # known now, and not when the model is loaded
        running.bound_socket(options.host, options.grpc_port).close()
    print(f"Loading {options.model} ...", flush=True)
    servable = loading.load(
        options.model,
        limits.max_batch_size,
        options.num_steps,
        options.guidance_scale,
        options.value_range,
    )
    servable.warm_up()
    name = options.name or loading.name_of(options.model)
    names = options.class_names or servable.class_names or _numbered(servable)
    service = Service(name, servable, limits)
    with contextlib.suppress(KeyboardInterrupt, asyncio.CancelledError):
        asyncio.run(running.serve(service, [*names], bound, options.grpc_port))
    if service.is_computing:  # Python would wait for the pass
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def _numbered(servable: Any) -> list[str]:
    return [str(i) for i in range(servable.num_labels or _LABELS)]


def _name(text: str) -> str:
    if re.fullmatch(loading.NAME, text):
        return text
    raise argparse.ArgumentTypeError(
        f"letters, digits, '_', '-' and '.', the last two not first: {text!r}"
    )


def _port(text: str) -> int:
    if text.isdecimal() and int(text) < 2**16:
        return int(text)
    raise argparse.ArgumentTypeError(f"a port is 0 to 65535: {text!r}")


def _integers(text: str) -> list[int]:
    if all(one.isdecimal() for one in text.split(",")):
        return [int(one) for one in text.split(",")]
    raise argparse.ArgumentTypeError(f"numbers with commas between: {text!r}")


def _numbers(text: str) -> tuple[float, ...]:
    with contextlib.suppress(ValueError):
        return tuple(float(one) for one in text.split(","))
    raise argparse.ArgumentTypeError(f"numbers with commas between: {text!r}")


def _words(text: str) -> list[str]:
    return text.split(",")
