"""Derivatives in a direction under PyTorch."""

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import attention, functional
from torch.overrides import TorchFunctionMode


def jvp(function: Callable, primals: tuple, tangents: tuple) -> tuple[Any, Any]:
    """Value and derivative in a direction: see `keras_imm.backend.jax`."""
    # Fused kernels have no derivative forwards; the library's layers ask for none.
    plain = attention.sdpa_kernel(attention.SDPBackend.MATH)
    with plain, _WithoutFusedLayerNorm():
        return torch.func.jvp(function, primals, tangents)


class _WithoutFusedLayerNorm(TorchFunctionMode):
    """Inside, layer normalization is computed step by step.

    The fused one's derivative forwards takes its mean and deviation for constants where
    it is differentiated again: such a gradient would be wrong without an error.
    """

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: Any = None
    ) -> Any:
        if func in (functional.layer_norm, torch.layer_norm):
            return _layer_norm(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _layer_norm(
    input: Any,
    normalized_shape: Any,
    weight: Any = None,
    bias: Any = None,
    eps: float = 1e-5,
    *_: Any,
) -> Any:
    """As `torch.nn.functional.layer_norm`; half precision is widened inside."""
    axes = tuple(range(-len(tuple(normalized_shape)), 0))
    x = input.to(torch.promote_types(input.dtype, torch.float32))
    centred = x - x.mean(axes, keepdim=True)
    variance = centred.square().mean(axes, keepdim=True)
    x = (centred * torch.rsqrt(variance + eps)).to(input.dtype)
    x = x if weight is None else x * weight
    return x if bias is None else x + bias
