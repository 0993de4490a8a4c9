"""From a trained model to a server: files of other runtimes, from any backend."""

from keras_imm.serving.litert_export import export_litert
from keras_imm.serving.onnx_export import export_onnx
from keras_imm.serving.openvino_export import export_openvino
from keras_imm.serving.saved_model import export_saved_model
from keras_imm.serving.stablehlo_export import export_stablehlo
from keras_imm.serving.torch_export import export_torch
from keras_imm.serving.triton_export import export_triton

__all__ = [
    "export_litert",
    "export_onnx",
    "export_openvino",
    "export_saved_model",
    "export_stablehlo",
    "export_torch",
    "export_triton",
]
