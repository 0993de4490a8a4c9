"""Embedding of a scaled time."""

from typing import Any

import keras
import numpy as np
from keras import ops

from keras_imm.validation import check_integer, check_positive_number


def sinusoidal_frequencies(count: int, max_period: float) -> np.ndarray:
    """Angular frequencies `max_period ** (-i / count)` for i = 0 ... count - 1.

    Args:
        count: Integer. Number of frequencies.
        max_period: Float. The lowest frequency is a little above `1 / max_period`.

    Returns:
        A float64 array of shape `(count,)`.
    """
    return np.exp(-np.log(max_period) * np.arange(count) / count)


@keras.saving.register_keras_serializable(package="keras_imm")
class TimestepEmbedding(keras.layers.Layer):
    """Sinusoidal features of a time, followed by a two-layer perceptron.

    The features are `[cos(c f), sin(c f)]` over `frequency_dim / 2` geometrically
    spaced frequencies `f`; then Dense, SiLU, Dense. Times and features are kept in
    float32 (float64 under a float64 policy) whatever the dtype policy: float16
    cannot tell 994 from 994.4.

    Args:
        hidden_size: Integer. Width of both Dense layers and of the output.
        frequency_dim: Even integer. Number of sinusoidal features. Defaults to 256.
        max_period: Float above 0. Sets the lowest frequency. Defaults to 10000.
        **kwargs: Other arguments of `keras.layers.Layer`, such as `name`, `dtype`.

    Call arguments:
        times: Float tensor of shape `(batch,)`, already scaled (0 to 1000 for the
            published DiT).

    Returns:
        A tensor of shape `(batch, hidden_size)` in the compute dtype.

    Raises:
        ValueError: If an argument is out of its range.

    Example:

    ```python
    layer = keras_imm.layers.TimestepEmbedding(hidden_size=64)
    embedding = layer(np.array([994.0, 500.0], "float32"))  # (2, 64)
    ```

    Reference:
        - [Peebles & Xie, 2023](https://arxiv.org/abs/2212.09748), Section 3.2
    """

    def __init__(
        self,
        hidden_size: int,
        frequency_dim: int = 256,
        max_period: float = 10000.0,
        **kwargs,
    ):
        check_integer("hidden_size", hidden_size, at_least=1)
        check_integer("frequency_dim", frequency_dim, at_least=1)
        if frequency_dim % 2 != 0:
            raise ValueError(
                "`frequency_dim` must be even (half cosines, half sines). "
                f"Received: frequency_dim={frequency_dim}"
            )
        check_positive_number("max_period", max_period)
        super().__init__(autocast=False, **kwargs)
        self.hidden_size = int(hidden_size)
        self.frequency_dim = int(frequency_dim)
        self.max_period = max_period
        self.time_dtype = "float64" if self.compute_dtype == "float64" else "float32"
        self.hidden_dense = keras.layers.Dense(
            self.hidden_size,
            activation="silu",
            kernel_initializer=keras.initializers.RandomNormal(stddev=0.02),
            dtype=self.dtype_policy,
            name="hidden_dense",
        )
        self.output_dense = keras.layers.Dense(
            self.hidden_size,
            kernel_initializer=keras.initializers.RandomNormal(stddev=0.02),
            dtype=self.dtype_policy,
            name="output_dense",
        )

    def build(self, times_shape) -> None:
        frequencies = sinusoidal_frequencies(self.frequency_dim // 2, self.max_period)
        # A variable, so that it lives on the device; a constant would be copied
        # there at every eager call.
        self.frequencies = self.add_weight(
            shape=frequencies.shape,
            initializer=lambda shape, dtype: ops.convert_to_tensor(frequencies, dtype),
            dtype=self.time_dtype,
            trainable=False,
            autocast=False,
            name="frequencies",
        )
        self.hidden_dense.build((None, self.frequency_dim))
        self.output_dense.build((None, self.hidden_size))

    def call(self, times) -> Any:
        times = ops.expand_dims(ops.cast(times, self.time_dtype), -1)
        angles = times * self.frequencies
        features = ops.concatenate([ops.cos(angles), ops.sin(angles)], axis=-1)
        return self.output_dense(self.hidden_dense(features))

    def compute_output_shape(self, times_shape) -> tuple:
        return (times_shape[0], self.hidden_size)

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        config.update(
            hidden_size=self.hidden_size,
            frequency_dim=self.frequency_dim,
            max_period=self.max_period,
        )
        return config
