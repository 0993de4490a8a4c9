"""Random Fourier features of a time, as NCSN++ takes them."""

from typing import Any

import keras
import numpy as np

from keras_imm.layers.sinusoidal_features import SinusoidalFeatures
from keras_imm.validation import check_integer, check_positive_number


@keras.saving.register_keras_serializable(package="keras_imm")
class FourierEmbedding(SinusoidalFeatures):
    """Sines and cosines of a time over random frequencies that are not trained.

    `[sin(2 pi c f), cos(2 pi c f)]` with f drawn once from N(0, scale^2).

    Args:
        embedding_dim: Even integer of at least 4. Number of features.
        scale: Float above 0. Standard deviation of the frequencies. Defaults to 16.
        seed: Integer, at least 0, that the frequencies are drawn from. Defaults to 0.
        **kwargs: Other arguments of `keras.layers.Layer`, such as `name`, `dtype`.

    Call arguments:
        times: Float tensor of shape `(batch,)`, in [0, 1] (a `time_scale` of 1).

    Returns:
        A tensor of shape `(batch, embedding_dim)`, float32, or float64 under a float64
        policy.

    Raises:
        ValueError: If an argument is out of its range.

    Example:

    ```python
    layer = keras_imm.layers.FourierEmbedding(256)
    features = layer(np.array([0.994, 0.5], "float32"))  # (2, 256)
    ```

    Reference:
        - [Tancik et al., 2020](https://arxiv.org/abs/2006.10739)
        - [Song et al., 2021](https://arxiv.org/abs/2011.13456), NCSN++
    """

    def __init__(
        self, embedding_dim: int, scale: float = 16.0, seed: int = 0, **kwargs: Any
    ):
        check_positive_number("scale", scale)
        check_integer("seed", seed, at_least=0)
        super().__init__(embedding_dim, **kwargs)
        self.scale = scale
        self.seed = int(seed)

    def make_frequencies(self, half: int) -> np.ndarray:
        normal = np.random.default_rng(self.seed).standard_normal(half)
        return 2 * np.pi * self.scale * normal

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        config.update(scale=self.scale, seed=self.seed)
        return config
