"""Sines and cosines of a time, as DDPM++ takes them."""

from typing import Any

import keras
import numpy as np

from keras_imm.layers.sinusoidal_features import SinusoidalFeatures
from keras_imm.validation import check_positive_number


@keras.saving.register_keras_serializable(package="keras_imm")
class PositionalEmbedding(SinusoidalFeatures):
    """Sines and cosines of a time over a fixed geometric series of frequencies.

    `[sin(c f), cos(c f)]` with f_i = max_period ** (-i / (half - 1)), i = 0 ... half-1,
    where half is `embedding_dim / 2`: both ends of the range are reached.

    Args:
        embedding_dim: Even integer of at least 4. Number of features.
        max_period: Float above 0. Inverse of the lowest frequency. Defaults to 10000.
        **kwargs: Other arguments of `keras.layers.Layer`, such as `name`, `dtype`.

    Call arguments:
        times: Float tensor of shape `(batch,)`, already scaled (0 to 1000).

    Returns:
        A tensor of shape `(batch, embedding_dim)`, float32, or float64 under a float64
        policy: float16 cannot tell 994 from 994.4.

    Raises:
        ValueError: If an argument is out of its range.

    Example:

    ```python
    layer = keras_imm.layers.PositionalEmbedding(128)
    features = layer(np.array([994.0, 500.0], "float32"))  # (2, 128)
    ```

    Reference:
        - [Song et al., 2021](https://arxiv.org/abs/2011.13456), DDPM++
        - [Karras et al., 2022](https://arxiv.org/abs/2206.00364), Table 7
    """

    def __init__(self, embedding_dim: int, max_period: float = 10000.0, **kwargs: Any):
        check_positive_number("max_period", max_period)
        super().__init__(embedding_dim, **kwargs)
        self.max_period = max_period

    def make_frequencies(self, half: int) -> np.ndarray:
        return self.max_period ** (-np.arange(half) / (half - 1))

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        config.update(max_period=self.max_period)
        return config
