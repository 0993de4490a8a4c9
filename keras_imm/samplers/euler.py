"""Samplers that follow the flow's velocity: Euler's method and Heun's."""

from typing import Any

import keras
from keras import ops

from keras_imm.flow_map import Network
from keras_imm.samplers.sampler import Sampler


@keras.saving.register_keras_serializable(package="keras_imm.samplers")
class Euler(Sampler):
    """x <- x + (s - t) v(x, t), with the velocity v that the network has at s = t."""

    def step(
        self, network: Network, x: Any, t: Any, s: Any, index: Any, noise: Any
    ) -> Any:
        return x + (s - t) * network.velocity(x, t)


@keras.saving.register_keras_serializable(package="keras_imm.samplers")
class Heun(Sampler):
    """Euler's method with the mean of the velocities at both ends of a step.

    The last step is Euler's: at the data the velocity of some parameterizations is
    not defined.

    Reference:
        - [Karras et al., 2022](https://arxiv.org/abs/2206.00364), Algorithm 1
    """

    evaluations_per_step = 2

    def step(
        self, network: Network, x: Any, t: Any, s: Any, index: Any, noise: Any
    ) -> Any:
        velocity = network.velocity(x, t)
        euler = x + (s - t) * velocity
        is_last = s <= network.min_time
        # Where the result is not used, at a time where it is defined.
        at_end = network.velocity(euler, ops.where(is_last, t, s))
        heun = x + 0.5 * (s - t) * (velocity + at_end)
        return ops.where(is_last, euler, heun)
