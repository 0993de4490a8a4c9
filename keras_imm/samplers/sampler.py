"""The contract of samplers: one step from a time to an earlier one."""

from typing import Any

from keras_imm.flow_map import Network
from keras_imm.validation import check_integer


class Sampler:
    """Base class of samplers.

    A subclass implements `step`, `noises` if it takes fresh noise, and `get_config` if
    it has arguments, and is registered for saving with
    `keras.saving.register_keras_serializable(package="keras_imm.samplers")`, or a
    package of its own.

    Attributes:
        evaluations_per_step: Network evaluations of a step, for progress bars.

    Example:

    ```python
    @keras.saving.register_keras_serializable(package="my_project")
    class Midpoint(keras_imm.samplers.Sampler):
        evaluations_per_step = 2

        def step(self, network, x, t, s, index, noise):
            middle = 0.5 * (t + s)
            x_middle = x + (middle - t) * network.velocity(x, t)
            return x + (s - t) * network.velocity(x_middle, middle)

    images = model.generate(num_samples=4, num_steps=16, sampler=Midpoint())
    ```
    """

    evaluations_per_step: int = 1

    def step(
        self, network: Network, x: Any, t: Any, s: Any, index: Any, noise: Any
    ) -> Any:
        """One step; it runs inside a compiled loop.

        Args:
            network: The network, with labels, guidance and weights bound in.
            x: Samples at time t, shape (batch, ...).
            t: Scalar tensor.
            s: Scalar tensor below t; `network.min_time` in the last step.
            index: Scalar integer tensor: the steps before this one.
            noise: Draw number `index` of fresh noise of standard deviation
                `network.sigma_data`, the shape of `x`; after the last of `noises`
                draws, anything. None where `noises` is 0.

        Returns:
            Samples at time s, the shape and dtype of `x`.
        """
        raise NotImplementedError(f"{type(self).__name__} does not implement `step`.")

    def noises(self, num_steps: int) -> int:
        """Draws of noise after the one that sampling starts from.

        Args:
            num_steps: Steps of the grid.

        Returns:
            Integer in [0, num_steps]; 0 has the loop draw none.
        """
        return 0

    def get_config(self) -> dict[str, Any]:
        """Constructor arguments, for saving."""
        return {}

    @classmethod
    def from_config(cls, config: dict) -> "Sampler":
        """The sampler that `get_config` described."""
        return cls(**config)


def checked_noises(sampler: Sampler, num_steps: int) -> int:
    """`sampler.noises(num_steps)`.

    Raises:
        ValueError: If it is no integer in [0, num_steps].
    """
    noises = sampler.noises(num_steps)
    check_integer(f"{type(sampler).__name__}.noises({num_steps})", noises, at_least=0)
    if noises > num_steps:
        raise ValueError(
            f"`noises` must be at most the number of steps, {num_steps}. "
            f"Received: {noises} from {type(sampler).__name__}"
        )
    return noises
