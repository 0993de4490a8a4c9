"""The restart sampler."""

from typing import Any

import keras
from keras import ops

from keras_imm.flow_map import Network
from keras_imm.samplers.sampler import Sampler


@keras.saving.register_keras_serializable(package="keras_imm.samplers")
class Restart(Sampler):
    """Jumps to the data at every step and adds fresh noise.

    Reference:
        - [Zhou et al., 2025](https://arxiv.org/abs/2503.07565), Algorithm 5
    """

    def step(
        self, network: Network, x: Any, t: Any, s: Any, index: Any, noise: Any
    ) -> Any:
        data = network.flow_map(x, t, network.min_time)
        if noise is None:  # of one step
            return data
        schedule = network.schedule
        renoised = schedule.alpha(s) * data + schedule.sigma(s) * noise
        return ops.where(s <= network.min_time, data, renoised)

    def noises(self, num_steps: int) -> int:
        return num_steps - 1
