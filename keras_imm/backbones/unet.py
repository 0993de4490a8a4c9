"""The U-Net of DDPM++ and NCSN++."""

from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_imm.backbones import published_weights as published
from keras_imm.backbones.inputs import Inputs, split_inputs
from keras_imm.backend import initial_values_together
from keras_imm.backend.random_streams import mix_seeds
from keras_imm.layers.fourier_embedding import FourierEmbedding
from keras_imm.layers.positional_embedding import PositionalEmbedding
from keras_imm.layers.resampling import (
    check_resample_filter,
    decimate,
    downsample,
    upsample,
)
from keras_imm.layers.unet_block import (
    SKIP_SCALE,
    UNetBlock,
    check_channels,
    convolution,
    group_norm,
)
from keras_imm.layers.validation import check_image_shape, check_no_weights
from keras_imm.validation import (
    check_choice,
    check_integer,
    check_positive_number,
    check_rate,
)

# Karras et al., 2022, Table 7, with the widths of the IMM paper's Table 5.
PRESETS = {
    "ddpmpp_cifar10": {
        "embedding_type": "positional",
        "encoder_type": "standard",
        "channel_mult_noise": 1,
        "resample_filter": (1, 1),
        "dropout": 0.2,
    },
    "ncsnpp_cifar10": {
        "embedding_type": "fourier",
        "encoder_type": "residual",
        "channel_mult_noise": 2,
        "resample_filter": (1, 3, 3, 1),
        "dropout": 0.2,
    },
}


