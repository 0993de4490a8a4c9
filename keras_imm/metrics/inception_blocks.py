"""The blocks of the InceptionV3 of 2015-12-05, with the poolings it was trained with.

Names are those of the PyTorch conversion, so that each layer finds its weights.
"""

from collections.abc import Callable
from typing import Any

import keras
from keras import layers, ops

SIZE = 299  # of the images that the network sees


# Of layers that take images, whatever Keras's settings say.
IMAGES = {"dtype": "float32", "data_format": "channels_last"}


class Resize(keras.layers.Layer):
    """Bilinear resize to 299x299 as TensorFlow 1 does it, then to about [-1, 1].

    Pixel i of the result is at i · H / 299 of the image: corners are not aligned, and
    pixels have no centres. Images that are made smaller are not smoothed.
    """

    def call(self, images: Any) -> Any:
        x = ops.cast(images, "float32")
        for axis in (1, 2):
            x = _interpolate(x, axis)
        return (x - 128.0) / 128.0

    def compute_output_shape(self, input_shape: tuple) -> tuple:
        return (input_shape[0], SIZE, SIZE, input_shape[3])


def _interpolate(x, axis):
    size = ops.shape(x)[axis]
    scale = ops.cast(size, "float32") / SIZE
    place = ops.arange(SIZE, dtype="float32") * scale
    below = ops.floor(place)
    weight = ops.reshape(place - below, (SIZE,) + (1,) * (3 - axis))
    below = ops.minimum(ops.cast(below, "int32"), size - 1)
    above = ops.minimum(below + 1, size - 1)
    first, second = ops.take(x, below, axis=axis), ops.take(x, above, axis=axis)
    return first + (second - first) * weight


class Convolutions:
    """Makes convolutions, each with batch normalization and ReLU, and keeps them.

    Args:
        initializer: Of the kernels.

    Attributes:
        made: (convolution, normalization) by the name of the two together.
    """

    def __init__(self, initializer: str):
        self.initializer = initializer
        self.made: dict[str, tuple[keras.layers.Layer, keras.layers.Layer]] = {}

    def __call__(
        self,
        x: Any,
        name: str,
        filters: int,
        kernel: int | tuple[int, int] = 1,
        strides: int = 1,
        padding: str = "same",
    ) -> Any:
        label = name.replace(".", "_")
        convolution = layers.Conv2D(
            filters,
            kernel,
            strides,
            padding,
            use_bias=False,
            kernel_initializer=self.initializer,
            name=f"{label}_conv",
            **IMAGES,
        )
        normalization = layers.BatchNormalization(
            epsilon=1e-3, dtype="float32", name=f"{label}_bn"
        )
        self.made[name] = (convolution, normalization)
        return ops.relu(normalization(convolution(x)))

    def chain(self, x: Any, name: str, *steps: tuple) -> Any:
        """Convolutions one after the other: (suffix of the name, filters, ...)."""
        for suffix, *arguments in steps:
            x = self(x, name + suffix, *arguments)
        return x


def stem(conv: Convolutions, x: Any) -> tuple[Any, Any]:
    """From the image to 73x73x64 and 35x35x192."""
    x = conv(x, "Conv2d_1a_3x3", 32, 3, 2, "valid")
    x = conv(x, "Conv2d_2a_3x3", 32, 3, 1, "valid")
    x = conv(x, "Conv2d_2b_3x3", 64, 3)
    first = layers.MaxPooling2D(3, 2, **IMAGES)(x)
    x = conv(first, "Conv2d_3b_1x1", 80, 1, 1, "valid")
    x = conv(x, "Conv2d_4a_3x3", 192, 3, 1, "valid")
    return first, layers.MaxPooling2D(3, 2, **IMAGES)(x)


def block_a(conv: Convolutions, x: Any, name: str, pool_filters: int) -> Any:
    """35x35."""
    return _join(
        conv(x, f"{name}.branch1x1", 64),
        conv.chain(x, f"{name}.branch5x5", ("_1", 48), ("_2", 64, 5)),
        conv.chain(x, f"{name}.branch3x3dbl", ("_1", 64), ("_2", 96, 3), ("_3", 96, 3)),
        conv(_average(x), f"{name}.branch_pool", pool_filters),
    )


def block_b(conv: Convolutions, x: Any, name: str) -> Any:
    """From 35x35 to 17x17."""
    return _join(
        conv(x, f"{name}.branch3x3", 384, 3, 2, "valid"),
        conv.chain(
            x,
            f"{name}.branch3x3dbl",
            ("_1", 64),
            ("_2", 96, 3),
            ("_3", 96, 3, 2, "valid"),
        ),
        layers.MaxPooling2D(3, 2, **IMAGES)(x),
    )


def block_c(conv: Convolutions, x: Any, name: str, filters: int) -> tuple[Any, Any]:
    """17x17. Returns the block's output and that of its first branch."""
    row, column = (1, 7), (7, 1)
    branch1x1 = conv(x, f"{name}.branch1x1", 192)
    branch7x7 = conv.chain(
        x,
        f"{name}.branch7x7",
        ("_1", filters),
        ("_2", filters, row),
        ("_3", 192, column),
    )
    branch7x7dbl = conv.chain(
        x,
        f"{name}.branch7x7dbl",
        ("_1", filters),
        ("_2", filters, column),
        ("_3", filters, row),
        ("_4", filters, column),
        ("_5", 192, row),
    )
    pooled = conv(_average(x), f"{name}.branch_pool", 192)
    return _join(branch1x1, branch7x7, branch7x7dbl, pooled), branch1x1


def block_d(conv: Convolutions, x: Any, name: str) -> Any:
    """From 17x17 to 8x8."""
    return _join(
        conv.chain(x, f"{name}.branch3x3", ("_1", 192), ("_2", 320, 3, 2, "valid")),
        conv.chain(
            x,
            f"{name}.branch7x7x3",
            ("_1", 192),
            ("_2", 192, (1, 7)),
            ("_3", 192, (7, 1)),
            ("_4", 192, 3, 2, "valid"),
        ),
        layers.MaxPooling2D(3, 2, **IMAGES)(x),
    )


def block_e(conv: Convolutions, x: Any, name: str, pool: Callable) -> Any:
    """8x8, with `pool` in its last branch."""
    branch3x3 = conv(x, f"{name}.branch3x3_1", 384)
    branch3x3dbl = conv.chain(x, f"{name}.branch3x3dbl", ("_1", 448), ("_2", 384, 3))
    return _join(
        conv(x, f"{name}.branch1x1", 320),
        _split(conv, branch3x3, f"{name}.branch3x3_2"),
        _split(conv, branch3x3dbl, f"{name}.branch3x3dbl_3"),
        conv(pool(x), f"{name}.branch_pool", 192),
    )


def last_blocks(conv: Convolutions, x: Any) -> Any:
    """The two 8x8 blocks. The last pools by the maximum, unlike the published one."""
    x = block_e(conv, x, "Mixed_7b", _average)
    return block_e(conv, x, "Mixed_7c", layers.MaxPooling2D(3, 1, "same", **IMAGES))


def _split(conv, x, name):
    return _join(conv(x, f"{name}a", 384, (1, 3)), conv(x, f"{name}b", 384, (3, 1)))


def _average(x):
    """Averages over the pixels that there are: padding does not count."""
    return layers.AveragePooling2D(3, 1, "same", **IMAGES)(x)


def _join(*branches):
    return ops.concatenate(branches, axis=-1)
