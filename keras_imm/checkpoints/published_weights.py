"""Published parameter names, mapped to the variables of our backbones."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import keras
import numpy as np

from keras_imm.backbones.dit import DiT
from keras_imm.backbones.unet import UNet
from keras_imm.layers.unet_block import UNetBlock


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


def assign_dit(
    backbone: DiT,
    state: dict[str, np.ndarray],
    progress: Callable[[int], None] | None = None,
) -> None:
    """Assigns published DiT weights to a backbone.

    Everything is checked first: if any weight does not fit, nothing is changed.

    Args:
        backbone: A `DiT`; it is built if it has not been.
        state: Dictionary of published names, with or without the prefix `model.`, to
            arrays in their published layout. The fixed position table `pos_embed` is
            among them and must agree with ours to 1e-6 (4e-3 in half
            precision).
        progress: Called with the number of weights assigned so far.

    Raises:
        ValueError: If a weight is missing, has another shape, belongs to no variable,
            or if the position table differs. The message names the first such weight.

    Example:

    ```python
    backbone = keras_imm.backbones.DiT.from_preset(
        "dit_xl_2", image_shape=(32, 32, 4), num_classes=1000
    )
    assign_dit(backbone, state)
    ```
    """
    backbone.build()
    table = keras.ops.convert_to_numpy(backbone.position_embedding.table)[None]
    tables = [FixedTable("pos_embed", table)]
    _assign(backbone, list(_dit_weights(backbone)), tables, state, progress)


def assign_unet(
    backbone: UNet,
    state: dict[str, np.ndarray],
    progress: Callable[[int], None] | None = None,
) -> None:
    """Assigns published weights of a DDPM++ or NCSN++ network to a backbone.

    Everything is checked first: if any weight does not fit, nothing is changed.

    Args:
        backbone: A `UNet`; it is built if it has not been.
        state: Dictionary of published names, with or without the prefix `model.`, to
            arrays in their published layout. The resampling filters are among them
            and must agree with ours to 1e-6 (4e-3 in half
            precision).
        progress: Called with the number of weights assigned so far.

    Raises:
        ValueError: If a weight is missing, has another shape, belongs to no variable,
            or if a resampling filter differs. The message names the first such weight.

    Example:

    ```python
    backbone = keras_imm.backbones.UNet.from_preset("ddpmpp_cifar10")
    assign_unet(backbone, state)
    ```
    """
    backbone.build()
    weights, tables = list(_unet_weights(backbone)), list(_unet_filters(backbone))
    _assign(backbone, weights, tables, state, progress)


def _assign(backbone, weights, tables, state, progress) -> None:
    """Checks every array, then assigns them."""
    state = {name.removeprefix("model."): value for name, value in state.items()}
    for table in tables:
        _check_shape(table.name, state, table.values.shape)
        dtypes = {str(state[table.name].dtype), str(table.values.dtype)}
        tolerance = "4e-3" if dtypes & {"float16", "bfloat16"} else "1e-6"
        difference = np.max(np.abs(state[table.name] - table.values))
        if not difference <= float(tolerance):
            raise ValueError(
                f"Weight {table.name!r} must be the fixed {_described(table)} to "
                f"{tolerance}. Received a table that differs by {difference:.3g}."
            )
    for weight in weights:
        _check_shape(weight.name, state, weight.shape)
    expected = {one.name for one in (*tables, *weights)}
    for name in state:
        if name not in expected:
            raise ValueError(
                f"Weight {name!r} belongs to no variable of this "
                f"{type(backbone).__name__}."
            )

    for count, weight in enumerate(weights, start=1):
        # A copy: JAX may keep the array it is given, which may be a view of a file.
        value = weight.rearrange(np.asarray(state[weight.name]))
        weight.variable.assign(np.array(value, order="C"))
        if progress is not None:
            progress(count)


def _described(table: FixedTable) -> str:
    return "sine-cosine table" if table.name == "pos_embed" else "resampling filter"


def _check_shape(name: str, state: dict[str, np.ndarray], shape: tuple[int, ...]):
    if name not in state:
        raise ValueError(f"Weight {name!r} of shape {shape} is missing.")
    received = tuple(np.shape(state[name]))
    if received != shape:
        raise ValueError(
            f"Weight {name!r} must have shape {shape}. Received: shape {received}."
        )


def _dit_weights(backbone: DiT) -> Iterator[PublishedWeight]:
    yield from _patch_projection("x_embedder.proj", backbone)
    for name, embedding in (
        ("t_embedder", backbone.t_embedding),
        ("s_embedder", backbone.s_embedding),
    ):
        yield from _linear(f"{name}.mlp.0", embedding.hidden_dense)
        yield from _linear(f"{name}.mlp.2", embedding.output_dense)
    if backbone.label_embedding is not None:
        yield _unchanged(
            "y_embedder.embedding_table.weight", backbone.label_embedding.embeddings
        )
    for index, block in enumerate(backbone.blocks):
        name = f"blocks.{index}"
        yield from _linear(f"{name}.attn.qkv", block.attention.qkv)
        if backbone.qk_norm:
            yield from _norm(f"{name}.attn.q_norm", block.attention.query_norm)
            yield from _norm(f"{name}.attn.k_norm", block.attention.key_norm)
        yield from _linear(f"{name}.attn.proj", block.attention.projection)
        yield from _linear(f"{name}.mlp.fc1", block.mlp_hidden)
        yield from _linear(f"{name}.mlp.fc2", block.mlp_output)
        yield from _linear(f"{name}.adaLN_modulation.1", block.modulation)
    final_layer = backbone.final_layer
    yield from _linear("final_layer.linear", final_layer.projection)
    yield from _linear("final_layer.adaLN_modulation.1", final_layer.modulation)


def _unet_weights(backbone: UNet) -> Iterator[PublishedWeight]:
    for suffix, features, hidden, output in (
        ("", backbone.t_features, backbone.t_hidden, backbone.t_output),
        ("_s", backbone.s_features, backbone.s_hidden, backbone.s_output),
    ):
        if backbone.embedding_type == "fourier":
            yield _frequencies(f"map_noise{suffix}.freqs", features.frequencies)
        yield from _linear(f"map_layer0{suffix}", hidden)
        yield from _linear(f"map_layer1{suffix}", output)
    if backbone.label_dense is not None:
        yield from _linear("map_label", backbone.label_dense)
    if backbone.augmentation_dense is not None:
        yield from _linear("map_augment", backbone.augmentation_dense)
    for conv in (backbone.input_conv, *backbone.auxiliary_convs):
        yield from _convolution(_unet_name(conv), conv)
    for block in (*backbone.encoder_blocks, *backbone.decoder_blocks):
        yield from _unet_block(_unet_name(block), block)
    for norm, conv in zip(backbone.image_norms, backbone.image_convs, strict=True):
        yield from _norm(_unet_name(norm), norm)
        yield from _convolution(_unet_name(conv), conv)


def _unet_name(layer: keras.layers.Layer) -> str:
    """Such as `enc.16x16_block0` for the layer `encoder_16x16_block0`."""
    part, name = layer.name.split("_", 1)
    return f"{part[:3]}.{name}"


def _unet_block(name: str, block: UNetBlock) -> Iterator[PublishedWeight]:
    yield from _norm(f"{name}.norm0", block.input_norm)
    yield from _convolution(f"{name}.conv0", block.input_conv)
    yield from _linear(f"{name}.affine", block.embedding_dense)
    yield from _norm(f"{name}.norm1", block.output_norm)
    yield from _convolution(f"{name}.conv1", block.output_conv)
    if block.skip_conv is not None:
        yield from _convolution(f"{name}.skip", block.skip_conv)
    if block.attention:
        attention = block.self_attention
        yield from _norm(f"{name}.norm2", block.attention_norm)
        yield from _interleaved_qkv(f"{name}.qkv", attention.qkv)
        yield from _pointwise(f"{name}.proj", attention.projection)


def _unet_filters(backbone: UNet) -> Iterator[FixedTable]:
    """Buffers of the published convolutions that resample."""
    taps = np.asarray(backbone.resample_filter) / sum(backbone.resample_filter)
    values = np.outer(taps, taps)[None, None]
    for block in (*backbone.encoder_blocks, *backbone.decoder_blocks):
        if block.resample is not None:
            yield FixedTable(f"{_unet_name(block)}.conv0.resample_filter", values)
            yield FixedTable(f"{_unet_name(block)}.skip.resample_filter", values)
    if backbone.encoder_type == "residual":
        for conv in backbone.auxiliary_convs:
            yield FixedTable(f"{_unet_name(conv)}.resample_filter", values)
    elif backbone.encoder_type == "skip":
        for conv in backbone.auxiliary_convs:
            name = _unet_name(conv).replace("aux_skip", "aux_down")
            yield FixedTable(f"{name}.resample_filter", values)
    if backbone.decoder_type == "skip":
        for norm in backbone.image_norms[1:]:
            name = _unet_name(norm).replace("aux_norm", "aux_up")
            yield FixedTable(f"{name}.resample_filter", values)


def _frequencies(name: str, variable: keras.Variable) -> PublishedWeight:
    """Ours are angular."""
    return PublishedWeight(
        name, tuple(variable.shape), variable, lambda value: 2 * np.pi * value
    )


def _unchanged(name: str, variable: keras.Variable) -> PublishedWeight:
    return PublishedWeight(name, tuple(variable.shape), variable, lambda value: value)


def _linear(name: str, dense: keras.layers.Dense) -> Iterator[PublishedWeight]:
    """A published linear layer keeps its outputs in the rows of its weight."""
    shape = tuple(reversed(dense.kernel.shape))
    yield PublishedWeight(f"{name}.weight", shape, dense.kernel, np.transpose)
    if dense.use_bias:
        yield _unchanged(f"{name}.bias", dense.bias)


def _convolution(name: str, conv: keras.layers.Conv2D) -> Iterator[PublishedWeight]:
    """Published as (output, channel, row, column)."""
    kernel = conv.kernel
    shape = tuple(kernel.shape[axis] for axis in (3, 2, 0, 1))
    yield PublishedWeight(
        f"{name}.weight", shape, kernel, lambda value: value.transpose(2, 3, 1, 0)
    )
    yield _unchanged(f"{name}.bias", conv.bias)


def _pointwise(name: str, dense: keras.layers.Dense) -> Iterator[PublishedWeight]:
    """A published convolution of one pixel, as a matrix."""
    shape = (*reversed(dense.kernel.shape), 1, 1)
    yield PublishedWeight(
        f"{name}.weight", shape, dense.kernel, lambda value: value[:, :, 0, 0].T
    )
    yield _unchanged(f"{name}.bias", dense.bias)


def _interleaved_qkv(name: str, dense: keras.layers.Dense) -> Iterator[PublishedWeight]:
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


def _norm(name: str, norm: keras.layers.Layer) -> Iterator[PublishedWeight]:
    """Layer or group normalization."""
    yield _unchanged(f"{name}.weight", norm.gamma)
    yield _unchanged(f"{name}.bias", norm.beta)


def _patch_projection(name: str, backbone: DiT) -> Iterator[PublishedWeight]:
    """A convolution, (output, channel, row, column), as a matrix.

    The rows of ours are the flattened (row, column, channel).
    """
    dense = backbone.patch_embedding.projection
    patch, channels = backbone.patch_size, backbone.image_shape[-1]
    shape = (backbone.hidden_size, channels, patch, patch)
    yield PublishedWeight(
        f"{name}.weight",
        shape,
        dense.kernel,
        lambda value: value.transpose(2, 3, 1, 0).reshape(dense.kernel.shape),
    )
    yield _unchanged(f"{name}.bias", dense.bias)
