"""Augmentation of images, with labels for the network that say what was done."""

import math
from typing import Any

import keras
from keras import ops

from keras_imm.backend.random_streams import mix_seeds
from keras_imm.precision import at_least_float32
from keras_imm.validation import (
    check_choice,
    check_fraction,
    check_integer,
    check_positive_number,
)

__all__ = ["NUM_LABELS", "EDMAugmentation"]

NUM_LABELS = 9
"""Augmentation labels of an image: `augmentation_dim` of the backbone."""


@keras.saving.register_keras_serializable(package="keras_imm")
class EDMAugmentation(keras.layers.Layer):
    """Random geometric augmentation of images, with nine labels that say what was done.

    Each image gets its own flips, scaling, rotation, stretch and shift. They are
    composed into one affine map, in the order of this table, and the image is resampled
    once, mirrored about its border pixels:

    | labels | transform | values of the labels |
    |---|---|---|
    | 0 | x-flip | 0 or 1 |
    | 1 | y-flip | 0 or 1 |
    | 2 | scaling by 2^(scale_std n) | n, normal |
    | 3, 4 | rotation by an angle a in (-pi, pi) | cos a - 1, sin a |
    | 5, 6 | stretch by 2^(aniso_std n) along a, shrink across | n cos a, n sin a |
    | 7, 8 | shift by translation_std (n, m) widths and heights | n, m, normal |

    Each is enabled with `probability`, the x-flip with `x_flip_probability`; an enabled
    flip flips half of the images.

    A label is 0 where its transform was not made. An image whose labels are all 0 comes
    back bit for bit, so a network that is given labels of 0 samples images that were
    not augmented.

    `layer.apply(images, labels)` makes the transforms of given labels.

    Where this is our reading or differs from the paper:

    - The paper resamples with a wavelet filter at twice the resolution; this layer with
      cubic convolution (Keys, 1981), which blurs little but lets some aliasing through
      where an image shrinks. It overshoots at edges; nothing is clipped.
    - Flips come first and the shift last, as the paper's table lists them.
    - Positive angles turn the image against the clock; positive shifts move it right
      and down.
    - A stretch by -n in the opposite direction has the same labels as one by n, but
      makes another image. Here n is at least 0 (the size of a normal draw): images and
      labels are each distributed as before, and the labels determine the transform.
    - The paper's table enables the x-flip always. Data that is already flipped without
      labels wants `x_flip_probability=0`.

    Args:
        probability: Number in [0, 1]. Probability of each transform. Defaults to 0.12,
            the paper's for CIFAR-10; 0.15 for FFHQ and AFHQ.
        x_flip_probability: Number in [0, 1], or None. Probability that the x-flip is
            enabled. Defaults to None: 1 as in the paper, or 0 if `probability` is 0,
            which turns the whole layer off.
        scale_std: Number above 0. Standard deviation of the log2 of the scale. Defaults
            to 0.2.
        aniso_std: Number above 0. Standard deviation of the log2 of the stretch.
            Defaults to 0.2.
        translation_std: Number above 0. Standard deviation of the shift, in image
            widths and heights. Defaults to 0.125.
        interpolation: `"bicubic"` or `"bilinear"`, which costs a quarter and blurs.
            Defaults to `"bicubic"`.
        seed: Integer, at least 0, or None for a random one. Defaults to None.
        **kwargs: Other arguments of `keras.layers.Layer`, such as `name`.

    Call arguments:
        images: Float tensor of shape `(batch, height, width, channels)`, in any range.
            Only the batch size may be unknown.
        training: Boolean. Whether to augment; if not, the images come back with labels
            of 0. Defaults to True, or what `fit`, `evaluate` or `predict` sets.

    Returns:
        Images of the shape and dtype of `images` (computed in float32, or float64 where
        they are that), and float32 labels of shape `(batch, 9)`.

    Raises:
        ValueError: If an argument is out of its range, or `images` are not a float
            tensor of four axes, or `labels` are not of shape `(batch, 9)`.

    Example:

    ```python
    augmentation = keras_imm.augmentation.EDMAugmentation(seed=0)
    images, augmentation_labels = augmentation(np.zeros((8, 32, 32, 3), "float32"))
    ```

    With TensorFlow as Keras's backend the layer can be mapped over batches of a
    `tf.data.Dataset`. Other backends call it on batches, in a train step or in a loop:
    their tensors cannot be made inside a TensorFlow pipeline.

    Reference:
        - [Karras et al., 2022](https://arxiv.org/abs/2206.00364), Appendix F.2
        - [Karras et al., 2020](https://arxiv.org/abs/2006.06676), Appendix B
    """

    def __init__(
        self,
        probability: float = 0.12,
        x_flip_probability: float | None = None,
        scale_std: float = 0.2,
        aniso_std: float = 0.2,
        translation_std: float = 0.125,
        interpolation: str = "bicubic",
        seed: int | None = None,
        **kwargs,
    ):
        check_fraction("probability", probability)
        if x_flip_probability is not None:
            check_fraction("x_flip_probability", x_flip_probability)
        check_positive_number("scale_std", scale_std)
        check_positive_number("aniso_std", aniso_std)
        check_positive_number("translation_std", translation_std)
        check_choice("interpolation", interpolation, tuple(TAPS))
        if seed is not None:
            check_integer("seed", seed, at_least=0)
        # Images keep their dtype, whatever the policy.
        super().__init__(autocast=False, **kwargs)
        self.probability = probability
        self.x_flip_probability = x_flip_probability
        self.scale_std = scale_std
        self.aniso_std = aniso_std
        self.translation_std = translation_std
        self.interpolation = interpolation
        self.seed = seed
        # Not the stream of another layer that was given the same seed.
        mixed = None if seed is None else mix_seeds(seed, NUM_LABELS)
        self.seed_generator = keras.random.SeedGenerator(mixed)

    def call(self, images, training=True) -> tuple:
        check_images(images)
        batch = ops.shape(images)[0]
        if not training:
            return images, ops.zeros((batch, NUM_LABELS), "float32")
        labels = self.draw(batch)
        return self.apply(images, labels), labels

    def draw(self, batch_size: Any) -> Any:
        """Draws the labels of a batch.

        Args:
            batch_size: Integer, or integer scalar tensor.

        Returns:
            Float32 tensor of shape `(batch_size, 9)`.
        """
        seed = self.seed_generator
        uniform = keras.random.uniform((batch_size, 10), dtype="float32", seed=seed)
        normal = keras.random.normal((batch_size, 4), dtype="float32", seed=seed)
        gates, (x_coin, y_coin, angle, direction) = (
            uniform[:, :6],
            ops.unstack(uniform[:, 6:], 4, axis=1),
        )
        x_flip_probability = self.x_flip_probability
        if x_flip_probability is None:
            x_flip_probability = 1.0 if self.probability > 0 else 0.0
        thresholds = [x_flip_probability] + 5 * [self.probability]
        x_flip, y_flip, scaled, rotated, stretched, shifted = (
            gates[:, i] < p for i, p in enumerate(thresholds)
        )
        angle = math.pi * (2 * angle - 1)
        direction = math.pi * (2 * direction - 1)
        scale, stretch, shift_x, shift_y = ops.unstack(normal, 4, axis=1)
        stretch = ops.abs(stretch)
        labels = [
            (x_flip, ops.cast(x_coin < 0.5, "float32")),
            (y_flip, ops.cast(y_coin < 0.5, "float32")),
            (scaled, scale),
            (rotated, -2 * ops.square(ops.sin(angle / 2))),  # cos - 1
            (rotated, ops.sin(angle)),
            (stretched, stretch * ops.cos(direction)),
            (stretched, stretch * ops.sin(direction)),
            (shifted, shift_x),
            (shifted, shift_y),
        ]
        return ops.stack([ops.where(on, x, 0.0) for on, x in labels], axis=1)

    def apply(self, images: Any, labels: Any) -> Any:
        """Makes the transforms that the labels say.

        Args:
            images: Float tensor of shape `(batch, height, width, channels)`.
            labels: Tensor of shape `(batch, 9)`, as the layer returns.

        Returns:
            Tensor of the shape and dtype of `images`, equal to `images` where a row of
            labels is 0.
        """
        images = ops.convert_to_tensor(images)
        labels = ops.convert_to_tensor(labels)
        check_images(images)
        check_labels(labels, images)
        x = at_least_float32(images)
        height, width = images.shape[1:3]
        rows, columns = self._sources(ops.cast(labels, x.dtype), height, width)
        moved = resample(x, rows, columns, TAPS[self.interpolation])
        is_untouched = ops.all(ops.equal(labels, 0), axis=1)[:, None, None, None]
        return ops.where(is_untouched, images, ops.cast(moved, images.dtype))

    def _sources(self, labels, height, width) -> tuple:
        """Where in its image each pixel of the output lies: rows, columns.

        Both of shape `(batch, height, width)`: the inverse of the affine map, so the
        inverses of its parts from the last to the first.
        """
        labels = [label[:, None, None] for label in ops.unstack(labels, 9, axis=1)]
        x_flip, y_flip, scale, cos_minus_1, sin, aniso_x, aniso_y, shift_x, shift_y = (
            labels
        )
        zero = ops.zeros_like(scale)
        columns = zero + ops.cast(ops.arange(width), scale.dtype)[None, None, :]
        rows = zero + ops.cast(ops.arange(height), scale.dtype)[None, :, None]
        # From here on x and y are pixels from the centre, to the right and down.
        x = columns - (width - 1) / 2 - self.translation_std * width * shift_x
        y = rows - (height - 1) / 2 - self.translation_std * height * shift_y

        # Shrink along the direction (u, w) and stretch across: with k the log of the
        # stretch, cosh(k) - sinh(k) [[cos 2a, sin 2a], [sin 2a, -cos 2a]].
        n_squared = ops.square(aniso_x) + ops.square(aniso_y)
        safe = ops.where(n_squared > 0, n_squared, ops.ones_like(n_squared))
        k = math.log(2) * self.aniso_std * ops.sqrt(n_squared)
        cos_2a = (ops.square(aniso_x) - ops.square(aniso_y)) / safe
        sin_2a = 2 * aniso_x * aniso_y / safe
        cosh, sinh = ops.cosh(k), ops.sinh(k)
        x, y = (
            (cosh - sinh * cos_2a) * x - sinh * sin_2a * y,
            (cosh + sinh * cos_2a) * y - sinh * sin_2a * x,
        )

        cos = 1 + cos_minus_1
        x, y = cos * x - sin * y, sin * x + cos * y

        size = ops.exp(-math.log(2) * self.scale_std * scale)
        x, y = size * x, size * y

        x, y = (1 - 2 * x_flip) * x, (1 - 2 * y_flip) * y
        return y + (height - 1) / 2, x + (width - 1) / 2

    def compute_output_spec(self, images, training=True) -> tuple:
        check_images(images)
        return (
            keras.KerasTensor(images.shape, dtype=images.dtype),
            keras.KerasTensor((images.shape[0], NUM_LABELS), dtype="float32"),
        )

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        config.update(
            probability=self.probability,
            x_flip_probability=self.x_flip_probability,
            scale_std=self.scale_std,
            aniso_std=self.aniso_std,
            translation_std=self.translation_std,
            interpolation=self.interpolation,
            seed=self.seed,
        )
        return config


