"""Several samplers in one graph of ONNX, of which those that rows ask for are run."""

from collections.abc import Sequence
from typing import Any

import numpy as np


def choose_rows(graph: Any, counts: Sequence[int]) -> None:
    """Replaces several outputs by one, with each row of the output that it asks for.

    The graph gets an input `num_steps`, int32 (batch,). What is computed for one output
    alone becomes a branch, which is taken if a row asks for it.

    Args:
        graph: `onnx_ir.Graph` with an output for each of `counts`, images of one shape.
        counts: The numbers that rows ask by, rising. Any other number counts as the
            next lower of these, or else as the lowest.
    """
    import onnx_ir
    from onnx_ir import tape

    images = list(graph.outputs)
    branches = _branches(graph, images)
    shape, dtype = images[0].shape, images[0].dtype
    wanted = onnx_ir.Value(
        name="num_steps",
        type=onnx_ir.TensorType(onnx_ir.DataType.INT32),
        shape=onnx_ir.Shape([shape[0]]),
    )
    graph.inputs.append(wanted)
    made = tape.Tape()

    def constant(values, dtype):
        tensor = onnx_ir.tensor(np.array(values, dtype))
        return made.op("Constant", [], {"value": tensor})

    column = constant([-1] + [1] * (len(shape) - 1), "int64")
    nothing = np.zeros([1, *list(shape)[1:]], dtype.numpy())
    result = made.op("Constant", [], {"value": onnx_ir.tensor(nothing)})
    reached = constant(True, "bool")  # by the numbers of all rows
    for i, branch in enumerate(branches):
        chosen = reached
        if i + 1 < len(counts):
            above = constant([counts[i + 1]], "int32")
            reached = made.op("GreaterOrEqual", [wanted, above])
            chosen = made.op("And", [chosen, made.op("Not", [reached])])
        number = made.op("Cast", [chosen], {"to": onnx_ir.DataType.INT32})
        any_row = made.op("ReduceMax", [number], {"keepdims": 0})
        sampled = made.op(
            "If",
            [made.op("Cast", [any_row], {"to": onnx_ir.DataType.BOOL})],
            {"then_branch": branch, "else_branch": _constant(nothing, i)},
        )
        sampled.dtype = dtype
        rows = made.op("Reshape", [chosen, column])
        result = made.op("Where", [rows, sampled, result])
    graph.extend(made.nodes)
    result.name, result.type, result.shape = "image", images[0].type, shape
    graph.outputs[:] = [result]


def _branches(graph: Any, images: list) -> list:
    """What is computed for one of the outputs alone, taken out of the graph."""
    import onnx_ir

    uses = {}  # outputs that a node is computed for
    for node in reversed(list(graph)):
        found = {images.index(value) for value in node.outputs if value in images}
        for value in node.outputs:
            for user, _ in value.uses():
                found |= uses.get(user, set())
        uses[node] = found
    graph.outputs.clear()
    branches = []
    for i, image in enumerate(images):
        nodes = [node for node in graph if uses[node] == {i}]
        graph.remove(nodes)
        branches.append(onnx_ir.Graph([], [image], nodes=nodes, name=f"samples_{i}"))
    return branches


def _constant(array: np.ndarray, place: int) -> Any:
    """A branch that computes nothing."""
    import onnx_ir
    from onnx_ir import tape

    made = tape.Tape()
    value = made.op("Constant", [], {"value": onnx_ir.tensor(array)})
    value.name = f"no_samples_{place}"
    value.dtype, value.shape = (
        onnx_ir.DataType.from_numpy(array.dtype),
        onnx_ir.Shape(array.shape),
    )
    return onnx_ir.Graph([], [value], nodes=made.nodes, name=f"nothing_{place}")
