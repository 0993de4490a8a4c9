"""Serves a trained model over HTTP as TF Serving does, with a page to look at it.

    python examples/serve.py
    python examples/serve.py --model=imm_digits
    python examples/serve.py --model=runs/digits/model.keras --name=digits
    python examples/serve.py --saved_model=served/digits --port=0

The first form serves the clothes, and the second the digits, that come with the
library; the third a model that was trained here. All export --model, under any backend,
and serve the export; --export_dir keeps it. That takes `pip install
"keras_imm[serve,tensorflow,examples]"`. The last serves an export that is there,
without Keras.

A page at / draws 16 images of a class. Paths and JSON are those of TF Serving:

    curl -d '{"instances": [{"seed": 1, "label": 3}]}' \
        http://127.0.0.1:8501/v1/models/imm_fashion_mnist:predict

`signature_name` in a request chooses among the signatures that
http://127.0.0.1:8501/v1/models/imm_fashion_mnist/metadata lists. Like TF Serving the
server takes requests of any size. It has no authentication: it listens on 127.0.0.1, to
this machine alone, unless --host says otherwise.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import asyncio
import contextlib
import pathlib
import re
import signal
import socket
import sys
import tempfile
from collections.abc import Iterator

from absl import app, flags

NAME = r"\w[\w.-]*"
SIGNALS = (signal.SIGINT, signal.SIGTERM)
INSTALL = 'pip install "keras_imm[serve,tensorflow]"'

try:
    import serve_json  # noqa: F401, to know it now rather than after the export
    from aiohttp import web
except ImportError as error:
    sys.exit(f"{error}: {INSTALL}")

FLAGS = flags.FLAGS
flags.DEFINE_string(
    "model",
    "imm_fashion_mnist",
    "Model to export and serve: a .keras file, or a preset's folder, hf://user/name or "
    "name in the library.",
)
flags.DEFINE_string(
    "saved_model", None, "Exported model to serve instead: its folder or its versions'."
)
flags.DEFINE_string(
    "name", None, "Name of the served model. Default: that of its folder or file."
)
flags.DEFINE_string("host", "127.0.0.1", "Address to listen on; 0.0.0.0 for all.")
flags.DEFINE_integer(
    "port", 8501, "Port to listen on; 0 for any free one.", 0, upper_bound=65535
)
flags.DEFINE_list("num_steps", "1,2,4,8", "Step counts to export.")
flags.DEFINE_float(
    "guidance_scale",
    None,
    "Weight of classifier-free guidance. Default: that of the model's sampling plan.",
)
flags.DEFINE_list(
    "value_range",
    None,
    "Values of the model that become black and white, such as -1,1. Default: those of "
    "the model's `pixels`, else of the digits that examples/digits.py trains on.",
)
flags.DEFINE_string(
    "export_dir", None, "Folder to keep the export in, as <name>/<version>."
)
flags.DEFINE_integer(
    "num_classes",
    10,
    "Labels that the page offers, from 0, of a model that does not name its classes.",
    lower_bound=1,
)

flags.register_validator(
    "num_steps",
    lambda counts: counts and all(n.isdecimal() and int(n) > 0 for n in counts),
    "must be positive integers separated by commas",
)


def is_range(values):
    try:
        low, high = map(float, values)
    except ValueError:
        return False
    return low < high


flags.register_validator(
    "value_range",
    lambda values: values is None or is_range(values),
    "must be two rising numbers separated by a comma",
)
flags.register_validator(
    "name",
    lambda name: name is None or re.fullmatch(NAME, name),
    "must be letters, digits, '_', '-' and '.', and not begin with the last two",
)


def name():
    """--name, or what is left of the model's name where that is no name."""
    if FLAGS.name is not None:
        return FLAGS.name
    path = pathlib.PurePath(FLAGS.saved_model or FLAGS.model)
    if path.name.isdecimal():  # the folder of a version
        path = path.parent
    stem = path.stem
    return stem if re.fullmatch(NAME, stem) else "model"