def linear_taps(f: Any) -> list:
    """Weights of the pixels 0 and 1 for a point at f in [0, 1)."""
    return [(0, 1 - f), (1, f)]


def cubic_taps(f: Any) -> list:
    """Weights of the pixels -1 to 2 for a point at f in [0, 1) (Keys, 1981)."""
    return [
        (-1, ((-0.5 * f + 1) * f - 0.5) * f),
        (0, (1.5 * f - 2.5) * f * f + 1),
        (1, ((-1.5 * f + 2) * f + 0.5) * f),
        (2, (0.5 * f - 0.5) * f * f),
    ]


TAPS = {"bicubic": cubic_taps, "bilinear": linear_taps}


def resample(images: Any, rows: Any, columns: Any, taps: Any) -> Any:
    """Images at points between their pixels, mirrored about their border pixels.

    `keras.ops.image.affine_transform` has no cubic interpolation and, under PyTorch,
    goes through a batch image by image.

    Args:
        images: Tensor of shape `(batch, height, width, channels)`.
        rows: Tensor of shape `(batch, out_height, out_width)`.
        columns: Tensor of the shape of `rows`.
        taps: Function of the fraction, giving offsets of pixels and their weights.

    Returns:
        Tensor of shape `(batch, out_height, out_width, channels)`.
    """
    batch, (height, width, channels) = ops.shape(images)[0], images.shape[1:]
    pixels = ops.reshape(images, (-1, channels))
    first = height * width * ops.arange(batch, dtype="int32")[:, None, None]
    top, left = ops.floor(rows), ops.floor(columns)
    column_taps = [
        (mirrored(ops.cast(left, "int32") + offset, width), weight[..., None])
        for offset, weight in taps(columns - left)
    ]
    result = 0.0
    for offset, row_weight in taps(rows - top):
        start = first + width * mirrored(ops.cast(top, "int32") + offset, height)
        line = sum(
            weight * ops.take(pixels, start + column, axis=0)
            for column, weight in column_taps
        )
        result = result + row_weight[..., None] * line
    return result


