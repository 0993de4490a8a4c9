"""Stable Diffusion's autoencoder in the layout of diffusers, for KerasCV's layers."""

import json
import os
import pathlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import keras
import numpy as np

from keras_imm.files.paths import user_path

FILENAME = "diffusion_pytorch_model.safetensors"
# As safetensors calls the floats that NumPy has.
DTYPES = ("F16", "F32", "F64")

_ENCODER = (
    "encoder.conv_in",
    *(
        f"encoder.down_blocks.{level}.{part}"
        for level in range(4)
        for part in ("resnets.0", "resnets.1", "downsamplers.0.conv")
        if (level, part) != (3, "downsamplers.0.conv")
    ),
    "encoder.mid_block.resnets.0",
    "encoder.mid_block.attentions.0",
    "encoder.mid_block.resnets.1",
    "encoder.conv_norm_out",
    "encoder.conv_out",
    "quant_conv",
)
_DECODER = (
    "post_quant_conv",
    "decoder.conv_in",
    "decoder.mid_block.resnets.0",
    "decoder.mid_block.attentions.0",
    "decoder.mid_block.resnets.1",
    *(
        f"decoder.up_blocks.{level}.{part}"
        for level in range(4)
        for part in ("resnets.0", "resnets.1", "resnets.2", "upsamplers.0.conv")
        if (level, part) != (3, "upsamplers.0.conv")
    ),
    "decoder.conv_norm_out",
    "decoder.conv_out",
)


