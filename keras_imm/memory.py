"""Device memory of a training step, predicted from the shapes of a network."""

import math
from typing import Any, NamedTuple

import keras

from keras_imm.backbones.inputs import inputs_of_one_sample
from keras_imm.backend import keras_private
from keras_imm.validation import check_integer, check_rate

_FLOAT32 = 4  # bytes
# What the backward pass of an operation takes from the forward pass: nothing, the
# result, or, unless named here, the inputs. Views hold no memory of their own.
_VIEWS = {
    *("Cast", "ExpandDims", "GetItem", "Reshape", "Split", "Squeeze", "Transpose"),
    *("Unstack", "BroadcastTo", "StopGradient", "SwapAxes", "Moveaxis", "Ravel"),
}
_KEEP_NOTHING = {"Add", "Concatenate", "Mean", "Negative", "Pad", "Stack", "Subtract"}
_KEEP_NOTHING |= {"Sum", "OneHot", "Ones", "Zeros", "OnesLike", "ZerosLike", "Arange"}
_KEEP_RESULT = {"Exp", "Sigmoid", "Softmax", "Sqrt", "Rsqrt", "Tanh", "ReLU", "Relu"}
_PRODUCTS = {"Conv", "DotProductAttention", "Einsum", "Matmul"}
_NORMS = {"LayerNorm", "RMSNorm"}
_LAYERS_THAT_KEEP_INPUTS = (
    keras.layers.Conv1D,
    keras.layers.Conv2D,
    keras.layers.Conv3D,
    keras.layers.BatchNormalization,
    keras.layers.GroupNormalization,
    keras.layers.LayerNormalization,
    keras.layers.RMSNormalization,
)
_LAYERS_THAT_KEEP_RESULTS = (keras.layers.Dropout, keras.layers.Softmax)


class TrainingMemory(NamedTuple):
    """Bytes that a training step needs on a device, by what they hold.

    Attributes:
        weights: The weights, in float32.
        optimizer: Moments and averages, in float32.
        gradients: Of the trainable weights, in float32.
        half_precision_weights: Copies of the weights in the network's precision.
        activations: What the backward pass takes from the forward pass.
    """

    weights: int
    optimizer: int
    gradients: int
    half_precision_weights: int
    activations: int

    @property
    def total(self) -> int:
        """Their sum: the peak, at the end of the forward pass."""
        return sum(self)


def training_memory(
    backbone: keras.layers.Layer,
    batch_size: int,
    data_shape: tuple | None = None,
    moments: int = 2,
    averages: int = 1,
) -> TrainingMemory:
    """Memory of a training step on one device, before anything is computed.

    Counted are the weights, the optimizer's state, the gradients, and what compiled
    steps keep for the backward pass: inputs of products, convolutions, normalizations
    and multiplications, each tensor once. Sums are recomputed or need nothing; passes
    without gradient keep nothing. Libraries, buffers of single operations and the
    fragments between them come on top.

    Args:
        backbone: As for `keras_imm.flops.multiply_adds`. It is built if it is not, so
            that its weights take memory; its precision is that of the prediction.
        batch_size: Samples that go through the network together on the device: those
            of a micro-batch, where gradients are accumulated.
        data_shape: Shape of x without the batch. Default: the backbone's attribute
            `image_shape`.
        moments: Values that the optimizer keeps for a weight: 2 for Adam, AdamW, RAdam.
        averages: Averages of a weight: 1 with `use_ema=True`, else 0, and those that
            the objective names.

    Returns:
        A `TrainingMemory`, in bytes.

    Raises:
        ValueError: If an argument is out of its range, the shape of the data is not
            known, or a layer computes with something else than `keras.ops`.

    Example:

    ```python
    backbone = keras_imm.backbones.DiT.from_preset(
        "dit_s_2", image_shape=(32, 32, 4), num_classes=1000, dtype="mixed_bfloat16"
    )
    memory = keras_imm.memory.training_memory(backbone, batch_size=256)
    memory.total / 2**30  # GiB
    ```
    """
    check_integer("batch_size", batch_size, at_least=1)
    check_integer("moments", moments, at_least=0)
    check_integer("averages", averages, at_least=0)
    inputs = inputs_of_one_sample(backbone, data_shape)
    trainable = _size(backbone.trainable_variables)
    width = _itemsize(backbone.compute_dtype)
    kept = activations(backbone, inputs)
    return TrainingMemory(
        weights=_FLOAT32 * _size(backbone.variables),
        optimizer=_FLOAT32 * trainable * (moments + averages),
        gradients=_FLOAT32 * trainable,
        half_precision_weights=width * trainable if width < _FLOAT32 else 0,
        activations=width * batch_size * kept,
    )


