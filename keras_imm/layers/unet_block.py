"""The residual block of the U-Net."""

import math
from typing import Any

import keras
from keras import ops

from keras_imm.layers.resampling import check_resample_filter, downsample, upsample
from keras_imm.layers.self_attention import SelfAttention
from keras_imm.validation import (
    check_boolean,
    check_choice,
    check_integer,
    check_rate,
)

# Two summands of equal variance keep it.
SKIP_SCALE = math.sqrt(0.5)


def group_norm(channels: int, dtype: Any, name: str) -> keras.layers.Layer:
    """Group normalization with up to 32 groups of at least 4 channels."""
    return keras.layers.GroupNormalization(
        groups=_num_groups(channels), epsilon=1e-6, axis=-1, dtype=dtype, name=name
    )


def check_channels(what: str, channels: int, received: str) -> None:
    """Raises ValueError unless the channels split into the groups of `group_norm`.

    `what` has them, because of the arguments that `received` shows.
    """
    if channels < 4 or channels % 4 or channels % _num_groups(channels):
        raise ValueError(
            f"{what} must have channels that split into groups: a multiple of 4 up to "
            f"128, a multiple of 32 above. Received: {received}, so {channels} channels"
        )


def _num_groups(channels: int) -> int:
    return min(32, channels // 4)


def convolution(
    filters: int,
    kernel_size: int,
    dtype: Any,
    name: str,
    scale: float = 1.0,
    **kwargs: Any,
) -> keras.layers.Layer:
    """Convolution of channels-last images, whatever Keras's default format is.

    `scale` multiplies the variance of the initial weights.
    """
    return keras.layers.Conv2D(
        filters,
        kernel_size,
        data_format="channels_last",
        kernel_initializer=fan_average(scale),
        dtype=dtype,
        name=name,
        **{"padding": "same", **kwargs},
    )


def fan_average(scale: float = 1.0) -> keras.initializers.Initializer:
    """Glorot's uniform initializer with `scale` times the variance."""
    return keras.initializers.VarianceScaling(
        scale=scale, mode="fan_avg", distribution="uniform"
    )


@keras.saving.register_keras_serializable(package="keras_imm")
class UNetBlock(keras.layers.Layer):
    """Residual block of DDPM++ and NCSN++, with optional attention and resampling.

        h = conv(silu(norm(resample(x)))) + dense(embedding)
        h = conv(dropout(silu(norm(h))))
        x = (h + project(resample(x))) / sqrt(2)
        x = (x + attention(norm(x))) / sqrt(2)

    The block resamples after its first activation; it projects the skipped input
    where it resamples or changes the number of channels. Both last layers start with
    weights near zero.

    Args:
        filters: Integer. Number of output channels: a multiple of 4 up to 128, a
            multiple of 32 above.
        resample: None, "down" (half the resolution) or "up" (double).
        resample_filter: Positive numbers, symmetric and of even length: the filter
            along one axis. Defaults to (1, 1).
        attention: Boolean. Whether self-attention with one head follows.
        dropout: Float in [0, 1). Dropout rate before the second convolution.
            Defaults to 0.
        seed: Integer, at least 0. Seed of the dropout masks. Defaults to 0.
        **kwargs: Other arguments of `keras.layers.Layer`, such as `name`, `dtype`.

    Call arguments:
        x: Tensor of shape `(batch, height, width, channels)`; for its channels holds
            what holds for `filters`.
        embedding: Tensor of shape `(batch, embedding_dim)`: the embedding of times and
            labels.
        training: Boolean. Whether dropout is active.

    Returns:
        A tensor of shape `(batch, height', width', filters)` in the compute dtype.

    Raises:
        ValueError: If an argument is out of its range, if the channels of `x` do not
            split into groups, or if an odd height or width is to be halved.

    Example:

    ```python
    block = keras_imm.layers.UNetBlock(32, resample="down", attention=True)
    x = block(np.zeros((1, 16, 16, 16), "float32"), np.zeros((1, 64), "float32"))
    # (1, 8, 8, 32)
    ```

    Reference:
        - [Song et al., 2021](https://arxiv.org/abs/2011.13456), Appendix H
        - [Karras et al., 2022](https://arxiv.org/abs/2206.00364), Table 7
    """

    def __init__(
        self,
        filters: int,
        resample: str | None = None,
        resample_filter: tuple[float, ...] = (1, 1),
        attention: bool = False,
        dropout: float = 0.0,
        seed: int = 0,
        **kwargs: Any,
    ):
        check_integer("filters", filters, at_least=4)
        check_channels("`filters`", filters, f"filters={filters!r}")
        if resample is not None:
            check_choice("resample", resample, ("down", "up"))
        check_resample_filter("resample_filter", resample_filter)
        check_boolean("attention", attention)
        check_rate("dropout", dropout)
        check_integer("seed", seed, at_least=0)
        super().__init__(**kwargs)
        self.filters = int(filters)
        self.resample = resample
        self.resample_filter = tuple(resample_filter)
        self.attention = attention
        self.dropout = dropout
        self.seed = int(seed)

    def build(self, x_shape, embedding_shape) -> None:
        policy, channels = self.dtype_policy, x_shape[-1]
        check_channels("`x`", channels, f"x.shape={tuple(x_shape)}")
        if self.resample == "down" and (x_shape[1] % 2 or x_shape[2] % 2):
            raise ValueError(
                "`x` must have an even height and width, because resample='down'. "
                f"Received: x.shape={tuple(x_shape)}"
            )
        output_shape = self.compute_output_shape(x_shape, embedding_shape)
        _, height, width, _ = output_shape

        self.input_norm = group_norm(channels, policy, "input_norm")
        self.input_norm.build(x_shape)
        self.input_conv = convolution(self.filters, 3, policy, "input_conv")
        self.input_conv.build((None, height, width, channels))
        self.embedding_dense = keras.layers.Dense(
            self.filters, dtype=policy, name="embedding_dense"
        )
        self.embedding_dense.build(embedding_shape)
        self.output_norm = group_norm(self.filters, policy, "output_norm")
        self.output_norm.build(output_shape)
        self.dropout_layer = None
        if self.dropout > 0:
            self.dropout_layer = keras.layers.Dropout(
                self.dropout, seed=self.seed, dtype=policy, name="dropout"
            )
        self.output_conv = convolution(
            self.filters, 3, policy, "output_conv", scale=1e-10
        )
        self.output_conv.build(output_shape)

        self.skip_conv = None
        if self.resample is not None or channels != self.filters:
            self.skip_conv = convolution(self.filters, 1, policy, "skip_conv")
            self.skip_conv.build((None, height, width, channels))
        if self.attention:
            self.attention_norm = group_norm(self.filters, policy, "attention_norm")
            self.attention_norm.build(output_shape)
            self.tokens_shape = (-1, height * width, self.filters)
            self.self_attention = SelfAttention(
                num_heads=1,
                qkv_initializer=fan_average(0.2),
                projection_initializer=fan_average(1e-10),
                dtype=policy,
                name="self_attention",
            )
            self.self_attention.build((None, *self.tokens_shape[1:]))

    def call(self, x, embedding, training=None) -> Any:
        h = self.resampled(ops.silu(self.input_norm(x)))
        h = self.input_conv(h) + self.embedding_dense(embedding)[:, None, None]
        h = ops.silu(self.output_norm(h))
        if self.dropout_layer is not None:
            h = self.dropout_layer(h, training=training)
        h = self.output_conv(h)

        skip = self.resampled(x)
        if self.skip_conv is not None:
            skip = self.skip_conv(skip)
        x = (h + skip) * SKIP_SCALE
        if self.attention:
            tokens = ops.reshape(self.attention_norm(x), self.tokens_shape)
            attended = ops.reshape(self.self_attention(tokens), ops.shape(x))
            x = (x + attended) * SKIP_SCALE
        return x

    def resampled(self, x) -> Any:
        """Features at the block's resolution: halved, doubled or as they are."""
        if self.resample == "down":
            return downsample(x, self.resample_filter)
        if self.resample == "up":
            return upsample(x, self.resample_filter)
        return x

    def compute_output_shape(self, x_shape, embedding_shape) -> tuple:
        batch, height, width, _ = x_shape
        if self.resample == "down":
            height, width = height // 2, width // 2
        elif self.resample == "up":
            height, width = 2 * height, 2 * width
        return (batch, height, width, self.filters)

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        config.update(
            filters=self.filters,
            resample=self.resample,
            resample_filter=self.resample_filter,
            attention=self.attention,
            dropout=self.dropout,
            seed=self.seed,
        )
        return config
