"""The block of the diffusion transformer."""

import functools
from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from keras_imm.backend import keras_private, optimization_barrier
from keras_imm.backend.random_streams import mix_seeds
from keras_imm.layers.self_attention import SelfAttention
from keras_imm.validation import (
    check_boolean,
    check_integer,
    check_positive_number,
    check_rate,
)


@keras.saving.register_keras_serializable(package="keras_imm")
class DiTBlock(keras.layers.Layer):
    """Transformer block with adaptive layer normalization (adaLN-Zero).

    With modulations `(shift, scale, gate)` for attention and for the perceptron, all
    six from one Dense layer on the conditioning vector:

        h = h + gate_1 * attention((1 + scale_1) * norm(h) + shift_1)
        h = h + gate_2 * mlp((1 + scale_2) * norm(h) + shift_2)

    The Dense layer starts at zero, so a new block is the identity.

    Args:
        num_heads: Integer; divides the width of the tokens.
        mlp_ratio: Float above 0. Width of the perceptron's hidden layer over that of
            the tokens. Defaults to 4.
        qk_norm: Boolean. Whether queries and keys are normalized. Defaults to False.
        dropout: Float in [0, 1). Dropout rate after the attention projection and
            after both layers of the perceptron. Defaults to 0.
        seed: Integer, at least 0. Seed of the dropout masks. Defaults to 0.
        **kwargs: Other arguments of `keras.layers.Layer`, such as `name`, `dtype`.

    Call arguments:
        tokens: Tensor of shape `(batch, tokens, hidden_size)`.
        conditioning: Tensor of shape `(batch, 1, hidden_size)`: the conditioning
            vector after its SiLU, which is the same for all blocks.
        training: Boolean. Whether dropout is active.

    Returns:
        A tensor of the shape of `tokens` in the compute dtype.

    Raises:
        ValueError: If an argument is out of its range.

    Example:

    ```python
    block = keras_imm.layers.DiTBlock(num_heads=4)
    tokens = np.zeros((1, 16, 64), "float32")
    conditioning = np.zeros((1, 1, 64), "float32")
    tokens = block(tokens, conditioning)
    ```

    Reference:
        - [Peebles & Xie, 2023](https://arxiv.org/abs/2212.09748), Section 3.2
    """

    def __init__(
        self,
        num_heads: int,
        mlp_ratio: float = 4.0,
        qk_norm: bool = False,
        dropout: float = 0.0,
        seed: int = 0,
        **kwargs,
    ):
        check_integer("num_heads", num_heads, at_least=1)
        check_positive_number("mlp_ratio", mlp_ratio)
        check_boolean("qk_norm", qk_norm)
        check_rate("dropout", dropout)
        check_integer("seed", seed, at_least=0)
        super().__init__(**kwargs)
        self.num_heads = num_heads
        self.mlp_ratio = mlp_ratio
        self.qk_norm = qk_norm
        self.dropout = dropout
        self.seed = seed

    def build(self, tokens_shape, conditioning_shape) -> None:
        hidden_size = tokens_shape[-1]
        mlp_size = int(hidden_size * self.mlp_ratio)

        self.modulation = keras.layers.Dense(
            6 * hidden_size,
            kernel_initializer="zeros",
            dtype=self.dtype_policy,
            name="modulation",
        )
        self.modulation.build(conditioning_shape)
        self.attention = SelfAttention(
            self.num_heads,
            qk_norm=self.qk_norm,
            dtype=self.dtype_policy,
            name="attention",
        )
        self.attention.build(tokens_shape)
        self.mlp_hidden = keras.layers.Dense(
            mlp_size, dtype=self.dtype_policy, name="mlp_hidden"
        )
        self.mlp_hidden.build(tokens_shape)
        self.mlp_output = keras.layers.Dense(
            hidden_size, dtype=self.dtype_policy, name="mlp_output"
        )
        self.mlp_output.build((*tokens_shape[:-1], mlp_size))
        if self.dropout > 0:
            self.attention_dropout, self.hidden_dropout, self.output_dropout = (
                keras.layers.Dropout(
                    self.dropout,
                    seed=mix_seeds(self.seed, index),
                    dtype=self.dtype_policy,
                    name=name,
                )
                for index, name in enumerate(
                    ("attention_dropout", "hidden_dropout", "output_dropout")
                )
            )

    def call(self, tokens, conditioning, training=None, recompute=False) -> Any:
        def part(function, *dropouts):
            return self._recomputed(function, dropouts) if recompute else function

        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = ops.split(
            self.modulation(conditioning), 6, axis=-1
        )
        qkv = part(self.project_attention)(tokens, shift_1, scale_1)
        attended = self.attention.attend(qkv)
        if self.dropout > 0:
            attended = self.attention_dropout(attended, training=training)
        tokens = tokens + gate_1 * attended
        hidden = part(self.project_mlp)(tokens, shift_2, scale_2)
        mlp = functools.partial(self.mlp, training=training)
        dropouts = [self.hidden_dropout] if self.dropout > 0 else []
        output = part(mlp, *dropouts)(hidden)
        if self.dropout > 0:
            output = self.output_dropout(output, training=training)
        return tokens + gate_2 * output

    def project_attention(self, tokens, shift, scale) -> Any:
        """Queries, keys and values of normalized tokens."""
        return self.attention.project(modulated(tokens, shift, scale))

    def project_mlp(self, tokens, shift, scale) -> Any:
        """The perceptron's first product of normalized tokens."""
        return self.mlp_hidden(modulated(tokens, shift, scale))

    def mlp(self, hidden, training) -> Any:
        """The rest of the perceptron."""
        hidden = ops.gelu(hidden, approximate=True)
        if self.dropout > 0:
            hidden = self.hidden_dropout(hidden, training=training)
        return self.mlp_output(hidden)

    def rematerialized(self, tokens, conditioning) -> Any:
        """Calls the block for training and keeps no activations.

        The backward pass computes them again from the inputs.

        Args:
            tokens: As in a call.
            conditioning: As in a call.

        Returns:
            What `block(tokens, conditioning, training=True)` returns.
        """
        dropouts = ()
        if self.dropout > 0:
            dropouts = (
                self.attention_dropout,
                self.hidden_dropout,
                self.output_dropout,
            )

        def call(tokens, conditioning):
            return self(tokens, conditioning, training=True)

        return self._recomputed(call, dropouts)(tokens, conditioning)

    def _recomputed(self, function, dropouts=()) -> Callable:
        """A function of tensors, computed again for the backward pass."""
        # TensorFlow's recomputation gives gradients to variables, not to what they are
        # cast to in half precision: they are taken as they are, and cast in the call.
        with keras_private.without_autocast():
            values = [(v, v.value) for v in self.variables]
        # Seeds are drawn here, once: the second run draws the same masks from them.
        values += [
            (layer.seed_generator.state, layer.seed_generator.next())
            for layer in dropouts
        ]

        def call(*tensors):
            with keras.StatelessScope(state_mapping=values):
                return function(*tensors)

        # TensorFlow's recomputation takes no keyword arguments in graphs.
        return keras.remat(call)

    def compute_output_shape(self, tokens_shape, conditioning_shape) -> tuple:
        return tokens_shape

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        config.update(
            num_heads=self.num_heads,
            mlp_ratio=self.mlp_ratio,
            qk_norm=self.qk_norm,
            dropout=self.dropout,
            seed=self.seed,
        )
        return config


def modulated(tokens: Any, shift: Any, scale: Any) -> Any:
    """Normalized tokens, scaled and shifted."""
    normed = ops.layer_normalization(optimization_barrier(tokens), epsilon=1e-6)
    return (1 + scale) * normed + shift
