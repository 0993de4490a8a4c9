"""From a trained model to a server: SavedModel and ONNX, from any backend."""

from keras_imm.serving.onnx_export import export_onnx
from keras_imm.serving.saved_model import export_saved_model

__all__ = ["export_onnx", "export_saved_model"]
