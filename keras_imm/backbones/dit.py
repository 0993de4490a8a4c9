"""Diffusion transformer."""

from collections.abc import Iterator
from typing import Any

import keras
from keras import ops

from keras_imm.backbones import published_weights as published
from keras_imm.backbones.inputs import split_inputs
from keras_imm.backend import initial_values_together
from keras_imm.backend.attention import may_recompute
from keras_imm.backend.random_streams import mix_seeds
from keras_imm.layers.dit_block import DiTBlock
from keras_imm.layers.final_layer import FinalLayer
from keras_imm.layers.patch_embedding import PatchEmbedding
from keras_imm.layers.sincos_position_embedding import SinCosPositionEmbedding
from keras_imm.layers.timestep_embedding import TimestepEmbedding
from keras_imm.layers.validation import (
    check_divides,
    check_image_shape,
    check_no_weights,
)
from keras_imm.validation import (
    check_boolean,
    check_choice,
    check_instance,
    check_integer,
    check_positive_number,
    check_rate,
)

# Peebles & Xie, Table 1; each size comes with patches of 2, 4 and 8.
SIZES = {
    "s": {"hidden_size": 384, "depth": 12, "num_heads": 6},
    "b": {"hidden_size": 768, "depth": 12, "num_heads": 12},
    "l": {"hidden_size": 1024, "depth": 24, "num_heads": 16},
    "xl": {"hidden_size": 1152, "depth": 28, "num_heads": 16},
}
PRESETS = {
    f"dit_{name}_{patch_size}": {**size, "patch_size": patch_size}
    for name, size in SIZES.items()
    for patch_size in (2, 4, 8)
}


