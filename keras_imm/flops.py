"""Arithmetic of a network, counted from the shapes that pass through it."""

import contextlib
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import keras

from keras_imm.backbones.inputs import inputs_of_one_sample
from keras_imm.backend import keras_private

_OPERATIONS_PER_MULTIPLY_ADD = 2
_CONVOLUTIONS = (keras.layers.Conv1D, keras.layers.Conv2D, keras.layers.Conv3D)


def multiply_adds(backbone: keras.layers.Layer, data_shape: tuple | None = None) -> int:
    """Multiply-adds of one forward pass of a backbone for one sample.

    Matrix products, einsums, convolutions and attention are counted, whatever layers
    they are in; sums, normalizations, activations and look-ups are not. Nothing is
    computed: the network is called on symbolic tensors.

    Args:
        backbone: Layer or model called as `keras_imm.IMM` calls it: on
            `[x, c_t, c_s]`, with labels and augmentation labels if it has attributes
            `num_classes` or `augmentation_dim` above 0. It is built if it is not.
        data_shape: Shape of x without the batch. Default: the backbone's attribute
            `image_shape`.

    Returns:
        A non-negative integer.

    Raises:
        ValueError: If the shape of the data is not known, or a layer computes with
            something else than `keras.ops` and so cannot be followed.

    Example:

    ```python
    backbone = keras_imm.backbones.DiT.from_preset("dit_s_2", image_shape=(32, 32, 4))
    keras_imm.flops.multiply_adds(backbone) / 1e9  # 6.06
    ```

    Reference:
        - [Peebles & Xie, 2023](https://arxiv.org/abs/2212.09748), Table 4: what they
          call Gflops are these.
    """
    return layer_multiply_adds(backbone, inputs_of_one_sample(backbone, data_shape))


def layer_multiply_adds(layer: keras.layers.Layer, *args: Any, **kwargs: Any) -> int:
    """Multiply-adds of one call of a built layer or model.

    Args:
        layer: The layer.
        *args: What it is called on, with `keras.KerasTensor` of known shapes, batch
            included, for tensors.
        **kwargs: Further arguments of the call.

    Returns:
        A non-negative integer.

    Raises:
        ValueError: If a layer in it computes with something else than `keras.ops`.
    """
    layers = keras_private.all_layers(layer)
    with keras_private.without_symbolic_marks(layers), _known_einsum_shapes(layers):
        return _of_call(layer, args, kwargs)


def training_step_flops(
    forward_multiply_adds: int, batch_size: int, network_passes: float = 4.0
) -> int:
    """Floating-point operations of one training step.

    Args:
        forward_multiply_adds: Multiply-adds of one forward pass for one sample, as
            `multiply_adds` counts them.
        batch_size: Samples of a step.
        network_passes: The objective's attribute of that name: what a step costs in
            forward passes. IMM's 4 are the target pass, the pass with gradient, and
            the backward pass, which counts twice.

    Returns:
        Two per multiply-add. What rematerialised blocks compute again is not counted.
    """
    forwards = network_passes * batch_size
    return round(_OPERATIONS_PER_MULTIPLY_ADD * forwards * forward_multiply_adds)


@contextlib.contextmanager
def _known_einsum_shapes(layers: list) -> Iterator[None]:
    """Has `EinsumDense` tell its whole output shape; Keras leaves axes unknown."""
    dense = [one for one in layers if isinstance(one, keras.layers.EinsumDense)]

    def output_spec(layer, inputs):
        return keras.KerasTensor(layer.call(inputs).shape, layer.compute_dtype)

    for one in dense:
        one.compute_output_spec = functools.partial(output_spec, one)
    try:
        yield
    finally:
        for one in dense:
            del one.compute_output_spec


