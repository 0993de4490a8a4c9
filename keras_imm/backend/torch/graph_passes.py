"""What is changed in traced graphs before they run."""

from collections.abc import Callable
from typing import Any

import torch

# Constants of more elements are not compared with each other.
_SMALL = 16

_VIEWS = (torch.ops.aten.view.default, torch.ops.aten._unsafe_view.default)


def simplify(module: Any) -> None:
    """Takes out of a traced module what no result needs, or what is there already."""
    aten = torch.ops.aten
    for node in module.graph.nodes:
        if node.target is aten.detach.default:
            node.replace_all_uses_with(node.args[0])
    if not any(map(_works_in_place, module.graph.nodes)):
        _fold_constants(module)
        _share_draws(module)
    _add_biases_in_products(module)
    _read_attention_where_it_lies(module)
    module.graph.eliminate_dead_code()
    module.recompile()


def _fold_constants(module: Any) -> None:
    """Copies constants to where they are used once, not in every call."""
    copies = (
        torch.ops.aten.lift_fresh_copy.default,
        torch.ops.aten._to_copy.default,
    )
    constants = {}
    for node in module.graph.nodes:
        if node.target not in copies or node.args[0].op != "get_attr":
            continue
        literal = node.target is copies[0]
        if not literal and not node.args[0].target.startswith("_constant_"):
            continue  # a tensor that somebody holds, and may change
        value = node.target(getattr(module, node.args[0].target), **node.kwargs)
        key = node
        if value.numel() <= _SMALL:
            key = value.dtype, value.device, value.shape, str(value.tolist())
        if key not in constants:
            name = f"_constant_{len(constants)}"
            module.register_buffer(name, value)
            with module.graph.inserting_before(node):
                constants[key] = module.graph.get_attr(name)
            constants[key].meta.update(node.meta)
        node.replace_all_uses_with(constants[key])


def _share_draws(module: Any) -> None:
    """Draws once what the target and the loss both draw from the same seeds.

    What is drawn more often is drawn by blocks that are computed again in the backward
    pass, which shall not be kept until then.
    """
    aten = torch.ops.aten
    known = {}
    for node in module.graph.nodes:
        if node.target not in (aten.add.Tensor, aten.mul.Tensor) or node.kwargs:
            continue
        if not _is_state(node) or not _is_state(node.args[0]):
            continue
        if node.target is aten.mul.Tensor and node.args[1] == 1:
            node.replace_all_uses_with(node.args[0])
            continue
        first = known.setdefault((node.target, node.args), node)
        if first is not node:
            node.replace_all_uses_with(first)
    draws = {}
    for node in module.graph.nodes:
        if str(node.target).startswith("keras_imm."):
            key = node.target, node.args[0], str(node.args[1:])
            draws.setdefault(key, []).append(node)
    for first, *others in draws.values():
        if len(others) == 1:
            others[0].replace_all_uses_with(first)


def _is_state(node: Any) -> bool:
    """Whether the result of a node may be the state of a random stream."""
    value = node.meta.get("val")
    return torch.is_tensor(value) and value.dtype == torch.int32 and value.shape == (2,)


def _works_in_place(node: Any) -> bool:
    """Whether a node of a graph changes one of its arguments."""
    schema = getattr(node.target, "_schema", None)
    return node.op == "call_function" and schema is not None and schema.is_mutable


def _add_biases_in_products(module: Any) -> None:
    """Keras's Dense multiplies and then adds; PyTorch does both in one pass."""
    aten = torch.ops.aten
    for node in module.graph.nodes:
        if node.target is not aten.add.Tensor or node.kwargs:
            continue
        output, bias = node.args
        view = output if getattr(output, "target", None) in _VIEWS else None
        product = view.args[0] if view else output
        if not (
            getattr(product, "target", None) is aten.mm.default
            and len(product.users) == len(output.users) == 1
            and _is_bias(bias, product)
            and _shape(node) == _shape(output)
            and _shape(output)[-1] == _shape(product)[-1]
        ):
            continue
        with module.graph.inserting_before(node):
            fused = module.graph.call_function(
                aten.addmm.default, (bias, *product.args)
            )
            fused.meta.update(product.meta)
            if view:
                arguments = (fused, view.args[1])
                fused = module.graph.call_function(aten.view.default, arguments)
                fused.meta.update(view.meta)
        node.replace_all_uses_with(fused)