def mirrored(index: Any, size: int) -> Any:
    """Folds indices into 0 to size - 1: -1 is 1, and size is size - 2."""
    if size == 1:
        return ops.zeros_like(index)
    last = size - 1
    return last - ops.abs(ops.mod(index, 2 * last) - last)


def check_images(images: Any) -> None:
    """Raises ValueError unless images are float, of four axes, three of known size."""
    dtype = keras.backend.standardize_dtype(images.dtype)
    shape = tuple(images.shape)
    if not keras.backend.is_float_dtype(dtype):
        raise ValueError(f"`images` must be float. Received: dtype={dtype}")
    if len(shape) != 4 or None in shape[1:] or 0 in shape[1:]:
        raise ValueError(
            "`images` must be of shape (batch, height, width, channels), of which only "
            f"the batch size may be unknown. Received: shape={shape}"
        )


def check_labels(labels: Any, images: Any) -> None:
    """Raises ValueError unless labels are of shape (batch, 9)."""
    shape, batch = tuple(labels.shape), images.shape[0]
    is_matrix = len(shape) == 2 and shape[1] == NUM_LABELS
    if not is_matrix or (None not in (shape[0], batch) and shape[0] != batch):
        raise ValueError(
            f"`labels` must be of shape (batch, {NUM_LABELS}) with the batch size of "
            f"`images`. Received: labels of shape {shape} for a batch size of {batch}"
        )
