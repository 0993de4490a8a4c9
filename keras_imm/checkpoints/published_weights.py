"""Published parameter names, mapped to the variables of our backbones."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import keras
import numpy as np

from keras_imm.backbones.dit import DiT


class PublishedWeight(NamedTuple):
    """A published array: its variable, and how its values are rearranged for it."""

    name: str
    shape: tuple[int, ...]
    variable: keras.Variable
    rearrange: Callable[[np.ndarray], np.ndarray]


def assign_dit(backbone: DiT, state: dict[str, np.ndarray]) -> None:
    """Assigns published DiT weights to a backbone.

    Everything is checked first: if any weight does not fit, nothing is changed.

    Args:
        backbone: A `DiT`; it is built if it has not been.
        state: Dictionary of published names, with or without the prefix `model.`, to
            arrays in their published layout. The fixed position table `pos_embed` is
            among them and must agree with ours to 1e-6.

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
    state = {name.removeprefix("model."): value for name, value in state.items()}
    table = keras.ops.convert_to_numpy(backbone.position_embedding.table)[None]
    weights = list(_dit_weights(backbone))

    _check_shape("pos_embed", state, table.shape)
    difference = np.max(np.abs(state["pos_embed"] - table))
    if not difference <= 1e-6:
        raise ValueError(
            "Weight 'pos_embed' must be the fixed sine-cosine table to 1e-6. "
            f"Received a table that differs by {difference:.3g}."
        )
    for weight in weights:
        _check_shape(weight.name, state, weight.shape)
    expected = {"pos_embed", *(weight.name for weight in weights)}
    for name in state:
        if name not in expected:
            raise ValueError(f"Weight {name!r} belongs to no variable of this DiT.")

    for weight in weights:
        weight.variable.assign(weight.rearrange(np.asarray(state[weight.name])))


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
            yield from _layer_norm(f"{name}.attn.q_norm", block.attention.query_norm)
            yield from _layer_norm(f"{name}.attn.k_norm", block.attention.key_norm)
        yield from _linear(f"{name}.attn.proj", block.attention.projection)
        yield from _linear(f"{name}.mlp.fc1", block.mlp_hidden)
        yield from _linear(f"{name}.mlp.fc2", block.mlp_output)
        yield from _linear(f"{name}.adaLN_modulation.1", block.modulation)
    final_layer = backbone.final_layer
    yield from _linear("final_layer.linear", final_layer.projection)
    yield from _linear("final_layer.adaLN_modulation.1", final_layer.modulation)


def _unchanged(name: str, variable: keras.Variable) -> PublishedWeight:
    return PublishedWeight(name, tuple(variable.shape), variable, lambda value: value)


def _linear(name: str, dense: keras.layers.Dense) -> Iterator[PublishedWeight]:
    """A published linear layer keeps its outputs in the rows of its weight."""
    shape = tuple(reversed(dense.kernel.shape))
    yield PublishedWeight(f"{name}.weight", shape, dense.kernel, np.transpose)
    yield _unchanged(f"{name}.bias", dense.bias)


def _layer_norm(
    name: str, norm: keras.layers.LayerNormalization
) -> Iterator[PublishedWeight]:
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
