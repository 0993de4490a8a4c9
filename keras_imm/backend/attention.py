"""Attention by Keras's fused kernels, or by products of matrices."""

import contextlib
import contextvars
import math
from collections.abc import Iterator
from typing import Any

import keras
from keras import ops

_FORWARD_MODE = contextvars.ContextVar("forward_mode", default=False)
_RECOMPUTES = contextvars.ContextVar("recomputes", default=True)


@contextlib.contextmanager
def differentiable_forwards() -> Iterator[None]:
    """Inside, layers compute with operations that have a forward-mode derivative.

    PyTorch's fused attention has none, nor have TensorFlow's recomputed blocks.
    """
    token = _FORWARD_MODE.set(True)
    try:
        yield
    finally:
        _FORWARD_MODE.reset(token)


@contextlib.contextmanager
def without_recomputation() -> Iterator[None]:
    """Inside, blocks keep what they compute: nothing is differentiated backwards."""
    token = _RECOMPUTES.set(False)
    try:
        yield
    finally:
        _RECOMPUTES.reset(token)


def may_recompute() -> bool:
    """Whether blocks may compute their activations again in a backward pass."""
    return _RECOMPUTES.get() and not in_forward_mode()


def in_forward_mode() -> bool:
    """Whether what is computed now is to be differentiated forwards."""
    return _FORWARD_MODE.get()


def attention_times() -> list[dict]:
    """None: there is one kernel. See `keras_imm.backend.torch.attention`."""
    return []


def fused_attention(query: Any, key: Any, value: Any) -> Any:
    """`keras.ops.dot_product_attention`, which takes the backend's kernel.

    Args:
        query: Shape (batch, tokens, heads, width of a head).
        key: As `query`.
        value: As `query`.

    Returns:
        Tensor of the shape and dtype of `value`.
    """
    if in_forward_mode():
        return plain_attention(query, key, value)
    flash = keras.config.is_flash_attention_enabled()
    return ops.dot_product_attention(query, key, value, flash_attention=flash)


def plain_attention(query: Any, key: Any, value: Any) -> Any:
    """As `fused_attention`, by products of matrices.

    Keras's own under TensorFlow is written in einsums, which take 1.4 times as long on
    a CPU.
    """
    query, value = (ops.transpose(x, (0, 2, 1, 3)) for x in (query, value))
    key = ops.transpose(key, (0, 2, 3, 1))
    scores = ops.matmul(query, key)
    wide = keras.backend.result_type(scores.dtype, "float32")
    scores = ops.cast(scores, wide) / math.sqrt(query.shape[-1])
    weights = ops.cast(ops.softmax(scores), value.dtype)
    return ops.transpose(ops.matmul(weights, value), (0, 2, 1, 3))
