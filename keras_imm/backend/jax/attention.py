"""Attention under JAX."""

from typing import Any

import jax
from keras import ops

from keras_imm.backend.attention import fused_attention, in_forward_mode


def dot_product_attention(query: Any, key: Any, value: Any) -> Any:
    """cuDNN's kernel where the host has it for these tensors, else two products.

    cuDNN is asked for while a function is traced, and only a host with a GPU can: what
    a CPU lowers for GPUs has the products. On a TPU it always has them: there Keras
    3.15 takes a kernel that masks what follows a token and forgets the scale.

    Args:
        query: Shape (batch, tokens, heads, width of a head).
        key: As `query`.
        value: As `query`.

    Returns:
        Tensor of the shape and dtype of `value`.
    """
    if jax.default_backend() == "tpu" and not in_forward_mode():
        return ops.dot_product_attention(query, key, value, flash_attention=False)
    return fused_attention(query, key, value)