def value_range(model):
    """The values that become the bytes 0 and 255; None for those of its pixels."""
    if FLAGS.value_range:
        return tuple(map(float, FLAGS.value_range))
    if model.pixels is not None:
        return None
    import digits_data

    images, _ = digits_data.load()
    return float(images.min()), float(images.max())


def export(folder):
    """Writes the model as a SavedModel; the path of its version, and class names."""
    print(f"Exporting {FLAGS.model} ...", flush=True)
    import keras

    import keras_imm.serving

    try:
        if FLAGS.model.endswith(".keras"):
            if not os.path.exists(FLAGS.model):
                sys.exit(
                    f"There is no model at {FLAGS.model}. `make digits` trains one and "
                    "saves it as runs/digits/model.keras; without --model the clothes "
                    "that come with the library are served."
                )
            model = keras.saving.load_model(FLAGS.model)
        else:
            model = keras_imm.FlowMapModel.from_preset(FLAGS.model)
        path = keras_imm.serving.export_saved_model(
            model,
            pathlib.Path(folder, name()),
            num_steps=[int(count) for count in FLAGS.num_steps],
            guidance_scale=FLAGS.guidance_scale,
            value_range=value_range(model),
            warmup=None if FLAGS.export_dir else False,
        )
        return path, model.class_names
    except (ImportError, RuntimeError, ValueError) as error:
        sys.exit(f"The export failed: {error}")


@contextlib.contextmanager
def saved_model() -> Iterator[tuple[str | pathlib.Path, tuple[str, ...] | None]]:
    """The folder of the SavedModel, for as long as it is served, and class names."""
    if FLAGS.saved_model is not None:
        yield FLAGS.saved_model, None
    elif FLAGS.export_dir is not None:
        yield export(FLAGS.export_dir)
    else:
        with tempfile.TemporaryDirectory() as folder:
            yield export(folder)


def bound_socket():
    """A socket at --host and --port, which nobody else can take from here on."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            FLAGS.host, FLAGS.port, type=socket.SOCK_STREAM
        )[0]
        bound = socket.socket(family, kind, protocol)
        if os.name == "posix":
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError as error:
        sys.exit(
            f"Cannot listen on {FLAGS.host}, port {FLAGS.port}: {error.strerror}. "
            "--port=0 takes any free port."
        )
    return bound


def build_application(folder, class_names):
    """The web application that serves a SavedModel, with names for its labels."""
    try:
        import serve_model
        import serve_rest
    except ImportError as error:
        sys.exit(f"{error}: {INSTALL}")
    try:
        model = serve_model.SavedModel(folder)
    except FileNotFoundError as error:
        sys.exit(str(error))
    names = class_names or [f"{i}" for i in range(FLAGS.num_classes)]
    return serve_rest.application(name(), model, names)


async def serve(application, bound):
    """Listens until a signal comes, and answers the requests that came before.

    A second signal ends it at once.
    """
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    with contextlib.suppress(NotImplementedError):  # Windows
        for number in SIGNALS:
            loop.add_signal_handler(number, stop.set)
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=60.0)
    await runner.setup()
    try:
        await web.SockSite(runner, bound).start()
        host, port = bound.getsockname()[:2]
        host = f"[{host}]" if ":" in host else host
        print(f"{name()} is at http://{host}:{port}/ (Ctrl-C ends)", flush=True)
        await stop.wait()
        interrupt_on_signals()
    finally:
        await runner.cleanup()
    print("Stopped.", flush=True)


def interrupt_on_signals():
    """Lets signals raise KeyboardInterrupt, so that no export is left behind."""
    for number in SIGNALS:
        signal.signal(number, signal.default_int_handler)


def main(_):
    bound = bound_socket()
    interrupt_on_signals()
    with contextlib.suppress(KeyboardInterrupt), saved_model() as served:
        asyncio.run(serve(build_application(*served), bound))


if __name__ == "__main__":
    app.run(main)