class Tensor(NamedTuple):
    """A tensor of the file and the variable it belongs to.

    Attributes:
        names: The names it may have: files written earlier call the attention's
            `to_q`, `to_k`, `to_v`, `to_out.0` by `query`, `key`, `value`, `proj_attn`.
        shapes: The shapes it may have: a linear layer may be stored as a convolution
            of one pixel.
        variable: The Keras variable.
        convert: From the array of the file to the variable's shape.
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    variable: keras.Variable
    convert: Callable[[np.ndarray], np.ndarray]


def load_weights(
    path: str | os.PathLike[str], encoder: keras.Model, decoder: keras.Model
) -> None:
    """Loads a file of diffusers' AutoencoderKL into KerasCV's encoder and decoder.

    Args:
        path: The safetensors file, or a folder with diffusers' name for it.
        encoder: What `autoencoder_networks.build_encoder` returns.
        decoder: What `autoencoder_networks.build_decoder` returns.

    Raises:
        ImportError: If safetensors is not installed.
        ValueError: If the file is none of this network. The message names the file
            and the first tensor that does not fit; no weight has changed then.
    """
    try:
        import safetensors
    except ImportError as error:
        raise ImportError(
            f'{FILENAME} is read with safetensors: `pip install "keras_imm[latents]"`.'
        ) from error
    path = find_file(path)
    tensors = [*_tensors(encoder, _ENCODER), *_tensors(decoder, _DECODER)]
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            found = _match(path, file, tensors)
            values = [
                _read(path, file, name, tensor)
                for name, tensor in zip(found, tensors, strict=True)
            ]
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} cannot be read: {error}{_first_cut(path)}") from error
    for tensor, value in zip(tensors, values, strict=True):
        tensor.variable.assign(value)


def find_file(path: str | os.PathLike[str]) -> pathlib.Path:
    """The safetensors file at a path, which may be the folder that holds it."""
    given = path = user_path(path)
    if path.is_dir():
        candidates = (path / FILENAME, path / "vae" / FILENAME)
        path = next((c for c in candidates if c.is_file()), candidates[0])
    if not path.is_file():
        raise ValueError(
            f"There is no file {path}. Expected diffusers' {FILENAME}, the folder that "
            f"holds it, or a published name. Received: {str(given)!r}"
        )
    return path


def _match(path, file, tensors):
    """The name of each tensor in the file, which must hold them all and no other."""
    names = set(file.keys())
    found = []
    for tensor in tensors:
        name = next((name for name in tensor.names if name in names), None)
        if name is None:
            raise ValueError(f"{path} has no tensor {' or '.join(tensor.names)}.")
        shape = tuple(file.get_slice(name).get_shape())
        if shape not in tensor.shapes:
            allowed = " or ".join(str(shape) for shape in tensor.shapes)
            raise ValueError(
                f"Tensor {name} of {path} must have shape {allowed}. Received: {shape}"
            )
        dtype = file.get_slice(name).get_dtype()
        if dtype not in DTYPES:
            raise ValueError(
                f"Tensor {name} of {path} must be one of {', '.join(DTYPES)}. "
                f"Received: {dtype}"
            )
        found.append(name)
    if len(found) < len(names):
        raise ValueError(
            f"{path} has tensor {min(names.difference(found))}, which Stable "
            "Diffusion's autoencoder has not."
        )
    return found


def _read(path, file, name, tensor):
    value = np.asarray(file.get_tensor(name)).astype("float32")
    if not np.isfinite(value).all():
        raise ValueError(f"Tensor {name} of {path} is not finite.")
    return tensor.convert(value)


def _first_cut(path: pathlib.Path) -> str:
    """Which tensor a truncated file ends in, or nothing where that cannot be said."""
    size = path.stat().st_size
    try:
        with open(path, "rb") as file:
            start = 8 + int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(min(start, size) - 8))
        ends = {
            name: start + entry["data_offsets"][1]
            for name, entry in header.items()
            if name != "__metadata__"
        }
    except (ValueError, KeyError, TypeError, AttributeError, IndexError):
        return ""
    cut = [name for name, end in sorted(ends.items(), key=lambda e: e[1]) if end > size]
    return f". It ends before the end of tensor {cut[0]}" if cut else ""


def _tensors(model: keras.Model, names: tuple[str, ...]) -> Iterator[Tensor]:
    layers = [layer for layer in model.layers if layer.weights]
    for name, layer in zip(names, layers, strict=True):
        if isinstance(layer, keras.layers.GroupNormalization):
            yield from _norm(name, layer)
        elif hasattr(layer, "proj_out"):
            yield from _attention(name, layer)
        elif hasattr(layer, "conv2"):
            yield from _residual_block(name, layer)
        else:
            yield from _convolution(name, layer)


def _residual_block(name: str, block: Any) -> Iterator[Tensor]:
    yield from _norm(f"{name}.norm1", block.norm1)
    yield from _convolution(f"{name}.conv1", block.conv1)
    yield from _norm(f"{name}.norm2", block.norm2)
    yield from _convolution(f"{name}.conv2", block.conv2)
    if isinstance(block.residual_projection, keras.layers.Layer):
        yield from _convolution(f"{name}.conv_shortcut", block.residual_projection)


def _attention(name: str, block: Any) -> Iterator[Tensor]:
    yield from _norm(f"{name}.group_norm", block.norm)
    for layer, now, earlier in (
        (block.q, "to_q", "query"),
        (block.k, "to_k", "key"),
        (block.v, "to_v", "value"),
        (block.proj_out, "to_out.0", "proj_attn"),
    ):
        yield from _linear((f"{name}.{now}", f"{name}.{earlier}"), layer)


def _linear(names: tuple[str, str], layer: Any) -> Iterator[Tensor]:
    """A linear layer of the file, a convolution of one pixel here."""
    kernel = layer.conv2d.kernel
    shape = (kernel.shape[3], kernel.shape[2])
    yield Tensor(
        tuple(f"{name}.weight" for name in names),
        (shape, (*shape, 1, 1)),
        kernel,
        lambda value: value.reshape(shape).T[None, None],
    )
    yield _unchanged(tuple(f"{name}.bias" for name in names), layer.conv2d.bias)


def _convolution(name: str, layer: Any) -> Iterator[Tensor]:
    """In the file as (output, input, row, column)."""
    kernel = layer.conv2d.kernel
    shape = tuple(kernel.shape[axis] for axis in (3, 2, 0, 1))
    yield Tensor(
        (f"{name}.weight",), (shape,), kernel, lambda value: value.transpose(2, 3, 1, 0)
    )
    yield _unchanged((f"{name}.bias",), layer.conv2d.bias)


def _norm(name: str, layer: keras.layers.Layer) -> Iterator[Tensor]:
    yield _unchanged((f"{name}.weight",), layer.gamma)
    yield _unchanged((f"{name}.bias",), layer.beta)


def _unchanged(names: tuple[str, ...], variable: keras.Variable) -> Tensor:
    return Tensor(names, (tuple(variable.shape),), variable, lambda value: value)
