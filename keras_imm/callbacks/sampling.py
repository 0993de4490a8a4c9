"""The base of the callbacks that sample the model during `fit`."""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from keras_imm import samplers
from keras_imm.validation import check_choice, check_integer


class Sampling(keras.callbacks.Callback):
    """Samples the model at the end of every `freq`-th epoch.

    A subclass implements `on_samples`. The model is anything with the `generate` of
    `keras_imm.IMM`. Every call gets the same `seed`, so that the pictures of two epochs
    differ by the weights alone, and the model's own random stream stays untouched:
    training goes on as it would have without the callback.

    Epoch ends are when all three backends have written the state of training back to
    the model; to look more often, make epochs shorter with `steps_per_epoch`.

    Args:
        labels: Integers of shape `(num_samples,)`, the classes to sample, or `None`
            for an unconditional model.
        num_samples: How many samples to draw where `labels` is `None`.
        num_steps: An integer or a sequence of them: sample once with each.
        freq: Sample at the end of every `freq`-th epoch, as `validation_freq` of `fit`.
        guidance_scale: As in `generate`.
        sampler: As in `generate`.
        time_grid: As in `generate`.
        weights: As in `generate`: `"ema"` or `"raw"`.
        batch_size: Samples in one pass of the network.
        seed: Integer.

    Raises:
        ValueError: If an argument is out of range, or not exactly one of `labels` and
            `num_samples` is given.
    """

    def __init__(
        self,
        labels: Any = None,
        num_samples: int | None = None,
        num_steps: int | Sequence[int] = (1, 2),
        freq: int = 1,
        guidance_scale: float | None = None,
        sampler: str = "pushforward",
        time_grid: Any = "uniform",
        weights: str = "ema",
        batch_size: int = 256,
        seed: int = 0,
    ):
        super().__init__()
        if (labels is None) == (num_samples is None):
            raise ValueError(
                "Give exactly one of `labels` and `num_samples`. "
                f"Received labels={labels}, num_samples={num_samples}."
            )
        if labels is not None:
            labels = np.asarray(labels)
            if labels.ndim != 1 or labels.size == 0 or labels.dtype.kind not in "iu":
                raise ValueError(
                    "`labels` must be a non-empty sequence of integers. "
                    f"Received shape {labels.shape} and dtype {labels.dtype}."
                )
        else:
            check_integer("num_samples", num_samples, at_least=1)
        steps = (num_steps,) if np.ndim(num_steps) == 0 else tuple(num_steps)
        if not steps:
            raise ValueError(f"`num_steps` must not be empty. Received {num_steps!r}.")
        for count in steps:
            check_integer("num_steps", count, at_least=1)
        check_integer("freq", freq, at_least=1)
        check_integer("batch_size", batch_size, at_least=1)
        check_integer("seed", seed, at_least=0)
        check_choice("sampler", sampler, samplers.SAMPLERS)
        check_choice("weights", weights, ("ema", "raw"))
        self.labels = labels
        self.num_samples = num_samples
        self.num_steps = steps
        self.freq = freq
        self.guidance_scale = guidance_scale
        self.sampler = sampler
        self.time_grid = time_grid
        self.weights = weights
        self.batch_size = batch_size
        self.seed = seed

    def on_samples(
        self, samples: dict[int, np.ndarray], epoch: int, logs: dict[str, float]
    ) -> None:
        """Receives the samples of one epoch.

        Args:
            samples: Maps each number of steps to float32 samples in the model's range,
                one row per label.
            epoch: The epoch that ended, counted from 1.
            logs: The epoch's logs; what is put here reaches the progress bar, the
                history and the callbacks later in the list.
        """
        raise NotImplementedError

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        if (epoch + 1) % self.freq == 0:
            samples = {
                num_steps: self.model.generate(
                    labels=self.labels,
                    num_samples=self.num_samples,
                    num_steps=num_steps,
                    guidance_scale=self.guidance_scale,
                    sampler=self.sampler,
                    time_grid=self.time_grid,
                    weights=self.weights,
                    seed=self.seed,
                    batch_size=self.batch_size,
                    verbose=0,
                )
                for num_steps in self.num_steps
            }
            self.on_samples(samples, epoch + 1, {} if logs is None else logs)
