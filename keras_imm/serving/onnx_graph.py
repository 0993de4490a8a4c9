"""From a program of PyTorch to a graph of ONNX."""

import contextlib
import logging
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from keras_imm.serving import onnx_branches
from keras_imm.serving.from_noise import Input

OPSET = 18
_LOGGERS = ("torch.onnx", "onnx_ir", "onnxscript")
_LARGEST_HALF = float(np.finfo("float16").max)


def graph_of(
    program: Any, inputs: Sequence[Input], counts: Sequence[int], dtype: str
) -> Any:
    """A `torch.export.ExportedProgram` as `onnx_ir.Model`.

    Args:
        program: The program, for any number of rows.
        inputs: Its inputs.
        counts: Numbers of steps, rising. Of several, the program has an output each,
            in the place of which the graph has an input `num_steps`, int32 (batch,).
        dtype: "float16" to make that of all bfloat16, and store in it the weights that
            are used in it alone; else "float32".

    Raises:
        RuntimeError: If PyTorch knows no operation of ONNX for one of its own.
        ValueError: If float16 cannot hold a weight.
    """
    import onnx_ir
    import torch

    from keras_imm.backend.torch.precision import older_name_agrees

    names = ["image"] if len(counts) == 1 else [f"image_{n}" for n in counts]
    with older_name_agrees(), _quiet():
        exported = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=OPSET,
            input_names=[one.name for one in inputs],
            output_names=names,
            custom_translation_table={torch.ops.aten.div.Tensor_mode: _divided},
            optimize=False,
            verbose=False,
        )
        model = exported.model
        if dtype == "float16":
            _make_float16(model)
        exported.optimize()
    for value, one in zip(model.graph.inputs, inputs, strict=True):
        value.shape = onnx_ir.Shape(["batch", *one.shape])
    for image in model.graph.outputs:
        image.shape = onnx_ir.Shape(["batch", *list(image.shape)[1:]])
    _clean(model)
    if len(counts) > 1:
        onnx_branches.choose_rows(model.graph, counts)
    return model


def _make_float16(model: Any) -> None:
    """Makes float16 of bfloat16, of which few runtimes have operations."""
    import onnx_ir

    before, after = onnx_ir.DataType.BFLOAT16, onnx_ir.DataType.FLOAT16
    for node in model.graph.all_nodes():
        for name, attribute in list(node.attributes.items()):
            if attribute.type == onnx_ir.AttributeType.TENSOR:
                tensor = attribute.as_tensor()
                if tensor.dtype == before:
                    node.attributes[name] = onnx_ir.AttrTensor(name, _half_of(tensor))
            elif node.op_type == "Cast" and attribute.as_int() == before:
                node.attributes[name] = onnx_ir.AttrInt64(name, after)
        for value in node.outputs:
            if value.dtype == before:
                value.dtype = after
    for weight in list(model.graph.initializers.values()):
        if weight.dtype == before:
            weight.const_value, weight.dtype = _half_of(weight.const_value), after
        elif weight.dtype == onnx_ir.DataType.FLOAT:
            _store_half(model.graph, weight)


def _store_half(graph: Any, weight: Any) -> None:
    """Stores a weight in float16 if all that use it round it to that first."""
    import onnx_ir

    float16 = onnx_ir.DataType.FLOAT16
    casts = [node for node, _ in weight.uses()]
    if not casts or not all(_casts_to(node, float16) for node in casts):
        return
    half = onnx_ir.Value(
        name=f"{weight.name}_half",
        type=onnx_ir.TensorType(float16),
        shape=weight.shape,
        const_value=_half_of(weight.const_value),
    )
    del graph.initializers[weight.name]
    graph.register_initializer(half)
    for node in casts:
        node.outputs[0].replace_all_uses_with(half)
        node.graph.remove(node, safe=True)


def _half_of(tensor: Any) -> Any:
    import onnx_ir

    values = tensor.numpy().astype("float32")
    largest = np.abs(values).max(initial=0.0)
    if largest > _LARGEST_HALF:
        raise ValueError(
            "`dtype` must be one that holds the weights, which float16 does up to "
            f"{_LARGEST_HALF:.0f}. Received: dtype='float16', and a weight of "
            f"{largest:.6g}"
        )
    return onnx_ir.tensor(values.astype("float16"))


def _casts_to(node: Any, dtype: Any) -> bool:
    return node.op_type == "Cast" and node.attributes["to"].as_int() == dtype


def _divided(self: Any, other: Any, rounding_mode: str | None = None) -> Any:
    """Integers are divided as such; PyTorch's own translation makes float32 of them."""
    from onnxscript import opset18
    from onnxscript.function_libs.torch_lib.ops.core import aten_div_mode

    if rounding_mode == "trunc" and self.dtype.is_integer():
        return opset18.Div(self, other)
    return aten_div_mode(self, other, rounding_mode)


def _clean(graph: Any) -> None:
    """Removes lines of source code and paths, and the shapes between, of one trace."""
    graph.metadata_props.clear()
    graph.graph.metadata_props.clear()
    kept = {*graph.graph.inputs, *graph.graph.outputs}
    for value in (*kept, *graph.graph.initializers.values()):
        value.metadata_props.clear()
    for node in graph.graph.all_nodes():
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()
            if value not in kept:
                value.shape = None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps the exporter from naming its passes, and packages that are missing."""
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