def _read_attention_where_it_lies(module: Any) -> None:
    """Keras has queries, keys and values copied, which this kernel does not need."""
    aten = torch.ops.aten
    attention = aten._scaled_dot_product_flash_attention_for_cpu.default
    backward = aten._scaled_dot_product_flash_attention_for_cpu_backward.default
    for node in module.graph.nodes:
        if node.target is aten.clone.default and all(
            user.target in (attention, backward) for user in node.users
        ):
            node.replace_all_uses_with(node.args[0])


def call_python_functions(module: Any, keep_rounding: bool = False) -> Callable:
    """A graph as a function that calls PyTorch's own functions, not ATen's handles.

    They take about 0.7 us less a call to parse their arguments, which tells where
    tensors are small, as do operations that others can do beside their own, where sums
    of products may be rounded once instead of twice.
    """
    aten = torch.ops.aten
    functions = {
        aten.add.Tensor: torch.add,
        aten.addcmul.default: torch.addcmul,
        aten.addmm.default: torch.addmm,
        aten.cat.default: torch.cat,
        aten.clone.default: torch.clone,
        aten.cos.default: torch.cos,
        aten.div.Tensor: torch.div,
        aten.embedding.default: torch.embedding,
        aten.gelu.default: torch.nn.functional.gelu,
        aten.mm.default: torch.mm,
        aten.mul.Tensor: torch.mul,
        aten.native_layer_norm.default: torch.native_layer_norm,
        aten.neg.default: torch.neg,
        aten.permute.default: torch.permute,
        aten.sin.default: torch.sin,
        aten.sqrt.default: torch.sqrt,
        aten.sub.Tensor: torch.sub,
        aten.sum.dim_IntList: torch.sum,
        aten.t.default: torch.t,
        aten.transpose.int: torch.transpose,
        aten.unbind.int: torch.unbind,
        aten.unsqueeze.default: torch.unsqueeze,
    }
    _merge_views(module)
    if not keep_rounding and not any(map(_works_in_place, module.graph.nodes)):
        _add_with_products(module)
    module.graph.eliminate_dead_code()
    for node in module.graph.nodes:
        if node.target in functions:
            node.target = functions[node.target]
        elif node.target in _VIEWS:
            node.op, node.target = "call_method", "view"
    module.recompile()
    return module.forward  # without a module's hooks


def _merge_views(module: Any) -> None:
    """Views of views of what lies in one piece are views of that."""
    for node in module.graph.nodes:
        inner = node.args[0] if node.target in _VIEWS else None
        if getattr(inner, "target", None) in _VIEWS:
            value = inner.args[0].meta.get("val")
            if value is not None and value.is_contiguous():
                node.args = (inner.args[0], node.args[1])


def _add_with_products(module: Any) -> None:
    """a + b * c, element by element, in one pass where PyTorch's rules allow it."""
    aten = torch.ops.aten
    for node in module.graph.nodes:
        if node.target is not aten.add.Tensor or node.kwargs:
            continue
        for product, other in (node.args, node.args[::-1]):
            if (
                getattr(product, "target", None) is aten.mul.Tensor
                and len(product.users) == 1
                and _are_alike(other, *product.args)
            ):
                node.target, node.args = aten.addcmul.default, (other, *product.args)
                break


def _are_alike(*nodes: Any) -> bool:
    """Whether they are tensors of one of the dtypes that a CPU computes in."""
    values = [getattr(node, "meta", {}).get("val") for node in nodes]
    if not all(torch.is_tensor(value) and value.dim() for value in values):
        return False
    dtypes = {value.dtype for value in values}
    return dtypes in ({torch.float32}, {torch.float64})


def _shape(node: Any) -> tuple | None:
    value = node.meta.get("val")
    return None if value is None else tuple(value.shape)


def _is_bias(node: Any, product: Any) -> bool:
    """Whether a node of a graph is a vector that fits the rows of a product."""
    vector, matrix = (getattr(n, "meta", {}).get("val") for n in (node, product))
    if vector is None or matrix is None:
        return False
    return vector.shape == matrix.shape[1:] and vector.dtype == matrix.dtype
