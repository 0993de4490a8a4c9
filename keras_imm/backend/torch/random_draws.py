"""Random draws under PyTorch that a graph can hold.

Keras makes a `torch.Generator` from the values of a seed, which no graph can hold. Here
a draw is a function of the seed, a tensor of two integers: on a CPU one operation that
draws with PyTorch's generator what Keras draws; on other devices, which would have to
be waited for, Philox in arithmetic of integers, which compilers fuse into what uses it.
"""

import contextlib
import functools
import math
from typing import Any

import keras
import torch
from torch import library as custom_operators
from torch._subclasses import FakeTensor
from torch.fx.experimental.proxy_tensor import get_proxy_mode

from keras_imm.backend import keras_private

_MASK = 0xFFFFFFFF
# Bits of a uniform number in [0, 1) that are exact.
_BITS = {torch.float16: 11, torch.bfloat16: 8}


def draw_normal(shape: tuple, stream: keras.random.SeedGenerator) -> Any:
    """`keras.random.normal(shape, seed=stream)`, by one read of the stream's state.

    Args:
        shape: Shape of the result.
        stream: The stream that moves on.

    Returns:
        Standard-normal tensor, the same bits as Keras's.
    """
    state = keras_private.own_state(stream)
    if state is None or get_proxy_mode() is not None:
        return keras.random.normal(shape, seed=stream)
    device = keras_private.torch_device()
    options = {"generator": _generator(state, device), "device": device}
    state.add_(_one_draw(state.device))
    return torch.normal(0.0, 1.0, size=shape, dtype=_torch_dtype(None), **options)


@functools.cache
def _one_draw(device: torch.device) -> Any:
    """What a draw adds to the state of its stream."""
    return torch.tensor([0, 1], dtype=torch.int32, device=device)


def traceable_draws() -> contextlib.AbstractContextManager:
    """Inside, layers draw what a graph can hold, from the states of their streams.

    Outside, Keras takes PyTorch's own stream for layers that were given no seed.
    """
    return keras_private.replaced_draws(
        {"dropout": _dropout, "normal": _normal, "uniform": _uniform}
    )


def bernoulli(seed: Any, shape: Any, keep: float) -> Any:
    """Booleans that are true with a probability.

    Args:
        seed: Two integers, shape (2,).
        shape: Shape of the result.
        keep: Probability, in (0, 1).

    Returns:
        Boolean tensor.
    """
    if _has_generator(seed):
        return torch.ops.keras_imm.bernoulli(seed, shape, keep)
    word, _ = _words(seed, shape)
    return word < round(keep * 2**32)


def normal(seed: Any, shape: Any, mean: float, stddev: float, dtype: Any) -> Any:
    """Normal numbers.

    Args:
        seed: As in `bernoulli`.
        shape: Shape of the result.
        mean: Mean.
        stddev: Standard deviation.
        dtype: PyTorch's dtype of the result.

    Returns:
        Tensor.
    """
    if _has_generator(seed):
        return torch.ops.keras_imm.normal(seed, shape, mean, stddev, dtype)
    wide = torch.promote_types(dtype, torch.float32)
    first, second = (word.to(wide) for word in _words(seed, shape))
    radius = torch.sqrt(-2.0 * torch.log((first + 0.5) * 2.0**-32))
    angle = (2.0 * math.pi * 2.0**-32) * second
    return (mean + stddev * radius * torch.cos(angle)).to(dtype)


def uniform(seed: Any, shape: Any, dtype: Any) -> Any:
    """Numbers in [0, 1).

    Args:
        seed: As in `bernoulli`.
        shape: Shape of the result.
        dtype: PyTorch's dtype of the result.

    Returns:
        Tensor.
    """
    if _has_generator(seed):
        return torch.ops.keras_imm.uniform(seed, shape, dtype)
    first, second = _words(seed, shape)
    if dtype == torch.float64:
        return ((first >> 5) * 2**26 + (second >> 6)).to(dtype) * 2.0**-53
    bits = _BITS.get(dtype, 24)
    return (first >> (32 - bits)).to(dtype) * 2.0**-bits


def philox(counter: tuple, key: Any) -> tuple[Any, Any]:
    """Philox-2x32-10: two random words of 32 bits.

    Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (2011).

    Args:
        counter: Two words, int64 tensors of values in [0, 2^32).
        key: One word.

    Returns:
        Two words.
    """
    first, second = counter
    for _ in range(10):
        product = 0xD256D193 * first  # modulo 2^64
        first = ((product >> 32) & _MASK) ^ key ^ second
        second = product & _MASK
        key = (key + 0x9E3779B9) & _MASK
    return first, second


