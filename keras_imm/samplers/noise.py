"""Noise that does not depend on batches: of numbered samples, and of seeds."""

from collections.abc import Sequence
from typing import Any

import numpy as np


def standard_noise(
    seed: int, draws: int, num_samples: int, shape: Sequence[int]
) -> np.ndarray:
    """All draws of some samples from one seed, the same on every backend.

    Args:
        seed: Non-negative integer.
        draws: Draws of each sample: 1, and those of `Sampler.noises`.
        num_samples: Number of samples.
        shape: Shape of one sample.

    Returns:
        float32 array (draws, num_samples, *shape), standard normal. More draws leave
        the first ones as they are.
    """
    rng = np.random.default_rng(seed)
    return rng.standard_normal((draws, num_samples, *shape), "float32")


def numbered_draws(
    seed: int, indices: Any, draws: int, shape: Sequence[int], num_classes: int
) -> tuple[np.ndarray, np.ndarray]:
    """Labels and noise that depend on the seed and each sample's number alone.

    Args:
        seed: Non-negative integer.
        indices: Numbers of the samples.
        draws: As in `standard_noise`.
        shape: Shape of one sample.
        num_classes: Labels are uniform on [0, num_classes); 0 where there are none.

    Returns:
        int32 array (n,) of labels and float32 array (draws, n, *shape).
    """
    labels, noise = [], []
    for index in indices:
        sequence = np.random.SeedSequence((seed, int(index)))
        rng = np.random.Generator(np.random.Philox(sequence))
        labels.append(int(rng.integers(max(1, num_classes))))
        noise.append(rng.standard_normal((draws, *shape), "float32"))
    return np.array(labels, "int32"), np.stack(noise, axis=1)