def accumulation_that_fits(
    backbone: keras.layers.Layer,
    batch_size: int,
    available: int,
    rows_together: int = 1,
    headroom: float = 0.15,
    **kwargs: Any,
) -> int:
    """The fewest parts of a batch with which a training step fits into a device.

    Args:
        backbone: As for `training_memory`.
        batch_size: Samples of a step on the device.
        available: The device's memory in bytes, such as
            `keras_imm.devices.memory_bytes()`.
        rows_together: Rows of a batch that are never parted: the model's
            `objective.rows_together`, the size of a group for IMM.
        headroom: Share of the memory left for what is not predicted, in [0, 1).
        **kwargs: Further arguments of `training_memory`.

    Returns:
        A positive integer, for `accumulation_steps`.

    Raises:
        ValueError: If not even `rows_together` samples fit, or an argument is out of
            its range.

    Example:

    ```python
    available = keras_imm.devices.memory_bytes()
    model.accumulation_steps = keras_imm.memory.accumulation_that_fits(
        model.backbone, 4096, available, model.objective.rows_together
    )
    ```
    """
    check_integer("batch_size", batch_size, at_least=1)
    check_integer("rows_together", rows_together, at_least=1)
    check_rate("headroom", headroom)
    if batch_size % rows_together:
        raise ValueError(
            f"`batch_size` must be a multiple of rows_together={rows_together}. "
            f"Received: batch_size={batch_size}"
        )
    one = training_memory(backbone, 1, **kwargs)
    fixed, limit = one.total - one.activations, (1 - headroom) * available
    groups = batch_size // rows_together
    for parts in range(1, groups + 1):
        fits = fixed + one.activations * (batch_size // parts) <= limit
        if groups % parts == 0 and fits:
            return parts
    least = fixed + one.activations * rows_together
    raise ValueError(
        f"`available` must be at least {least / (1 - headroom) / 2**30:.2f} GiB for "
        f"{rows_together} samples. Received: {available / 2**30:.2f} GiB"
    )


def activations(layer: keras.layers.Layer, *args: Any, **kwargs: Any) -> int:
    """Numbers that the backward pass of a built layer takes from the forward pass.

    Args:
        layer: The layer.
        *args: What it is called on, with `keras.KerasTensor` of known shapes, batch
            included, for tensors.
        **kwargs: Further arguments of the call.

    Returns:
        A non-negative integer. Of blocks that are recomputed (`remat=True`), their
        inputs and once the activations of the largest; with "products" their inputs,
        the results of their products, and what is normalized.

    Raises:
        ValueError: If a layer in it computes with something else than `keras.ops`.
    """
    with keras_private.without_symbolic_marks(keras_private.all_layers(layer)):
        kept = _Kept(_recomputed(layer))
        kept.call(layer, args, kwargs)
        return kept.total()


class _Kept:
    """Tensors kept for the backward pass, each counted once whatever its views."""

    def __init__(self, recomputed: dict[int, Any], products_only: bool = False):
        self._recomputed = recomputed  # ids of layers, and how: `remat`
        self._products_only = products_only
        self._tensors: dict[int, Any] = {}
        self._view_of: dict[int, Any] = {}
        self._all: list = []  # alive, so that no id is used twice
        self._inside = 0  # of blocks that are recomputed: all products, or the largest

    def total(self, besides: set[int] = frozenset()) -> int:
        roots = {id(root): root for root in map(self._root, self._tensors.values())}
        sizes = (math.prod(t.shape) for key, t in roots.items() if key not in besides)
        return self._inside + sum(sizes)

    def call(self, layer: Any, args: tuple, kwargs: dict) -> Any:
        try:
            outputs = layer.call(*args, **kwargs)
        except Exception as error:
            raise ValueError(
                f"Cannot follow {layer.name!r}, a {type(layer).__name__}, whose call "
                f"does not consist of `keras.ops`: {error}"
            ) from error
        given = keras.tree.flatten((args, kwargs))
        for node in keras_private.calls_between(outputs, stop_at=given):
            self._all.append(node)
            self._add(node)
        return outputs

    def _add(self, node: Any) -> None:
        operation = node.operation
        name = type(operation).__name__
        if isinstance(operation, _LAYERS_THAT_KEEP_INPUTS):
            self._keep(node.input_tensors)
        elif isinstance(operation, _LAYERS_THAT_KEEP_RESULTS):
            self._keep(node.output_tensors)
        elif id(operation) in self._recomputed:
            self._add_recomputed(node)
        elif isinstance(operation, keras.layers.Layer):
            arguments = node.arguments
            outputs = self.call(operation, arguments.args, arguments.kwargs)
            pairs = zip(node.output_tensors, keras.tree.flatten(outputs), strict=True)
            self._view_of.update((id(seen), inner) for seen, inner in pairs)
        elif name in _VIEWS:
            source = node.input_tensors[0]
            self._view_of.update((id(view), source) for view in node.output_tensors)
        elif self._products_only:
            if name in _PRODUCTS:
                self._keep(node.output_tensors)
            elif name in _NORMS:  # of a sum
                self._keep(node.input_tensors)
        elif name in _KEEP_RESULT:
            self._keep(node.output_tensors)
        elif name not in _KEEP_NOTHING:
            self._keep(node.input_tensors)

    def _add_recomputed(self, node: Any) -> None:
        block, arguments = node.operation, node.arguments
        products_only = self._recomputed[id(block)] == "products"
        self._keep(node.input_tensors)
        inside = _Kept({}, products_only)
        inside.call(block, arguments.args, arguments.kwargs)
        if products_only:
            given = {id(tensor) for tensor in node.input_tensors}
            self._inside += inside.total(besides=given)
        else:
            self._inside = max(self._inside, inside.total())

    def _keep(self, tensors: list) -> None:
        for tensor in tensors:
            if keras.backend.is_float_dtype(tensor.dtype):
                self._tensors[id(tensor)] = tensor

    def _root(self, tensor: Any) -> Any:
        while id(tensor) in self._view_of:
            tensor = self._view_of[id(tensor)]
        return tensor


def _recomputed(layer: keras.layers.Layer) -> dict[int, Any]:
    """The blocks of a network that its training recomputes, by id, and how."""
    return {
        id(block): network.remat
        for network in keras_private.all_layers(layer)
        if getattr(network, "remat", False)
        for block in getattr(network, "blocks", ())
    }


def _size(variables: list) -> int:
    return sum(math.prod(v.shape) for v in variables)


def _itemsize(dtype: str) -> int:
    return {"float64": 8, "float16": 2, "bfloat16": 2}.get(dtype, _FLOAT32)
