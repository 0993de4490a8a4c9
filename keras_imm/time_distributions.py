"""Distributions of the times (s, t) that a training step draws."""

from typing import Any

import keras
from keras import ops

from keras_imm.precision import maximum, minimum
from keras_imm.registry import lookup
from keras_imm.validation import check_instance, check_number, check_positive_number


class TimeDistribution:
    """Base class of distributions of times. Subclasses implement `sample`."""

    def sample(
        self,
        shape: tuple,
        min_time: float,
        max_time: float,
        seed: keras.random.SeedGenerator,
        dtype: str = "float32",
    ) -> Any:
        """Independent times.

        Args:
            shape: Shape of the times, such as (groups,).
            min_time: Start of the time range (epsilon in the paper).
            max_time: End of the time range (T in the paper).
            seed: Seed generator; an integer would draw all times alike.
            dtype: Dtype of the times.

        Returns:
            Times of that shape in [min_time, max_time].

        Raises:
            ValueError: If `seed` is not a seed generator.
        """
        raise NotImplementedError(
            f"The distribution {type(self).__name__} does not implement `sample`."
        )

    def sample_pairs(
        self,
        shape: tuple,
        min_time: float,
        max_time: float,
        seed: keras.random.SeedGenerator,
        dtype: str = "float32",
    ) -> tuple[Any, Any]:
        """Pairs of times: here the smaller and the larger of two draws.

        Args:
            shape: As in `sample`, and so the other arguments.
            min_time: As in `sample`.
            max_time: As in `sample`.
            seed: As in `sample`.
            dtype: As in `sample`.

        Returns:
            s and t, each of that shape, min_time <= s <= t <= max_time.

        Raises:
            ValueError: If `seed` is not a seed generator.
        """
        a, b = (
            self.sample(shape, min_time, max_time, seed, dtype) for _ in ("one", "two")
        )
        return minimum(a, b), maximum(a, b)

    def get_config(self) -> dict[str, Any]:
        """Constructor arguments, for saving."""
        return {}

    @classmethod
    def from_config(cls, config: dict) -> "TimeDistribution":
        """The distribution that `get_config` described."""
        return cls(**config)


# `keras_imm>Uniform` is a weighting.
@keras.saving.register_keras_serializable(package="keras_imm", name="UniformTimes")
class Uniform(TimeDistribution):
    """t ~ U(min_time, max_time) and s | t ~ U(min_time, t), as IMM was published.

    Reference: IMM Algorithm 1 and Section 4.
    """

    def sample(
        self,
        shape: tuple,
        min_time: float,
        max_time: float,
        seed: keras.random.SeedGenerator,
        dtype: str = "float32",
    ) -> Any:
        check_instance("seed", seed, keras.random.SeedGenerator)
        return keras.random.uniform(shape, min_time, max_time, dtype=dtype, seed=seed)

    def sample_pairs(
        self,
        shape: tuple,
        min_time: float,
        max_time: float,
        seed: keras.random.SeedGenerator,
        dtype: str = "float32",
    ) -> tuple[Any, Any]:
        t = self.sample(shape, min_time, max_time, seed, dtype)
        fraction = keras.random.uniform(shape, dtype=dtype, seed=seed)
        return minimum(min_time + fraction * (t - min_time), t), t


@keras.saving.register_keras_serializable(package="keras_imm")
class LogitNormal(TimeDistribution):
    """sigmoid(mean + std N(0, 1)), clipped to the time range.

    Args:
        mean: Of the logit; sigmoid(mean) is the median time. A finite number.
        std: Standard deviation of the logit. Positive.

    Reference:
        - [Esser et al., 2024](https://arxiv.org/abs/2403.03206), Section 3.1; with mean
          -0.4 and std 1, and the smaller and larger of two draws,
          [Geng et al., 2025](https://arxiv.org/abs/2505.13447), Section 4.3
    """

    def __init__(self, mean: float = -0.4, std: float = 1.0):
        check_number("mean", mean, "a finite number", lambda _: True)
        check_positive_number("std", std)
        self.mean = mean
        self.std = std

    def sample(
        self,
        shape: tuple,
        min_time: float,
        max_time: float,
        seed: keras.random.SeedGenerator,
        dtype: str = "float32",
    ) -> Any:
        check_instance("seed", seed, keras.random.SeedGenerator)
        normal = keras.random.normal(shape, dtype=dtype, seed=seed)
        time = ops.sigmoid(self.mean + self.std * normal)
        return minimum(maximum(time, min_time), max_time)

    def get_config(self) -> dict[str, Any]:
        return {"mean": self.mean, "std": self.std}


_DISTRIBUTIONS = {"uniform": Uniform, "logit_normal": LogitNormal}


def get(
    identifier: str | TimeDistribution, argument: str = "times"
) -> TimeDistribution:
    """The distribution of that name ("uniform", "logit_normal"), or the object itself.

    Args:
        identifier: A name or a distribution.
        argument: What messages call it.

    Raises:
        ValueError: If the name is not known.
    """
    return lookup(argument, identifier, _DISTRIBUTIONS, TimeDistribution)
