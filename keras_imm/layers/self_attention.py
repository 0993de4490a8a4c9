"""Multi-head self-attention."""

from typing import Any

import keras
from keras import ops

from keras_imm.backend import dot_product_attention
from keras_imm.layers.validation import check_divides
from keras_imm.validation import (
    check_boolean,
    check_integer,
)


@keras.saving.register_keras_serializable(package="keras_imm")
class SelfAttention(keras.layers.Layer):
    """Multi-head self-attention with one projection for queries, keys and values.

    The channels of that projection are ordered (query, key or value; head; channel
    in head), so that its Xavier bounds are those of the published DiT, which differ
    from those of three separate projections.

    Args:
        num_heads: Integer; divides the width of the tokens.
        qk_norm: Boolean. Whether queries and keys pass through a layer normalization
            over the channels of a head, with scale and shift. Defaults to False.
        qkv_initializer: Initializer of the weights of the projection to queries, keys
            and values. Defaults to "glorot_uniform".
        projection_initializer: Initializer of the weights of the output projection.
            Defaults to "glorot_uniform".
        **kwargs: Other arguments of `keras.layers.Layer`, such as `name`, `dtype`.

    Call arguments:
        tokens: Tensor of shape `(batch, tokens, hidden_size)`.

    Returns:
        A tensor of the same shape in the compute dtype.

    Raises:
        ValueError: If an argument is out of its range, or if the heads do not divide
            the width of the tokens the layer is built on.

    Example:

    ```python
    layer = keras_imm.layers.SelfAttention(num_heads=4)
    tokens = layer(np.zeros((1, 16, 64), "float32"))
    ```

    Reference:
        - [Vaswani et al., 2017](https://arxiv.org/abs/1706.03762)
        - [Dehghani et al., 2023](https://arxiv.org/abs/2302.05442), for `qk_norm`
    """

    def __init__(
        self,
        num_heads: int,
        qk_norm: bool = False,
        qkv_initializer: Any = "glorot_uniform",
        projection_initializer: Any = "glorot_uniform",
        **kwargs,
    ):
        check_integer("num_heads", num_heads, at_least=1)
        check_boolean("qk_norm", qk_norm)
        super().__init__(**kwargs)
        self.num_heads = num_heads
        self.qk_norm = qk_norm
        self.qkv_initializer = _initializer("qkv_initializer", qkv_initializer)
        self.projection_initializer = _initializer(
            "projection_initializer", projection_initializer
        )

    def build(self, tokens_shape) -> None:
        hidden_size = tokens_shape[-1]
        check_divides(
            "num_heads", self.num_heads, "the width of the tokens", hidden_size
        )
        tokens, head_dim = tokens_shape[1], hidden_size // self.num_heads
        self.heads_shape = (-1, tokens, 3, self.num_heads, head_dim)
        self.merged_shape = (-1, tokens, hidden_size)

        self.qkv = keras.layers.Dense(
            3 * hidden_size,
            kernel_initializer=self.qkv_initializer,
            dtype=self.dtype_policy,
            name="qkv",
        )
        self.qkv.build(tokens_shape)
        if self.qk_norm:
            self.query_norm = keras.layers.LayerNormalization(
                epsilon=1e-5, dtype=self.dtype_policy, name="query_norm"
            )
            self.key_norm = keras.layers.LayerNormalization(
                epsilon=1e-5, dtype=self.dtype_policy, name="key_norm"
            )
            self.query_norm.build((None, tokens, self.num_heads, head_dim))
            self.key_norm.build((None, tokens, self.num_heads, head_dim))
        self.projection = keras.layers.Dense(
            hidden_size,
            kernel_initializer=self.projection_initializer,
            dtype=self.dtype_policy,
            name="projection",
        )
        self.projection.build(tokens_shape)

    def call(self, tokens) -> Any:
        return self.attend(self.project(tokens))

    def project(self, tokens) -> Any:
        """Queries, keys and values, shape (batch, tokens, 3 hidden_size)."""
        return self.qkv(tokens)

    def attend(self, qkv) -> Any:
        """What `call` makes of them."""
        query, key, value = ops.unstack(ops.reshape(qkv, self.heads_shape), 3, axis=2)
        if self.qk_norm:
            query, key = self.query_norm(query), self.key_norm(key)
        attended = dot_product_attention(query, key, value)
        return self.projection(ops.reshape(attended, self.merged_shape))

    def compute_output_shape(self, tokens_shape) -> tuple:
        return tokens_shape

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        config.update(
            num_heads=self.num_heads,
            qk_norm=self.qk_norm,
            qkv_initializer=keras.initializers.serialize(self.qkv_initializer),
            projection_initializer=keras.initializers.serialize(
                self.projection_initializer
            ),
        )
        return config


def _initializer(name: str, given: Any) -> Any:
    """Keras's initializer; an error names the argument."""
    try:
        return keras.initializers.get(given)
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"`{name}` must be an initializer of Keras, or the name of one. "
            f"Received: {name}={given!r}"
        ) from error