@keras.saving.register_keras_serializable(package="keras_imm")
class UNet(keras.Model):
    """U-Net with two time inputs (DDPM++, NCSN++), the network G of the flow map.

    An encoder halves the resolution between its levels, a decoder doubles it and
    concatenates the encoder's features of the same place; every residual block is given
    the embedding of both times, of the label and of the augmentation.

    Args:
        image_shape: Three positive integers: height, width and channels. Height and
            width are multiples of 2 to the number of levels less one.
            Defaults to (32, 32, 3).
        model_channels: Integer. Channels of the first convolution: a multiple of 4;
            where blocks have more than 128 channels, such that these are multiples
            of 32. Defaults to 128.
        channel_mult: Positive integers, one per level: its channels over
            `model_channels`. Defaults to (2, 2, 2).
        num_blocks: Integer, at least 1. Residual blocks per level of the encoder; the
            decoder has one more. Defaults to 4.
        attention_resolutions: Integers. Image heights at which blocks have
            self-attention: all of the encoder's, the last of the decoder's. The first
            decoder block always has it. Defaults to (16,).
        embedding_type: "positional" (DDPM++) or "fourier" (NCSN++). How a time becomes
            features. Defaults to "positional".
        encoder_type: "standard", "skip" (the downsampled image, through one
            convolution, is added at each level) or "residual" (so is a running sum of
            the image's features). Defaults to "standard".
        decoder_type: "standard" or "skip" (every level adds to an image that is
            upsampled from level to level). Defaults to "standard".
        resample_filter: Positive numbers, symmetric and of even length: the filter
            along one axis. [1, 1] for DDPM++, [1, 3, 3, 1] for NCSN++.
            Defaults to (1, 1).
        channel_mult_noise: Positive integer. Features of a time over
            `model_channels`: 1 for DDPM++, 2 for NCSN++. Defaults to 1.
        channel_mult_embedding: Positive integer. Width of the embedding over
            `model_channels`. Defaults to 4.
        fourier_scale: Float above 0. Standard deviation of the random frequencies of
            "fourier". Defaults to 16.
        num_classes: Integer. Number of labels; 0 makes the network unconditional.
            The null label, for dropped labels and guidance, is `num_classes`.
            Defaults to 0.
        augmentation_dim: Integer. Number of augmentation labels; 9 for
            `keras_imm.augmentation.EDMAugmentation`. Defaults to 0.
        label_dropout: Float in [0, 1). Probability that the network itself takes a
            label for the null label during training. `keras_imm.IMM` does the same
            by its own `label_dropout`. Defaults to 0.
        dropout: Float in [0, 1). Dropout rate inside the blocks. Defaults to 0.
        seed: Integer, at least 0. Seed of the dropout masks and of the random
            frequencies; initial weights follow `keras.utils.set_random_seed`.
            Defaults to 0.
        **kwargs: Other arguments of `keras.Model`, such as `name` and `dtype`.

    Call arguments:
        inputs: List of three to five tensors.
            `x`: shape `(batch, *image_shape)`, float.
            `c_t`: shape `(batch,)`, float. The first time input, already scaled (by
            1000 for "positional", by 1 for "fourier").
            `c_s`: shape `(batch,)`, float. The second time input, already scaled.
            `labels`: shape `(batch,)`, integers in [0, num_classes]; left out or None
            when unconditional.
            `augmentation_labels`: shape `(batch, augmentation_dim)`, float; left out
            or None for images as they are, which is the same as zeros.
        training: Boolean. Whether dropout is active.

    Returns:
        G: a tensor of the shape of `x`, float32 under every dtype policy but float64,
        where it is float64. Times are kept in that dtype up to their features.

    Raises:
        ValueError: If an argument is out of its range, if the image cannot be halved
            once per level, if the channels of a block do not split into groups, if an
            input has another shape, or if labels are given or missing against
            `num_classes`.

    Example:

    ```python
    backbone = keras_imm.backbones.UNet(
        image_shape=(16, 16, 3),
        model_channels=16,
        channel_mult=(1, 2),
        num_blocks=1,
        attention_resolutions=(8,),
    )
    x = np.random.normal(size=(2, 16, 16, 3)).astype("float32")
    c_t, c_s = np.array([994.0, 500.0]), np.array([497.0, 0.0])
    g = backbone([x, c_t, c_s])  # (2, 16, 16, 3)
    ```

    Reference:
        - [Song et al., 2021](https://arxiv.org/abs/2011.13456), Appendix H
        - [Karras et al., 2022](https://arxiv.org/abs/2206.00364), Table 7
        - [Zhou et al., 2025](https://arxiv.org/abs/2503.07565), Table 5
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int] = (32, 32, 3),
        model_channels: int = 128,
        channel_mult: tuple[int, ...] = (2, 2, 2),
        num_blocks: int = 4,
        attention_resolutions: tuple[int, ...] = (16,),
        embedding_type: str = "positional",
        encoder_type: str = "standard",
        decoder_type: str = "standard",
        resample_filter: tuple[float, ...] = (1, 1),
        channel_mult_noise: int = 1,
        channel_mult_embedding: int = 4,
        fourier_scale: float = 16.0,
        num_classes: int = 0,
        augmentation_dim: int = 0,
        label_dropout: float = 0.0,
        dropout: float = 0.0,
        seed: int = 0,
        **kwargs,
    ):
        check_image_shape("image_shape", image_shape)
        check_integer("model_channels", model_channels, at_least=4)
        _check_integers("channel_mult", channel_mult, shortest=1)
        check_integer("num_blocks", num_blocks, at_least=1)
        _check_integers("attention_resolutions", attention_resolutions, shortest=0)
        check_choice("embedding_type", embedding_type, ("positional", "fourier"))
        check_choice("encoder_type", encoder_type, ("standard", "skip", "residual"))
        check_choice("decoder_type", decoder_type, ("standard", "skip"))
        check_resample_filter("resample_filter", resample_filter)
        check_integer("channel_mult_noise", channel_mult_noise, at_least=1)
        check_integer("channel_mult_embedding", channel_mult_embedding, at_least=1)
        check_positive_number("fourier_scale", fourier_scale)
        check_integer("num_classes", num_classes, at_least=0)
        check_integer("augmentation_dim", augmentation_dim, at_least=0)
        check_rate("label_dropout", label_dropout)
        check_rate("dropout", dropout)
        check_integer("seed", seed, at_least=0)
        halved = 2 ** (len(channel_mult) - 1)
        for side, what in zip(image_shape, ("height", "width"), strict=False):
            if side % halved:
                raise ValueError(
                    f"The image {what} must be a multiple of {halved}, because "
                    f"`channel_mult` has {len(channel_mult)} levels. "
                    f"Received: image_shape={image_shape!r}"
                )
        received = f"model_channels={model_channels!r}, channel_mult={channel_mult!r}"
        for channels in _block_channels(model_channels, channel_mult, num_blocks):
            check_channels("Every block", channels, received)
        super().__init__(autocast=False, **kwargs)
        self.image_shape = tuple(map(int, image_shape))
        self.model_channels = int(model_channels)
        self.channel_mult = tuple(int(multiple) for multiple in channel_mult)
        self.num_blocks = int(num_blocks)
        self.attention_resolutions = tuple(int(side) for side in attention_resolutions)
        self.embedding_type = embedding_type
        self.encoder_type = encoder_type
        self.decoder_type = decoder_type
        self.resample_filter = tuple(resample_filter)
        self.channel_mult_noise = int(channel_mult_noise)
        self.channel_mult_embedding = int(channel_mult_embedding)
        self.fourier_scale = fourier_scale
        self.num_classes = int(num_classes)
        self.augmentation_dim = int(augmentation_dim)
        self.label_dropout = label_dropout
        self.dropout = dropout
        self.seed = int(seed)
        self.output_dtype = "float64" if self.compute_dtype == "float64" else "float32"
        self._make_embedding()
        self._make_encoder()
        self._make_decoder()

    @classmethod
    def from_preset(
        cls,
        preset: str,
        image_shape: tuple[int, int, int] = (32, 32, 3),
        load_weights: bool = False,
        **overrides,
    ) -> "UNet":
        """Makes a network of the CIFAR-10 experiments, with new weights.

        Args:
            preset: "ddpmpp_cifar10" or "ncsnpp_cifar10". The latter expects times that
                are not scaled: `IMM(..., time_scale=1.0)`.
            image_shape: Three positive integers: height, width and channels.
            load_weights: False, against the custom of presets: a size has no weights.
                Trained models are what `keras_imm.FlowMapModel.from_preset` makes.
            **overrides: Other constructor arguments, such as `num_classes`; they win
                over those of the preset.

        Returns:
            A `UNet`.

        Raises:
            ValueError: If the preset is unknown, where the message lists the known
                ones, or its weights are asked for.

        Example:

        ```python
        backbone = keras_imm.backbones.UNet.from_preset("ddpmpp_cifar10")
        ```
        """
        check_choice("preset", preset, tuple(PRESETS))
        check_no_weights(load_weights, preset)
        return cls(image_shape=image_shape, **{**PRESETS[preset], **overrides})

    # -- Parts

    def _make_embedding(self) -> None:
        policy = self.dtype_policy
        features = self.model_channels * self.channel_mult_noise
        width = self.model_channels * self.channel_mult_embedding

        def dense(name, units, **kwargs):
            return keras.layers.Dense(units, dtype=policy, name=name, **kwargs)

        self.t_features = self._time_features(features, "t_features", 0)
        self.s_features = self._time_features(features, "s_features", 1)
        self.t_hidden = dense("t_hidden", width, activation="silu")
        self.s_hidden = dense("s_hidden", width, activation="silu")
        self.t_output = dense("t_output", width)
        self.s_output = dense("s_output", width)
        self.label_dense = self.augmentation_dense = None
        if self.num_classes > 0:
            self.label_dense = dense("label_dense", features)
        if self.augmentation_dim > 0:
            self.augmentation_dense = dense(
                "augmentation_dense", features, use_bias=False
            )
        self.label_generator = None
        if self.num_classes > 0 and self.label_dropout > 0:
            self.label_generator = keras.random.SeedGenerator(mix_seeds(self.seed, 2))

    def _time_features(self, features: int, name: str, index: int):
        policy = self.dtype_policy
        if self.embedding_type == "positional":
            return PositionalEmbedding(features, dtype=policy, name=name)
        seed = mix_seeds(self.seed, index)
        return FourierEmbedding(
            features, scale=self.fourier_scale, seed=seed, dtype=policy, name=name
        )

    def _block(self, name: str, multiple: int, **kwargs) -> UNetBlock:
        return UNetBlock(
            multiple * self.model_channels,
            resample_filter=self.resample_filter,
            dropout=self.dropout,
            # Names differ, so the masks of two blocks do.
            seed=mix_seeds(self.seed, 3, *name.encode()),
            dtype=self.dtype_policy,
            name=name,
            **kwargs,
        )

    def _make_encoder(self) -> None:
        """Layers in the order of the pass; names give the image height they see."""
        policy = self.dtype_policy
        side = self.image_shape[0]
        self.input_conv = convolution(
            self.model_channels, 3, policy, f"encoder_{side}x{side}_conv"
        )
        self.encoder_blocks = []
        self.auxiliary_convs = []
        previous = 1
        for level, multiple in enumerate(self.channel_mult):
            if level > 0:
                side //= 2
                name = f"encoder_{side}x{side}"
                self.encoder_blocks.append(
                    self._block(f"{name}_down", previous, resample="down")
                )
                filters = previous * self.model_channels
                if self.encoder_type == "skip":
                    self.auxiliary_convs.append(
                        convolution(filters, 1, policy, f"{name}_aux_skip")
                    )
                elif self.encoder_type == "residual":
                    conv = convolution(
                        filters, 3, policy, f"{name}_aux_residual", padding="valid"
                    )
                    self.auxiliary_convs.append(conv)
            for index in range(self.num_blocks):
                self.encoder_blocks.append(
                    self._block(
                        f"encoder_{side}x{side}_block{index}",
                        multiple,
                        attention=side in self.attention_resolutions,
                    )
                )
            previous = multiple

    def _make_decoder(self) -> None:
        policy = self.dtype_policy
        side = self.image_shape[0] // 2 ** (len(self.channel_mult) - 1)
        previous = self.channel_mult[-1]
        self.decoder_blocks = []
        takes_skip = []  # whether a block is given features of the encoder
        self.image_norms = []
        self.image_convs = []
        for level, multiple in reversed(list(enumerate(self.channel_mult))):
            name = f"decoder_{side}x{side}"
            if level == len(self.channel_mult) - 1:
                self.decoder_blocks += [
                    self._block(f"{name}_in0", previous, attention=True),
                    self._block(f"{name}_in1", previous),
                ]
                takes_skip += [False, False]
            else:
                self.decoder_blocks.append(
                    self._block(f"{name}_up", previous, resample="up")
                )
                takes_skip.append(False)
            for index in range(self.num_blocks + 1):
                is_last = index == self.num_blocks
                attends = is_last and side in self.attention_resolutions
                self.decoder_blocks.append(
                    self._block(
                        f"{name}_block{index}",
                        multiple,
                        attention=attends,
                    )
                )
                takes_skip.append(True)
            if self.decoder_type == "skip" or level == 0:
                channels = multiple * self.model_channels
                self.image_norms.append(
                    group_norm(channels, policy, f"{name}_aux_norm")
                )
                self.image_convs.append(
                    convolution(
                        self.image_shape[-1],
                        3,
                        policy,
                        f"{name}_aux_conv",
                        scale=1e-10,
                    )
                )
            previous = multiple
            side *= 2
        self.takes_skip = tuple(takes_skip)

    # -- Passes

    def build(self, input_shape=None) -> None:
        """Builds every layer, along the shapes of the pass."""
        if self.built:
            return
        with initial_values_together():
            self._build_layers()

    def _build_layers(self) -> None:
        features = self.model_channels * self.channel_mult_noise
        width = self.model_channels * self.channel_mult_embedding
        for layer in (self.t_features, self.s_features):
            layer.build((None,))
        for layer in (self.t_hidden, self.s_hidden):
            layer.build((None, features))
        for layer in (self.t_output, self.s_output):
            layer.build((None, width))
        if self.label_dense is not None:
            self.label_dense.build((None, self.num_classes))
        if self.augmentation_dense is not None:
            self.augmentation_dense.build((None, self.augmentation_dim))

        image = (None, *self.image_shape)
        self.input_conv.build(image)
        shape = self.input_conv.compute_output_shape(image)
        skips = [shape]
        convs = iter(self.auxiliary_convs)
        for block in self.encoder_blocks:
            block.build(shape, (None, width))
            shape = block.compute_output_shape(shape, (None, width))
            if block.resample == "down" and self.encoder_type == "skip":
                next(convs).build((*shape[:3], image[-1]))
            elif block.resample == "down" and self.encoder_type == "residual":
                border = len(self.resample_filter)
                padded = [None, image[1] + border, image[2] + border, image[3]]
                next(convs).build(padded)
                image = shape
            skips.append(shape)
        norms, convs = iter(self.image_norms), iter(self.image_convs)
        for block, takes_skip in zip(self.decoder_blocks, self.takes_skip, strict=True):
            if block.resample == "up" and self.decoder_type == "skip":
                next(norms).build(shape)
                next(convs).build(shape)
            if takes_skip:
                shape = (*shape[:3], shape[-1] + skips.pop()[-1])
            block.build(shape, (None, width))
            shape = block.compute_output_shape(shape, (None, width))
        next(norms).build(shape)
        next(convs).build(shape)

    def call(self, inputs, training=None) -> Any:
        x, c_t, c_s, labels, augmentation_labels = self.split_inputs(inputs)
        embedding = self.embed(c_t, c_s, labels, augmentation_labels, training)
        h, skips = self.encode(ops.cast(x, self.compute_dtype), embedding, training)
        g = self.decode(h, skips, embedding, training)
        return ops.cast(g, self.output_dtype)

    def split_inputs(self, inputs) -> Inputs:
        """Names the inputs, after checking them."""
        return split_inputs(
            inputs, self.image_shape, self.num_classes, self.augmentation_dim
        )

    def embed(self, c_t, c_s, labels, augmentation_labels, training) -> Any:
        """The embedding of times and labels, `(batch, embedding width)`."""
        features = self.t_features(c_t)
        if self.label_dense is not None:
            one_hot = self.one_hot(labels) * self.num_classes**0.5
            if self.label_generator is not None and training:
                one_hot = one_hot * self.label_mask(one_hot)
            features = features + ops.cast(self.label_dense(one_hot), features.dtype)
        if self.augmentation_dense is not None and augmentation_labels is not None:
            embedded = self.augmentation_dense(augmentation_labels)
            features = features + ops.cast(embedded, features.dtype)
        t = self.t_output(self.t_hidden(features))
        s = self.s_output(self.s_hidden(self.s_features(c_s)))
        return ops.silu(t + s)

    def one_hot(self, labels) -> Any:
        """Rows of the unit matrix, `(batch, num_classes)`; zeros for the null label.

        A comparison, because torch cannot trace the `ops.one_hot` of Keras.
        """
        labels = ops.expand_dims(ops.cast(labels, "int32"), -1)
        classes = ops.arange(self.num_classes, dtype="int32")
        return ops.cast(ops.equal(labels, classes), self.output_dtype)

    def label_mask(self, one_hot) -> Any:
        """Zero, with probability `label_dropout`, else one: `(batch, 1)`."""
        shape = (ops.shape(one_hot)[0], 1)
        uniform = keras.random.uniform(shape, seed=self.label_generator)
        return ops.cast(uniform >= self.label_dropout, one_hot.dtype)

    def encode(self, x, embedding, training) -> tuple:
        """The last features and those that the decoder will take, in order."""
        h = self.input_conv(x)
        skips, image = [h], x
        convs = iter(self.auxiliary_convs)
        for block in self.encoder_blocks:
            h = block(h, embedding, training=training)
            if block.resample == "down" and self.encoder_type == "skip":
                image = downsample(image, self.resample_filter)
                h = h + next(convs)(image)
            elif block.resample == "down" and self.encoder_type == "residual":
                h = image = (h + self.strided(image, next(convs))) * SKIP_SCALE
            skips.append(h)
        return h, skips

    def strided(self, x, conv) -> Any:
        """A convolution and halving as one filter: the border is padded once."""
        pad = len(self.resample_filter) // 2
        x = ops.pad(x, [(0, 0), (pad, pad), (pad, pad), (0, 0)])
        return decimate(conv(x), self.resample_filter)

    def decode(self, h, skips, embedding, training) -> Any:
        """G, from what `encode` returned; `skips` is emptied."""
        norms, convs = iter(self.image_norms), iter(self.image_convs)
        image = 0
        for block, takes_skip in zip(self.decoder_blocks, self.takes_skip, strict=True):
            if block.resample == "up" and self.decoder_type == "skip":
                image = image + next(convs)(ops.silu(next(norms)(h)))
                image = upsample(image, self.resample_filter)
            if takes_skip:
                h = ops.concatenate([h, skips.pop()], axis=-1)
            h = block(h, embedding, training=training)
        return image + next(convs)(ops.silu(next(norms)(h)))

    def compute_output_spec(self, inputs, training=None) -> keras.KerasTensor:
        x = self.split_inputs(inputs).x
        return keras.KerasTensor(x.shape, dtype=self.output_dtype)

    def published_weights(self) -> Iterator[published.PublishedWeight]:
        """The arrays of a published network, and the variables that they belong to."""
        for suffix, features, hidden, output in (
            ("", self.t_features, self.t_hidden, self.t_output),
            ("_s", self.s_features, self.s_hidden, self.s_output),
        ):
            if self.embedding_type == "fourier":
                yield published.frequencies(
                    f"map_noise{suffix}.freqs", features.frequencies
                )
            yield from published.linear(f"map_layer0{suffix}", hidden)
            yield from published.linear(f"map_layer1{suffix}", output)
        if self.label_dense is not None:
            yield from published.linear("map_label", self.label_dense)
        if self.augmentation_dense is not None:
            yield from published.linear("map_augment", self.augmentation_dense)
        for conv in (self.input_conv, *self.auxiliary_convs):
            yield from published.convolution(_published_name(conv), conv)
        for block in (*self.encoder_blocks, *self.decoder_blocks):
            yield from _published_block(_published_name(block), block)
        for norm, conv in zip(self.image_norms, self.image_convs, strict=True):
            yield from published.norm(_published_name(norm), norm)
            yield from published.convolution(_published_name(conv), conv)

    def published_tables(self) -> Iterator[published.FixedTable]:
        """Buffers of the published convolutions that resample."""
        taps = np.asarray(self.resample_filter) / sum(self.resample_filter)
        values = np.outer(taps, taps)[None, None]
        for block in (*self.encoder_blocks, *self.decoder_blocks):
            if block.resample is not None:
                yield published.FixedTable(
                    f"{_published_name(block)}.conv0.resample_filter", values
                )
                yield published.FixedTable(
                    f"{_published_name(block)}.skip.resample_filter", values
                )
        if self.encoder_type == "residual":
            for conv in self.auxiliary_convs:
                yield published.FixedTable(
                    f"{_published_name(conv)}.resample_filter", values
                )
        elif self.encoder_type == "skip":
            for conv in self.auxiliary_convs:
                name = _published_name(conv).replace("aux_skip", "aux_down")
                yield published.FixedTable(f"{name}.resample_filter", values)
        if self.decoder_type == "skip":
            for norm in self.image_norms[1:]:
                name = _published_name(norm).replace("aux_norm", "aux_up")
                yield published.FixedTable(f"{name}.resample_filter", values)

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        config.update(
            image_shape=self.image_shape,
            model_channels=self.model_channels,
            channel_mult=self.channel_mult,
            num_blocks=self.num_blocks,
            attention_resolutions=self.attention_resolutions,
            embedding_type=self.embedding_type,
            encoder_type=self.encoder_type,
            decoder_type=self.decoder_type,
            resample_filter=self.resample_filter,
            channel_mult_noise=self.channel_mult_noise,
            channel_mult_embedding=self.channel_mult_embedding,
            fourier_scale=self.fourier_scale,
            num_classes=self.num_classes,
            augmentation_dim=self.augmentation_dim,
            label_dropout=self.label_dropout,
            dropout=self.dropout,
            seed=self.seed,
        )
        return config


def _block_channels(model_channels, channel_mult, num_blocks) -> list[int]:
    """All numbers of channels that blocks take or give."""
    widths = [multiple * model_channels for multiple in channel_mult]
    skips = [model_channels]
    for level, width in enumerate(widths):
        skips += widths[level - 1 : level] + num_blocks * [width]
    h, channels = widths[-1], [*skips]
    for width in reversed(widths):
        for _ in range(num_blocks + 1):
            channels.append(h + skips.pop())
            h = width
    return channels


def _check_integers(name: str, value, shortest: int) -> None:
    """Raises ValueError unless `value` is a list of positive integers."""
    is_list = isinstance(value, (tuple, list)) and len(value) >= shortest
    if not is_list or not all(
        isinstance(element, (int, np.integer))
        and not isinstance(element, bool)
        and element > 0
        for element in value
    ):
        raise ValueError(
            f"`{name}` must be a list of positive integers. Received: {name}={value!r}"
        )


def _published_name(layer: keras.layers.Layer) -> str:
    """Such as `enc.16x16_block0` for the layer `encoder_16x16_block0`."""
    part, name = layer.name.split("_", 1)
    return f"{part[:3]}.{name}"


def _published_block(
    name: str, block: UNetBlock
) -> Iterator[published.PublishedWeight]:
    yield from published.norm(f"{name}.norm0", block.input_norm)
    yield from published.convolution(f"{name}.conv0", block.input_conv)
    yield from published.linear(f"{name}.affine", block.embedding_dense)
    yield from published.norm(f"{name}.norm1", block.output_norm)
    yield from published.convolution(f"{name}.conv1", block.output_conv)
    if block.skip_conv is not None:
        yield from published.convolution(f"{name}.skip", block.skip_conv)
    if block.attention:
        attention = block.self_attention
        yield from published.norm(f"{name}.norm2", block.attention_norm)
        yield from published.interleaved_qkv(f"{name}.qkv", attention.qkv)
        yield from published.pointwise(f"{name}.proj", attention.projection)
