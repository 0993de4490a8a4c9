"""Attention under PyTorch: on a GPU by the faster of two fused kernels."""

import functools
import math
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from keras_imm.backend import keras_private
from keras_imm.backend.attention import fused_attention, in_forward_mode

# Called by themselves: what chooses between them is set for all threads.
_KERNELS = {
    "flash": torch.ops.aten._scaled_dot_product_flash_attention,
    "cudnn": functools.partial(
        torch.ops.aten._scaled_dot_product_cudnn_attention,
        attn_bias=None,
        compute_log_sumexp=True,
    ),
}

# cuDNN's kernel is taken where it is faster by more than times vary.
_MARGIN = 0.95

# Tokens that are timed, enough to keep a GPU busy; calls before the clock and with it.
_TOKENS, _WARM_UP, _REPETITIONS = 2**15, 3, 10

# Milliseconds by kernel, by (tokens, heads, width of a head, dtype, device).
_TIMES: dict[tuple, dict[str, float]] = {}
_LOCK = threading.Lock()


def dot_product_attention(query: Any, key: Any, value: Any) -> Any:
    """Attention by cuDNN's kernel where it is the faster one, else by what Keras takes.

    Asked when a function is traced: the graph keeps the kernel. In half precision on a
    GPU, FlashAttention-2 and cuDNN's kernel are timed once for each number of tokens
    and heads, width of a head, dtype and device. Where they are close, the faster one
    may be another in the next process, and results are rounded otherwise. To fix the
    kernel, with nothing timed: `keras.config.enable_flash_attention()` or
    `torch.backends.cuda.enable_cudnn_sdp(False)` for FlashAttention-2,
    `torch.backends.cuda.enable_flash_sdp(False)` for cuDNN's.

    Args:
        query: Shape (batch, tokens, heads, width of a head).
        key: As `query`.
        value: As `query`.

    Returns:
        Tensor of the shape and dtype of `value`.
    """
    if in_forward_mode() or _kernel(query, key, value) != "cudnn":
        return fused_attention(query, key, value)
    # The others are for inputs that cuDNN refuses.
    kernels = [SDPBackend.CUDNN_ATTENTION, *_others()]
    query, key, value = (x.transpose(1, 2) for x in (query, key, value))
    with sdpa_kernel(kernels, set_priority=True):
        return scaled_dot_product_attention(query, key, value).transpose(1, 2)


def _others() -> list[SDPBackend]:
    """The kernels beside cuDNN's that nobody has switched off."""
    cuda = torch.backends.cuda
    enabled = {
        SDPBackend.FLASH_ATTENTION: cuda.flash_sdp_enabled(),
        SDPBackend.EFFICIENT_ATTENTION: cuda.mem_efficient_sdp_enabled(),
        SDPBackend.MATH: cuda.math_sdp_enabled(),
    }
    return [kernel for kernel, is_enabled in enabled.items() if is_enabled]


def attention_times() -> list[dict]:
    """What was timed in this process, and which kernel was faster."""
    names = ("tokens", "heads", "width", "dtype", "device")
    with _LOCK:
        return [
            dict(zip(names, map(str, key), strict=True))
            | {f"{kernel}_ms": milliseconds for kernel, milliseconds in times.items()}
            | {"chosen": _faster(times)}
            for key, times in _TIMES.items()
        ]


def _kernel(*inputs: Any) -> str | None:
    """The kernel to take, None where Keras should choose."""
    query = inputs[0]
    if not torch.is_tensor(query) or query.device.type != "cuda":
        return None  # Keras's symbolic tensors have no device
    if keras_private.flash_attention_was_set():
        return None
    if {x.dtype for x in inputs} not in ({torch.bfloat16}, {torch.float16}):
        return None
    allowed = (
        torch.backends.cuda.flash_sdp_enabled(),
        torch.backends.cuda.cudnn_sdp_enabled(),
    )
    if not all(allowed):
        return "cudnn" if allowed[1] else None
    key = (*query.shape[1:], query.dtype, query.device)
    with _LOCK:
        if key not in _TIMES:
            # No other thread's gradients, traces and fake tensors are in a new one.
            with ThreadPoolExecutor(1) as thread:
                _TIMES[key] = thread.submit(_time, key).result()
        return _faster(_TIMES[key])


def _faster(times: dict[str, float]) -> str | None:
    if math.isinf(min(times.values())):
        return None
    return "cudnn" if times["cudnn"] < _MARGIN * times["flash"] else "flash"


def _time(key: tuple) -> dict[str, float]:
    """Milliseconds of both kernels, infinite where one fails or differs."""
    *shape, dtype, device = key
    times, results = {}, {}
    for name in _KERNELS:
        try:
            times[name], results[name] = _milliseconds(name, shape, dtype, device)
        except RuntimeError:  # there is none for these inputs, or too little memory
            times[name] = math.inf
    if len(results) == 2 and not all(map(_agree, *results.values())):
        times["cudnn"] = math.inf
    results.clear()
    torch.cuda.empty_cache()
    return times


def _agree(one: Any, other: Any) -> bool:
    """Up to the rounding of half precision."""
    one, other = one.float(), other.float()
    return bool(torch.dist(one, other) < 0.03 * torch.linalg.vector_norm(one))


def _milliseconds(name: str, shape: list, dtype: Any, device: Any) -> tuple:
    """Of a call forwards and backwards, and what it returned."""
    tokens, heads, width = shape
    generator = torch.Generator(device).manual_seed(0)  # leaves the user's alone
    sizes = (4, max(1, _TOKENS // tokens), tokens, heads, width)
    options = {"generator": generator, "dtype": dtype, "device": device}
    *inputs, gradient = torch.randn(sizes, **options).transpose(2, 3)
    inputs = [x.requires_grad_() for x in inputs]
    stream = torch.cuda.current_stream(device)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    for index in range(_WARM_UP + _REPETITIONS):
        if index == _WARM_UP:
            start.record(stream)
        result = _KERNELS[name](*inputs)[0]
        gradients = torch.autograd.grad(result, inputs, gradient)
    end.record(stream)
    end.synchronize()
    return start.elapsed_time(end) / _REPETITIONS, [result.detach(), *gradients]
