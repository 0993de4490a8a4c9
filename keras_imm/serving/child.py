"""The process that `keras_imm.serving.child_process` starts."""

import contextlib
import importlib
import json
import pathlib
import sys
import traceback
import warnings

from keras_imm.serving import child_process


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
    if request["task"] == "onnx":
        from keras_imm.serving import onnx_export

        onnx_export.write(flow, values, path, settings)
        return
    from keras_imm.serving import tensorflow_export

    tensorflow_export.write(flow, values, path, settings, _decoder(request))


def _decoder(request: dict):
    if "decoder" not in request:
        return None
    from keras_imm.latents import StableDiffusionVAE

    vae = StableDiffusionVAE(sigma_data=request["sigma_data"])
    vae.decoder.load_weights(request["decoder"])
    return vae


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