@keras.saving.register_keras_serializable(package="keras_imm")
class DiT(keras.Model):
    """Diffusion transformer with two time inputs, the network G of the flow map.

    Patches of the image become tokens, a fixed sine-cosine table marks their places,
    and a stack of adaLN-Zero transformer blocks, conditioned on the sum of the
    embeddings of both times and of the label, turns them into G. A new network
    returns exactly zero.

    Args:
        image_shape: Three positive integers: height, width and channels. Height and
            width may differ. Defaults to (8, 8, 1).
        patch_size: Integer. Side of a patch in pixels; divides height and width.
            Defaults to 2.
        hidden_size: Integer, a multiple of 4. Width of the tokens. Defaults to 64.
        depth: Integer. Number of transformer blocks. Defaults to 3.
        num_heads: Integer. Number of attention heads; divides `hidden_size`.
            Defaults to 4.
        mlp_ratio: Float above 0. Width of a block's perceptron over `hidden_size`.
            Defaults to 4.
        num_classes: Integer. Number of labels; 0 makes the network unconditional.
            The null label, for dropped labels and guidance, is `num_classes`.
            Defaults to 0.
        qk_norm: Boolean. Whether queries and keys are normalized. Defaults to False.
        dropout: Float in [0, 1). Dropout rate inside the blocks. Defaults to 0.
        seed: Integer, at least 0. Seed of the dropout masks; initial weights follow
            `keras.utils.set_random_seed`. Defaults to 0.
        remat: Boolean or "products". What a training step keeps for the backward
            pass. False: all activations. True: only the inputs of the blocks; the rest
            is computed again, for far less memory and one more pass through the blocks.
            "products": the results of dense layers and of attention, 12 numbers per
            channel of a token instead of 20; norms, modulations and activations are
            computed again. Outputs, gradients and weights are the same, and nothing
            changes outside training. Under JAX on a CPU it needs
            `XLA_FLAGS=--xla_cpu_scheduler_type=CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED`
            in the environment to save memory. Defaults to False.
        **kwargs: Other arguments of `keras.Model`, such as `name` and `dtype`.

    Call arguments:
        inputs: List of three or four tensors.
            `x`: shape `(batch, *image_shape)`, float.
            `c_t`: shape `(batch,)`, float. The first time input, already scaled
            (1000 t for the published networks).
            `c_s`: shape `(batch,)`, float. The second time input, already scaled.
            `labels`: shape `(batch,)`, integers in [0, num_classes]; left out or None
            when unconditional.
        training: Boolean. Whether dropout is active.

    Returns:
        G: a tensor of the shape of `x`, float32 under every dtype policy but float64,
        where it is float64. Times are kept in that dtype up to their embedding.

    Raises:
        ValueError: If an argument is out of its range, if the patch does not divide
            the image or the heads the width, if `x` has another shape than
            `image_shape`, or if labels are given or missing against `num_classes`.

    Example:

    ```python
    backbone = keras_imm.backbones.DiT(image_shape=(8, 8, 1), num_classes=10)
    x = np.random.normal(size=(2, 8, 8, 1)).astype("float32")
    c_t, c_s = np.array([994.0, 500.0]), np.array([497.0, 0.0])
    g = backbone([x, c_t, c_s, np.array([3, 10])])  # (2, 8, 8, 1)
    ```

    Reference:
        - [Peebles & Xie, 2023](https://arxiv.org/abs/2212.09748)
        - [Zhou et al., 2025](https://arxiv.org/abs/2503.07565), Appendix I
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int] = (8, 8, 1),
        patch_size: int = 2,
        hidden_size: int = 64,
        depth: int = 3,
        num_heads: int = 4,
        mlp_ratio: float = 4.0,
        num_classes: int = 0,
        qk_norm: bool = False,
        dropout: float = 0.0,
        seed: int = 0,
        remat: bool | str = False,
        **kwargs,
    ):
        check_image_shape("image_shape", image_shape)
        check_integer("patch_size", patch_size, at_least=1)
        check_divides("patch_size", patch_size, "the image height", image_shape[0])
        check_divides("patch_size", patch_size, "the image width", image_shape[1])
        check_integer("hidden_size", hidden_size, at_least=1)
        if hidden_size % 4 != 0:
            raise ValueError(
                "`hidden_size` must be a multiple of 4 (sines and cosines of two "
                f"coordinates). Received: hidden_size={hidden_size}"
            )
        check_integer("depth", depth, at_least=1)
        check_integer("num_heads", num_heads, at_least=1)
        check_divides("num_heads", num_heads, "`hidden_size`", hidden_size)
        check_positive_number("mlp_ratio", mlp_ratio)
        if hidden_size * mlp_ratio < 1:
            raise ValueError(
                "`mlp_ratio` must be at least 1 / hidden_size, which is "
                f"{1 / hidden_size}. Received: mlp_ratio={mlp_ratio}"
            )
        check_integer("num_classes", num_classes, at_least=0)
        check_boolean("qk_norm", qk_norm)
        check_rate("dropout", dropout)
        check_integer("seed", seed, at_least=0)
        if not isinstance(remat, str) or remat != "products":
            check_boolean("remat", remat)
        # NumPy's integers, such as labels.max() + 1, are not what Keras's layers take.
        patch_size, hidden_size, depth, num_heads, num_classes = map(
            int, (patch_size, hidden_size, depth, num_heads, num_classes)
        )
        super().__init__(autocast=False, **kwargs)
        self.image_shape = tuple(map(int, image_shape))
        self.patch_size = patch_size
        self.hidden_size = hidden_size
        self.depth = depth
        self.num_heads = num_heads
        self.mlp_ratio = mlp_ratio
        self.num_classes = num_classes
        self.qk_norm = qk_norm
        self.dropout = dropout
        self.seed = seed
        self.remat = remat
        self.output_dtype = "float64" if self.compute_dtype == "float64" else "float32"

        policy = self.dtype_policy
        height, width, _ = self.image_shape
        self.grid_shape = (height // patch_size, width // patch_size)
        self.patch_embedding = PatchEmbedding(
            patch_size, hidden_size, dtype=policy, name="patch_embedding"
        )
        self.position_embedding = SinCosPositionEmbedding(
            self.grid_shape, dtype=policy, name="position_embedding"
        )
        self.t_embedding = TimestepEmbedding(
            hidden_size, dtype=policy, name="t_embedding"
        )
        self.s_embedding = TimestepEmbedding(
            hidden_size, dtype=policy, name="s_embedding"
        )
        self.label_embedding = None
        if num_classes > 0:
            self.label_embedding = keras.layers.Embedding(
                num_classes + 1,
                hidden_size,
                embeddings_initializer=keras.initializers.RandomNormal(stddev=0.02),
                dtype=policy,
                name="label_embedding",
            )
        self.blocks = [
            DiTBlock(
                num_heads,
                mlp_ratio=mlp_ratio,
                qk_norm=qk_norm,
                dropout=dropout,
                seed=mix_seeds(seed, index),
                dtype=policy,
                name=f"block_{index}",
            )
            for index in range(depth)
        ]
        self.final_layer = FinalLayer(
            self.image_shape, patch_size, dtype=policy, name="final_layer"
        )

    @classmethod
    def from_preset(
        cls,
        preset: str,
        image_shape: tuple[int, int, int],
        load_weights: bool = False,
        **overrides,
    ) -> "DiT":
        """Makes a network of a published size, with new weights.

        Args:
            preset: One of `dit_{s,b,l,xl}_{2,4,8}`: size, then patch.
            image_shape: Three positive integers: height, width and channels.
            load_weights: False, against the custom of presets: a size has no weights.
                Trained models are what `keras_imm.FlowMapModel.from_preset` makes.
            **overrides: Other constructor arguments, such as `num_classes`; they
                win over those of the preset.

        Returns:
            A `DiT`.

        Raises:
            ValueError: If the preset is unknown, where the message lists the known
                ones, or its weights are asked for.

        Example:

        ```python
        backbone = keras_imm.backbones.DiT.from_preset(
            "dit_xl_2", image_shape=(32, 32, 4), num_classes=1000
        )
        ```
        """
        check_choice("preset", preset, tuple(PRESETS))
        check_no_weights(load_weights, preset)
        return cls(image_shape=image_shape, **{**PRESETS[preset], **overrides})

    def build(self, input_shape=None) -> None:
        if self.built:
            return
        with initial_values_together():
            self._build_layers()

    def _build_layers(self) -> None:
        tokens_shape = (None, self.grid_shape[0] * self.grid_shape[1], self.hidden_size)
        conditioning_shape = (None, 1, self.hidden_size)
        self.patch_embedding.build((None, *self.image_shape))
        self.position_embedding.build(tokens_shape)
        self.t_embedding.build((None,))
        self.s_embedding.build((None,))
        if self.label_embedding is not None:
            self.label_embedding.build((None,))
        for block in self.blocks:
            block.build(tokens_shape, conditioning_shape)
        self.final_layer.build(tokens_shape, conditioning_shape)

    def call(self, inputs, training=None) -> Any:
        x, c_t, c_s, labels, _ = split_inputs(
            inputs, self.image_shape, self.num_classes
        )
        conditioning = self.t_embedding(c_t) + self.s_embedding(c_s)
        if self.label_embedding is not None:
            conditioning = conditioning + self.label_embedding(labels)
        conditioning = ops.expand_dims(ops.silu(conditioning), 1)

        tokens = self.position_embedding(self.patch_embedding(x))
        remat = self.remat if training and may_recompute() else False
        for block in self.blocks:
            if remat is True:
                tokens = block.rematerialized(tokens, conditioning)
            else:
                options = {"training": training, "recompute": remat == "products"}
                tokens = block(tokens, conditioning, **options)
        g = self.final_layer(tokens, conditioning)
        return ops.cast(g, self.output_dtype)

    def compute_output_spec(self, inputs, training=None) -> keras.KerasTensor:
        x = split_inputs(inputs, self.image_shape, self.num_classes).x
        return keras.KerasTensor(x.shape, dtype=self.output_dtype)

    @staticmethod
    def layout_map(
        device_mesh: keras.distribution.DeviceMesh, axis: str = "model"
    ) -> keras.distribution.LayoutMap:
        """Splits the weights, for `keras.distribution.ModelParallel` under JAX.

        Of each pair of dense layers the first is split by its outputs and the second
        by its inputs, so that what lies between them stays on its device. Modulations
        and the table of labels are split by their outputs. The averages of the weights
        and the rest of the optimizer's state follow the weights. What is small stays
        whole.

        Args:
            device_mesh: Mesh of devices, one of whose axes is `axis`. The size of that
                axis must divide the network's `hidden_size`.
            axis: Name of the mesh's axis over which the weights are split.

        Returns:
            `keras.distribution.LayoutMap`.

        Raises:
            ValueError: If `device_mesh` is no device mesh or has no such axis.

        Example:

        ```python
        mesh = keras.distribution.DeviceMesh((2, 4), ("batch", "model"))
        strategy = keras.distribution.ModelParallel(
            layout_map=keras_imm.backbones.DiT.layout_map(mesh), batch_dim_name="batch"
        )
        keras.distribution.set_distribution(strategy)
        model = keras_imm.recipes.build("imagenet256_dit_xl_2_stride")
        ```

        Reference:
            - [Shoeybi et al., 2019](https://arxiv.org/abs/1909.08053), Section 3
        """
        check_instance("device_mesh", device_mesh, keras.distribution.DeviceMesh)
        if axis not in device_mesh.axis_names:
            raise ValueError(
                f"`axis` must be one of {tuple(device_mesh.axis_names)}. "
                f"Received: axis={axis!r}"
            )
        layout_map = keras.distribution.LayoutMap(device_mesh)
        for layer in (
            r"block_\d+/attention/qkv",
            r"block_\d+/mlp_hidden",
            r"(block_\d+|final_layer)/modulation",
            r"[ts]_embedding/hidden_dense",
        ):
            layout_map[rf"(.*/)?{layer}/kernel"] = (None, axis)
            layout_map[rf"(.*/)?{layer}/bias"] = (axis,)
        for layer in (
            r"block_\d+/attention/projection",
            r"block_\d+/mlp_output",
            r"[ts]_embedding/output_dense",
        ):
            layout_map[rf"(.*/)?{layer}/kernel"] = (axis, None)
        layout_map[r"(.*/)?label_embedding/embeddings"] = (None, axis)
        return layout_map

    def published_weights(self) -> Iterator[published.PublishedWeight]:
        """The arrays of a published DiT, and the variables that they belong to."""
        yield from _patch_projection("x_embedder.proj", self)
        for name, embedding in (
            ("t_embedder", self.t_embedding),
            ("s_embedder", self.s_embedding),
        ):
            yield from published.linear(f"{name}.mlp.0", embedding.hidden_dense)
            yield from published.linear(f"{name}.mlp.2", embedding.output_dense)
        if self.label_embedding is not None:
            yield published.unchanged(
                "y_embedder.embedding_table.weight", self.label_embedding.embeddings
            )
        for index, block in enumerate(self.blocks):
            name = f"blocks.{index}"
            yield from published.linear(f"{name}.attn.qkv", block.attention.qkv)
            if self.qk_norm:
                yield from published.norm(
                    f"{name}.attn.q_norm", block.attention.query_norm
                )
                yield from published.norm(
                    f"{name}.attn.k_norm", block.attention.key_norm
                )
            yield from published.linear(f"{name}.attn.proj", block.attention.projection)
            yield from published.linear(f"{name}.mlp.fc1", block.mlp_hidden)
            yield from published.linear(f"{name}.mlp.fc2", block.mlp_output)
            yield from published.linear(f"{name}.adaLN_modulation.1", block.modulation)
        final_layer = self.final_layer
        yield from published.linear("final_layer.linear", final_layer.projection)
        yield from published.linear(
            "final_layer.adaLN_modulation.1", final_layer.modulation
        )

    def published_tables(self) -> Iterator[published.FixedTable]:
        """Arrays of a published DiT that are fixed."""
        table = ops.convert_to_numpy(self.position_embedding.table)[None]
        yield published.FixedTable("pos_embed", table, "sine-cosine table")

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        config.update(
            image_shape=self.image_shape,
            patch_size=self.patch_size,
            hidden_size=self.hidden_size,
            depth=self.depth,
            num_heads=self.num_heads,
            mlp_ratio=self.mlp_ratio,
            num_classes=self.num_classes,
            qk_norm=self.qk_norm,
            dropout=self.dropout,
            seed=self.seed,
            remat=self.remat,
        )
        return config


def _patch_projection(
    name: str, backbone: "DiT"
) -> Iterator[published.PublishedWeight]:
    """A convolution, (output, channel, row, column), as a matrix.

    The rows of ours are the flattened (row, column, channel).
    """
    dense = backbone.patch_embedding.projection
    patch, channels = backbone.patch_size, backbone.image_shape[-1]
    shape = (backbone.hidden_size, channels, patch, patch)
    yield published.PublishedWeight(
        f"{name}.weight",
        shape,
        dense.kernel,
        lambda value: value.transpose(2, 3, 1, 0).reshape(dense.kernel.shape),
    )
    yield published.unchanged(f"{name}.bias", dense.bias)
