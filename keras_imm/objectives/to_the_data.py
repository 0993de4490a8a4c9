"""What objectives of jumps to the data alone share."""

from typing import Any

import keras
from keras import ops

from keras_imm.flow_map import Network
from keras_imm.objectives.objective import Objective
from keras_imm.precision import maximum, minimum
from keras_imm.validation import check_number, check_positive_number

_TWO_STEPS = (1.642,)  # eta between two steps of sampling: sigma 0.821


class ToTheData(Objective):
    """Noise levels drawn log-normally, and jumps to the data alone.

    Args:
        noise_mean: Mean of log(sigma), where sigma = sigma_data eta(t).
        noise_std: Its standard deviation; positive.
    """

    sampler = "restart"
    time_grid = _TWO_STEPS

    def __init__(self, noise_mean: float, noise_std: float, **kwargs: Any):
        super().__init__(**kwargs)
        check_number("noise_mean", noise_mean, "a finite number", lambda _: True)
        check_positive_number("noise_std", noise_std)
        self.noise_mean = noise_mean
        self.noise_std = noise_std

    def draw_times(self, network: Network, rows: Any, seed: Any, dtype: str) -> Any:
        normal = keras.random.normal((rows,), dtype=dtype, seed=seed)
        sigma = ops.exp(self.noise_mean + self.noise_std * normal)
        t = network.schedule.inverse_eta(sigma / network.sigma_data)
        return minimum(maximum(t, network.min_time), network.max_time)

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {
            "noise_mean": self.noise_mean,
            "noise_std": self.noise_std,
        }


def start(network: Network, t: Any) -> Any:
    """The time of the data, as many times as `t` has."""
    return ops.zeros_like(t) + network.min_time
