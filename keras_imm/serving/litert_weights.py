"""Weights of a LiteRT file in half precision."""

from typing import Any

import numpy as np

_OF_FLOAT16 = 3  # the version of the operation that widens float16
_HIGHEST = np.finfo("float16").max


def narrowed(content: bytes) -> bytes:
    """A LiteRT file with its matrices and kernels in float16, which runtimes widen.

    TensorFlow's converter would have all constants so, among them times and
    frequencies, whose products then lose the digits that their sines are made of.
    Matrices of which a number is beyond float16 stay as they are.

    Args:
        content: The file, with weights in float32.
    """
    from tensorflow.lite.python import schema_py_generated as schema
    from tensorflow.lite.tools import flatbuffer_utils

    model = flatbuffer_utils.convert_bytearray_to_object(content)
    widen = schema.OperatorCodeT()
    widen.builtinCode = schema.BuiltinOperator.DEQUANTIZE
    widen.deprecatedBuiltinCode = widen.builtinCode
    widen.version = _OF_FLOAT16
    model.operatorCodes.append(widen)
    for graph in model.subgraphs:
        graph.operators[:0] = [
            _widened(schema, model, graph, place)
            for place, tensor in enumerate([*graph.tensors])
            if _can_be_narrow(schema, model, tensor)
        ]
    return bytes(flatbuffer_utils.convert_object_to_bytearray(model))


def _can_be_narrow(schema: Any, model: Any, tensor: Any) -> bool:
    is_matrix = sum(side > 1 for side in tensor.shape) > 1
    if tensor.type != schema.TensorType.FLOAT32 or not is_matrix:
        return False
    data = model.buffers[tensor.buffer].data
    return data is not None and np.abs(data.view("float32")).max() <= _HIGHEST


def _widened(schema: Any, model: Any, graph: Any, place: int) -> Any:
    """Makes a constant what an operation answers, of one in float16: the operation."""
    tensor = graph.tensors[place]
    buffer = schema.BufferT()
    numbers = model.buffers[tensor.buffer].data.view("float32").astype("float16")
    buffer.data = numbers.view("uint8")
    model.buffers.append(buffer)
    narrow = schema.TensorT()
    narrow.name = tensor.name + b"_float16"
    narrow.shape = tensor.shape
    narrow.type = schema.TensorType.FLOAT16
    narrow.buffer = len(model.buffers) - 1
    graph.tensors.append(narrow)
    operator = schema.OperatorT()
    operator.opcodeIndex = len(model.operatorCodes) - 1
    operator.inputs, operator.outputs = [len(graph.tensors) - 1], [place]
    old, tensor.buffer = tensor.buffer, 0  # which is empty
    if all(old != other.buffer for graph in model.subgraphs for other in graph.tensors):
        model.buffers[old].data = None
    return operator
