"""The process that `keras_imm.serving.child_process` starts."""

import contextlib
import importlib
import json
import pathlib
import sys
import traceback
import types
import warnings

from keras_imm.serving import child_process

# Modules of this package, whose `write` carries a task out.
_WRITERS = {
    "saved_model": "tensorflow_export",
    "onnx": "onnx_export",
    "torch": "torch_export",
    "stablehlo": "stablehlo_export",
    "openvino": "openvino_export",
    "litert": "litert_export",
}


def main(path: str) -> int:
    """Carries out the request in a JSON file.

    Args:
        path: Path of the file.

    Returns:
        The exit status.
    """
    request = json.loads(pathlib.Path(path).read_text())
    try:
        with warnings.catch_warnings(record=True, action="always") as caught:
            run_request(request)
    except Exception as error:
        traceback.print_exc()
        print(child_process.failed(error), flush=True)
        return 1
    print(child_process.warned(caught), flush=True)
    return 0


def run_request(request: dict) -> None:
    """Loads the flow map and writes what was asked for."""
    for module in request["modules"]:
        importlib.import_module(module)
    for module in request["other_modules"]:
        with contextlib.suppress(Exception):  # it may not be needed
            importlib.import_module(module)
    from keras_imm.serving import flow_map_file
    from keras_imm.serving.settings import Settings

    settings = Settings.from_config(request["settings"])
    flow = flow_map_file.load(pathlib.Path(request["flow_map"]))
    values = [v.value for v in flow.variables]
    path = pathlib.Path(request["path"])
    options = request["options"]
    if "decoder" in request:
        options["vae"] = _autoencoder(request)
    module = importlib.import_module(f"keras_imm.serving.{_WRITERS[request['task']]}")
    module.write(flow, values, path, settings, **options)


def _autoencoder(request: dict) -> types.SimpleNamespace:
    """An autoencoder without the half that encodes."""
    from keras_imm.latents import autoencoder_networks

    decoder = autoencoder_networks.build_decoder()
    decoder.load_weights(request["decoder"])
    return types.SimpleNamespace(decoder=decoder, sigma_data=request["sigma_data"])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
