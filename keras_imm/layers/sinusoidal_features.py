"""What the two embeddings of a time in the U-Net share."""

from typing import Any

import keras
import numpy as np
from keras import ops

from keras_imm.validation import check_integer


class SinusoidalFeatures(keras.layers.Layer):
    """`[sin(c f), cos(c f)]` of times c; a subclass says what the frequencies f are.

    Args:
        embedding_dim: Even integer of at least 4. Number of features.
        **kwargs: Other arguments of `keras.layers.Layer`, such as `name`, `dtype`.
    """

    def __init__(self, embedding_dim: int, **kwargs: Any):
        check_integer("embedding_dim", embedding_dim, at_least=4)
        if embedding_dim % 2 != 0:
            raise ValueError(
                "`embedding_dim` must be even (half sines, half cosines). "
                f"Received: embedding_dim={embedding_dim}"
            )
        super().__init__(autocast=False, **kwargs)
        self.embedding_dim = int(embedding_dim)
        self.time_dtype = "float64" if self.compute_dtype == "float64" else "float32"

    def make_frequencies(self, half: int) -> np.ndarray:
        """Angular frequencies, float64 of shape `(half,)`."""
        raise NotImplementedError

    def build(self, times_shape: Any) -> None:
        # A variable, so that it lives on the device and is saved.
        frequencies = self.make_frequencies(self.embedding_dim // 2)
        self.frequencies = self.add_weight(
            shape=frequencies.shape,
            initializer=lambda shape, dtype: ops.convert_to_tensor(frequencies, dtype),
            dtype=self.time_dtype,
            trainable=False,
            autocast=False,
            name="frequencies",
        )

    def call(self, times: Any) -> Any:
        times = ops.expand_dims(ops.cast(times, self.time_dtype), -1)
        angles = times * self.frequencies
        return ops.concatenate([ops.sin(angles), ops.cos(angles)], axis=-1)

    def compute_output_shape(self, times_shape: Any) -> tuple:
        return (times_shape[0], self.embedding_dim)

    def compute_output_spec(self, times: Any) -> keras.KerasTensor:
        return keras.KerasTensor(
            self.compute_output_shape(times.shape), dtype=self.time_dtype
        )

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        config.update(embedding_dim=self.embedding_dim)
        return config
