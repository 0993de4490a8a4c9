"""The pushforward sampler."""

from typing import Any

import keras

from keras_imm.flow_map import Network
from keras_imm.samplers.sampler import Sampler


@keras.saving.register_keras_serializable(package="keras_imm.samplers")
class Pushforward(Sampler):
    """x <- f_{s,t}(x) along the grid.

    Reference:
        - [Zhou et al., 2025](https://arxiv.org/abs/2503.07565), Algorithm 4
    """

    def step(
        self, network: Network, x: Any, t: Any, s: Any, index: Any, noise: Any
    ) -> Any:
        return network.flow_map(x, t, s)
