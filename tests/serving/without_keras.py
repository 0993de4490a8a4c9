"""Runs an exported sampler where neither Keras nor this library can be imported.

python without_keras.py torch|aot|jax|onnx|openvino|litert MODEL INPUTS.npz OUTPUTS.npz

The arrays of INPUTS are named by rows and place: "7/0", "7/1", ...
"""

import sys

import numpy as np

sys.modules["keras"] = sys.modules["keras_imm"] = None
framework, model, given, found = sys.argv[1:]


def of_torch():
    import torch

    if framework == "aot":
        program = torch._inductor.aoti_load_package(model)
    else:
        program = torch.export.load(model).module()

    def sample(*inputs):
        with torch.no_grad():
            return program(*map(torch.from_numpy, inputs)).numpy()

    return sample


def of_openvino():
    import openvino

    precise = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.Core().compile_model(model, "CPU", precise)
    names = ("noise", "label", "guidance_scale")
    known = {name for port in compiled.inputs for name in port.names}
    names = [name for name in names if name in known]
    return lambda *inputs: compiled(dict(zip(names, inputs, strict=True)))["image"]


def of_onnx():
    import onnxruntime

    session = onnxruntime.InferenceSession(model)
    names = [port.name for port in session.get_inputs()]
    return lambda *inputs: session.run(None, dict(zip(names, inputs, strict=True)))[0]


def of_litert():
    from ai_edge_litert.interpreter import Interpreter

    assert "tensorflow" not in sys.modules
    runner = Interpreter(model).get_signature_runner("serving_default")
    known = runner.get_input_details()
    names = [name for name in ("noise", "label", "guidance_scale") if name in known]
    return lambda *inputs: runner(**dict(zip(names, inputs, strict=True)))["image"]


def of_jax():
    from jax import export

    with open(model, "rb") as file:
        exported = export.deserialize(file.read())
    print(*exported.platforms)
    return exported.call


makers = {
    **{"jax": of_jax, "onnx": of_onnx},
    **{"openvino": of_openvino, "litert": of_litert},
}
sample = makers.get(framework, of_torch)()
with np.load(given) as file:
    groups = {}
    for name in file.files:
        count, place = name.split("/")
        groups.setdefault(count, {})[int(place)] = file[name]
outputs = {
    count: np.asarray(sample(*(inputs[i] for i in sorted(inputs))))
    for count, inputs in groups.items()
}
np.savez(found, **outputs)
