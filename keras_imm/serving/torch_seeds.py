"""The noise of `keras_imm.serving.row_noise` in PyTorch's programs.

Its products of 32-bit words are made of integers below 2^63, with operations that
every runtime of ONNX has: there are no shifts, no unsigned types and no views of bits
as other types.
"""

import math
from typing import Any

import torch

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)  # both odd
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
_WORD = 0xFFFFFFFF
_SMALLEST = 1e-7  # of the uniform number whose logarithm is taken


def row_normal(seeds: Any, size: int, stream: int = 0) -> Any:
    """Standard normal numbers, a row for each seed.

    Args:
        seeds: int64 tensor of shape (batch,); all 64 bits count.
        size: Numbers in a row.
        stream: Which of a seed's streams to take, in [0, 2^32).

    Returns:
        float32 tensor of shape (batch, size).
    """
    words = row_words(seeds, -(-size // 4), stream)
    uniform = (words & 0x7FFFFF).to(torch.float32) * 2.0**-23
    radius = torch.sqrt(-2.0 * torch.log(uniform[..., 0::2].clamp(min=_SMALLEST)))
    angle = (2.0 * math.pi) * uniform[..., 1::2]
    normals = torch.stack([radius * torch.sin(angle), radius * torch.cos(angle)], -1)
    return normals.reshape(words.shape[0], -1)[:, :size]


def row_words(seeds: Any, blocks: int, stream: int = 0) -> Any:
    """Random words of Philox 4x32-10, with the seeds as keys.

    Args:
        seeds: int64 tensor of shape (batch,).
        blocks: Blocks of four words in a row.
        stream: The third word of the counter; the first is the block's number.

    Returns:
        int64 tensor of shape (batch, blocks, 4), of values in [0, 2^32).
    """
    low = seeds & _WORD
    high = _quotient(seeds - low, 2**32) & _WORD
    key = torch.stack([low, high])[:, :, None]
    counter = torch.stack(
        [torch.arange(blocks), torch.full((blocks,), stream, dtype=torch.int64)]
    )
    even = counter[:, None, :].expand(2, seeds.shape[0], blocks)  # words 0 and 2
    odd = torch.zeros_like(even)  # words 1 and 3
    halves = torch.tensor([m // 2 for m in _MULTIPLIERS])[:, None, None]
    steps = torch.tensor(_KEY_STEPS)[:, None, None]
    for _ in range(_ROUNDS):
        lower, upper = _products(even, halves)
        even, odd = upper.flip(0) ^ odd ^ key, lower.flip(0)
        key = (key + steps) & _WORD
    return torch.stack([even[0], odd[0], even[1], odd[1]], -1)


def _products(words: Any, halves: Any) -> tuple:
    """Lower and upper 32 bits of words times 2 halves + 1."""
    half = words * halves
    upper = _quotient(half + _quotient(words, 2), 2**31)
    return ((half & _WORD) * 2 + words) & _WORD, upper


def _quotient(numbers: Any, divisor: int) -> Any:
    return torch.div(numbers, divisor, rounding_mode="trunc")
