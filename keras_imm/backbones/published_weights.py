"""What a published array is to a variable: its name, its shape, its layout."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import keras
import numpy as np


class PublishedWeight(NamedTuple):
    """A published array: its variable, and how its values are rearranged for it."""

    name: str
    shape: tuple[int, ...]
    variable: keras.Variable
    rearrange: Callable[[np.ndarray], np.ndarray]


class FixedTable(NamedTuple):
    """A published array that no variable of ours holds: it must have these values."""

    name: str
    values: np.ndarray
    description: str = "resampling filter"


def frequencies(name: str, variable: keras.Variable) -> PublishedWeight:
    """Ours are angular."""
    return PublishedWeight(
        name, tuple(variable.shape), variable, lambda value: 2 * np.pi * value
    )


def unchanged(name: str, variable: keras.Variable) -> PublishedWeight:
    """Published as it is here."""
    return PublishedWeight(name, tuple(variable.shape), variable, lambda value: value)


def linear(name: str, dense: keras.layers.Dense) -> Iterator[PublishedWeight]:
    """A published linear layer keeps its outputs in the rows of its weight."""
    shape = tuple(reversed(dense.kernel.shape))
    yield PublishedWeight(f"{name}.weight", shape, dense.kernel, np.transpose)
    if dense.use_bias:
        yield unchanged(f"{name}.bias", dense.bias)


def convolution(name: str, conv: keras.layers.Conv2D) -> Iterator[PublishedWeight]:
    """Published as (output, channel, row, column)."""
    kernel = conv.kernel
    shape = tuple(kernel.shape[axis] for axis in (3, 2, 0, 1))
    yield PublishedWeight(
        f"{name}.weight", shape, kernel, lambda value: value.transpose(2, 3, 1, 0)
    )
    yield unchanged(f"{name}.bias", conv.bias)


def pointwise(name: str, dense: keras.layers.Dense) -> Iterator[PublishedWeight]:
    """A published convolution of one pixel, as a matrix."""
    shape = (*reversed(dense.kernel.shape), 1, 1)
    yield PublishedWeight(
        f"{name}.weight", shape, dense.kernel, lambda value: value[:, :, 0, 0].T
    )
    yield unchanged(f"{name}.bias", dense.bias)


def interleaved_qkv(name: str, dense: keras.layers.Dense) -> Iterator[PublishedWeight]:
    """Published channels alternate query, key, value; ours are three blocks."""

    def three_blocks(value):
        channels = value.shape[0] // 3
        return np.swapaxes(value.reshape(channels, 3, -1), 0, 1).reshape(
            3 * channels, -1
        )

    shape = (*reversed(dense.kernel.shape), 1, 1)
    yield PublishedWeight(
        f"{name}.weight", shape, dense.kernel, lambda value: three_blocks(value).T
    )
    yield PublishedWeight(
        f"{name}.bias",
        tuple(dense.bias.shape),
        dense.bias,
        lambda value: three_blocks(value)[:, 0],
    )


def norm(name: str, norm: keras.layers.Layer) -> Iterator[PublishedWeight]:
    """Layer or group normalization."""
    yield unchanged(f"{name}.weight", norm.gamma)
    yield unchanged(f"{name}.bias", norm.beta)