def _words(seed: Any, shape: Any) -> tuple[Any, Any]:
    """Two words for each element, from its place and the seed."""
    key, count = (seed.to(torch.int64) & _MASK).unbind()
    place = torch.arange(math.prod(shape), device=seed.device).reshape(tuple(shape))
    # Which Inductor takes for an index, of 32 bits, unless it is made a word.
    place = place & _MASK
    return philox((place, count), key)


# -- The operations that draw with PyTorch's generator

_OPERATIONS = custom_operators.Library("keras_imm", "DEF")


def _operation(schema: str, dtype_of: Any) -> Any:
    """Makes a function an operation `name(Tensor seed, SymInt[] shape, ...)`."""

    def register(function):
        name = schema.split("(")[0]
        _OPERATIONS.define(schema)
        _OPERATIONS.impl(name, function, "CPU")

        @custom_operators.register_fake(f"keras_imm::{name}", lib=_OPERATIONS)
        def _(seed, shape, *others):
            return seed.new_empty(shape, dtype=dtype_of(*others))

        return function

    return register


def _has_generator(seed: Any) -> bool:
    """Whether there is one that needs not wait for the device."""
    return seed.device.type == "cpu"


def _generator(seed: Any, device: Any = "cpu") -> torch.Generator:
    """As Keras makes it."""
    generator = torch.Generator(device)
    first, second = seed.tolist()
    return generator.manual_seed((first + second) & _MASK)


@_operation(
    "bernoulli(Tensor seed, SymInt[] shape, float keep) -> Tensor",
    lambda keep: torch.bool,
)
def _bernoulli_on_cpu(seed: Any, shape: Any, keep: float) -> Any:
    rates = torch.full(tuple(shape), keep)
    return torch.bernoulli(rates, generator=_generator(seed)).bool()


@_operation(
    "normal(Tensor seed, SymInt[] shape, float mean, float stddev, ScalarType dtype)"
    " -> Tensor",
    lambda mean, stddev, dtype: dtype,
)
def _normal_on_cpu(
    seed: Any, shape: Any, mean: float, stddev: float, dtype: Any
) -> Any:
    options = {"generator": _generator(seed), "dtype": dtype}
    return torch.normal(mean, stddev, size=tuple(shape), **options)


@_operation(
    "uniform(Tensor seed, SymInt[] shape, ScalarType dtype) -> Tensor",
    lambda dtype: dtype,
)
def _uniform_on_cpu(seed: Any, shape: Any, dtype: Any) -> Any:
    return torch.rand(tuple(shape), generator=_generator(seed), dtype=dtype)


# -- In place of Keras's functions of these names


def _dropout(inputs: Any, rate: float, noise_shape: Any = None, seed: Any = None):
    if rate == 0.0:
        return inputs
    zero = inputs.new_zeros(())
    if rate == 1.0:
        return zero.expand_as(inputs)
    shape = list(inputs.shape)
    if noise_shape is not None:
        pairs = zip(noise_shape, shape, strict=True)
        shape = [size if given is None else given for given, size in pairs]
    kept = bernoulli(_next_seed(seed), shape, 1.0 - rate)
    return torch.where(kept, inputs / (1.0 - rate), zero)


def _normal(
    shape: Any,
    mean: float = 0.0,
    stddev: float = 1.0,
    dtype: Any = None,
    seed: Any = None,
):
    dtype = _torch_dtype(dtype)
    return normal(_next_seed(seed), shape, mean, stddev, dtype)


def _uniform(
    shape: Any,
    minval: float = 0.0,
    maxval: float = 1.0,
    dtype: Any = None,
    seed: Any = None,
):
    dtype = _torch_dtype(dtype)
    return (maxval - minval) * uniform(_next_seed(seed), shape, dtype) + minval


def _torch_dtype(dtype: Any) -> Any:
    dtype = keras.backend.standardize_dtype(dtype or keras.config.floatx())
    return getattr(torch, dtype)


def _next_seed(seed: Any) -> Any:
    """The seed of a draw, a tensor; the stream that it comes from moves on."""
    if get_proxy_mode() is not None and not _can_be_traced(seed):
        raise ValueError(
            "A network that is traced draws from random streams that are attributes "
            "of its layers: others would stay where they are. "
            f"Received: seed={seed!r}"
        )
    return keras_private.draw_seed(seed)


def _can_be_traced(seed: Any) -> bool:
    """Whether a seed is an integer, or a stream whose state a graph takes."""
    if isinstance(seed, keras.random.SeedGenerator):
        return isinstance(seed.state.value, FakeTensor)
    return seed is not None
