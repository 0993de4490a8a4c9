"""The process that `keras_imm.serving.child_process` starts."""

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
            carry_out(request)
    except Exception as error:
        traceback.print_exc()
        print(child_process.failed(error), flush=True)
        return 1
    print(child_process.warned(caught), flush=True)
    return 0


def carry_out(request: dict) -> None:
    """Loads the model and writes what was asked for."""
    for module in request["modules"]:
        importlib.import_module(module)
    from keras_imm.serving import tensorflow_export
    from keras_imm.serving.settings import Settings

    arguments = request["arguments"]
    settings = Settings(**arguments["settings"]).checked()
    # A model that the parent made itself may run its own code.
    safe_mode = False if request["own"] else None
    model = tensorflow_export.load(request["model"], safe_mode)
    if request["task"] == "onnx":
        from keras_imm.serving import onnx_export

        onnx_export.write(model, pathlib.Path(arguments["path"]), settings)
        return
    folder = pathlib.Path(arguments["folder"])
    tensorflow_export.write(model, folder, settings, _decoder(request))


def _decoder(request: dict):
    if "decoder" not in request:
        return None
    from keras_imm.latents import StableDiffusionVAE

    vae = StableDiffusionVAE(sigma_data=request["sigma_data"])
    vae.decoder.load_weights(request["decoder"])
    return vae


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