def _of_call(layer: keras.layers.Layer, args: tuple, kwargs: dict) -> int:
    if isinstance(layer, _CONVOLUTIONS):  # Keras follows no grouped one symbolically
        output = layer.compute_output_shape(args[0].shape)
        places = math.prod(output) // layer.filters
        return places * math.prod(layer.kernel.shape)
    try:
        outputs = layer.call(*args, **kwargs)
    except Exception as error:
        raise ValueError(
            f"Cannot count the arithmetic of {layer.name!r}, a "
            f"{type(layer).__name__}, which does not follow from its `keras.ops`: "
            f"{error}"
        ) from error
    total = 0
    for node in keras_private.calls_between(
        outputs, stop_at=keras.tree.flatten((args, kwargs))
    ):
        operation, arguments = node.operation, node.arguments
        if isinstance(operation, keras.layers.Layer):
            total += _of_call(operation, arguments.args, arguments.kwargs)
        elif type(operation).__name__ in _FORMULAS:
            total += _FORMULAS[type(operation).__name__](operation, node)
    return total


def _shapes(node: Any) -> list[tuple]:
    """Shapes of the tensors and variables that a call was given, then of its result."""
    given = keras.tree.flatten((node.arguments.args, node.arguments.kwargs))
    shapes = [tuple(x.shape) for x in given if hasattr(x, "shape")]
    shapes.append(tuple(node.output_tensors[0].shape))
    if any(None in shape for shape in shapes):
        raise ValueError(
            "Cannot count the arithmetic of an operation on shapes that are not known: "
            f"{node.operation.name!r} of {', '.join(map(str, shapes))}"
        )
    return shapes


def _matmul(operation: Any, node: Any) -> int:
    left, *_, output = _shapes(node)
    return math.prod(output) * left[-1]


def _einsum(operation: Any, node: Any) -> int:
    *operands, _ = _shapes(node)
    terms = operation.subscripts.replace(" ", "").split("->")[0].split(",")
    sizes = {}
    for term, shape in zip(terms, operands, strict=True):
        before, dots, after = term.partition("...")
        if dots:  # an ellipsis stands for the axes that have no letter
            names = [f"...{i}" for i in range(len(shape) - len(before + after), 0, -1)]
            names = [*before, *names, *after]
        else:
            names = list(term)
        for name, size in zip(names, shape, strict=True):
            sizes[name] = max(size, sizes.get(name, 1))
    return math.prod(sizes.values())


def _tensordot(operation: Any, node: Any) -> int:
    left, right, output = _shapes(node)
    # Contracted axes are in both operands, the others in one of them and the output.
    return math.isqrt(math.prod(left) * math.prod(right) * math.prod(output))


def _convolution(operation: Any, node: Any) -> int:
    _, kernel, output = _shapes(node)[-3:]
    return math.prod(output) * math.prod(kernel[:-1])


def _depthwise_convolution(operation: Any, node: Any) -> int:
    _, kernel, output = _shapes(node)[-3:]
    return math.prod(output) * math.prod(kernel[:-2])


def _separable_convolution(operation: Any, node: Any) -> int:
    _, depthwise, pointwise, output = _shapes(node)[-4:]
    places = math.prod(output) // pointwise[-1]
    return places * (math.prod(depthwise) + math.prod(pointwise))


def _transposed_convolution(operation: Any, node: Any) -> int:
    given, kernel, _ = _shapes(node)[-3:]
    return math.prod(given) * math.prod(kernel[:-1])


def _attention(operation: Any, node: Any) -> int:
    """Query times key, then the weights times value."""
    query, key, value = _shapes(node)[:3]
    batch, length, heads, width = query
    return batch * heads * length * key[1] * (width + value[-1])


_FORMULAS: dict[str, Callable[[Any, Any], int]] = {
    "Matmul": _matmul,
    "Einsum": _einsum,
    "Dot": _tensordot,
    "Tensordot": _tensordot,
    "Conv": _convolution,
    "ConvTranspose": _transposed_convolution,
    "DepthwiseConv": _depthwise_convolution,
    "SeparableConv": _separable_convolution,
    "DotProductAttention": _attention,
}
