"""The base of the callbacks that sample the model during `fit`."""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from keras_imm.callbacks.pauses import pause
from keras_imm.callbacks.steps import StepCounter, optimizer_step
from keras_imm.callbacks.tensorboard import TensorBoard
from keras_imm.samplers import SamplingPlan, check_labels, standard_noise
from keras_imm.validation import check_instance, check_integer


class Sampling(keras.callbacks.Callback):
    """Samples the model every `freq` epochs or every `every_n_steps` training steps.

    A subclass implements `on_samples`. The model is anything with the `generate` of
    `keras_imm.IMM` and its `data_shape`. Every call gets the same noise, so that two
    pictures differ by the weights alone; NumPy draws it, so that they agree across
    backends; and the model's own random stream stays
    untouched: training goes on bit for bit as it would have without the callback.

    In a run of several processes each of them samples: a model that is spread over
    their devices needs them all.

    Args:
        labels: Integers of shape `(num_samples,)`, the classes to sample, or `None`
            for an unconditional model.
        num_samples: How many samples to draw where `labels` is `None`.
        num_steps: An integer or a sequence of them: sample once with each.
        freq: Sample at the end of every `freq`-th epoch, as `validation_freq` of
            `fit`. Default: 1, unless `every_n_steps` is given.
        every_n_steps: Sample after every so many training steps instead, counted by
            the optimizer, wherever in an epoch they fall. With `steps_per_execution`
            above 1, after the execution in which they fall.
        guidance_scale: As in `generate`.
        sampler: As in `generate`, as are its and `time_grid`'s defaults.
        time_grid: As in `generate`; where it is a list, `num_steps` must be the number
            of steps that it makes.
        weights: As in `generate`: `"ema"` or `"raw"`.
        batch_size: Samples in one pass of the network.
        seed: Integer that starts the noise.
        tensorboard: The `TensorBoard` callback that writes the results, at the very
            step of each sampling. Default: none.
        guidance_interval: As in `generate`.

    Raises:
        ValueError: If an argument is out of range, not exactly one of `labels` and
            `num_samples` is given, or both `freq` and `every_n_steps` are; at the start
            of `fit`, if the model has no such labels, guidance or times.
    """

    def __init__(
        self,
        labels: Any = None,
        num_samples: int | None = None,
        num_steps: int | Sequence[int] = (1, 2),
        freq: int | None = None,
        every_n_steps: int | None = None,
        guidance_scale: float | None = None,
        sampler: Any = None,
        time_grid: Any = None,
        weights: str = "ema",
        batch_size: int = 256,
        seed: int = 0,
        tensorboard: TensorBoard | None = None,
        guidance_interval: tuple[float, float] | None = None,
    ):
        super().__init__()
        labels = _check_request(labels, num_samples)
        steps = (num_steps,) if np.ndim(num_steps) == 0 else tuple(num_steps)
        if not steps:
            raise ValueError(f"`num_steps` must not be empty. Received {num_steps!r}.")
        for count in steps:
            check_integer("num_steps", count, at_least=1)
        if freq is not None and every_n_steps is not None:
            raise ValueError(
                "Give at most one of `freq` and `every_n_steps`. "
                f"Received freq={freq!r}, every_n_steps={every_n_steps!r}."
            )
        if every_n_steps is not None:
            check_integer("every_n_steps", every_n_steps, at_least=1)
        else:
            freq = 1 if freq is None else freq
            check_integer("freq", freq, at_least=1)
        check_integer("batch_size", batch_size, at_least=1)
        check_integer("seed", seed, at_least=0)
        self._plans = {
            int(count): SamplingPlan(
                num_steps=count,
                sampler=sampler,
                time_grid=time_grid,
                guidance_scale=guidance_scale,
                guidance_interval=guidance_interval,
                weights=weights,
            )
            for count in steps
        }
        if tensorboard is not None:
            check_instance("tensorboard", tensorboard, TensorBoard)
        self.labels = labels
        self.num_samples = num_samples
        self.num_steps = steps
        self.freq = freq
        self.every_n_steps = every_n_steps
        self.batch_size = batch_size
        self.seed = seed
        self.tensorboard = tensorboard
        self._counter = StepCounter(every_n_steps)
        self._results: dict[str, float] = {}

    def on_samples(
        self,
        samples: dict[int, np.ndarray],
        epoch: int,
        step: int,
        logs: dict[str, float],
    ) -> None:
        """Receives the samples.

        Args:
            samples: Maps each number of steps to float32 samples in the model's range,
                one row per label.
            epoch: The epoch that ended, or in which the step falls, counted from 1.
            step: The training steps that the weights have seen, as the optimizer
                counts them.
            logs: The epoch's logs, where the epoch has ended; what is put here reaches
                the progress bar, the history and the callbacks later in the list.
                Within an epoch it is empty, and what is put here joins the epoch's
                logs at its end.
        """
        raise NotImplementedError

    def generate(self) -> dict[int, np.ndarray]:
        """Samples the model as it is now.

        Returns:
            A dict that maps each number of steps to its samples.
        """
        count = self.num_samples if self.labels is None else len(self.labels)
        samples = {}
        for num_steps, plan in self._plans.items():
            completed = self._completed(plan) or plan
            noises = 0 if completed.sampler is None else completed.noises()
            noise = standard_noise(self.seed, 1 + noises, count, self.model.data_shape)
            samples[num_steps] = self.model.generate(
                labels=self.labels,
                num_samples=self.num_samples,
                noise=noise if noises else noise[0],
                batch_size=self.batch_size,
                verbose=0,
                **plan.arguments(),
            )
        return samples

    def _completed(self, plan: SamplingPlan) -> SamplingPlan | None:
        """The plan with the model's and the objective's defaults, as `generate` has it.

        None for a model without an objective.
        """
        objective = getattr(self.model, "objective", None)
        own = getattr(self.model, "sampling_plan", None)
        if own is not None:
            plan = own.with_arguments(**plan.arguments())
        return None if objective is None else plan.completed(objective)

    def on_train_begin(self, logs: dict[str, float] | None = None) -> None:
        if getattr(self.model, "num_classes", None) is not None:
            self._check_labels(self.model.num_classes)
        flow = getattr(self.model, "flow", None)
        for plan in self._plans.values():
            completed = self._completed(plan)
            if flow is not None and completed is not None:
                completed.check(flow)

    def _check_labels(self, num_classes: int) -> None:
        """Raises ValueError unless the model can be asked for these labels."""
        if self.labels is None:
            return
        if not num_classes:
            raise ValueError(
                "`labels` needs a model with `num_classes` > 0. "
                f"Received: labels={self.labels}"
            )
        check_labels(self.labels, num_classes)

    def on_epoch_begin(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        self._epoch = epoch + 1
        self._results = {}
        self._counter.begin_epoch(self.model)

    def on_train_batch_begin(
        self, batch: int, logs: dict[str, float] | None = None
    ) -> None:
        if self._counter.is_due_before(batch):
            step = optimizer_step(self.model)
            with pause(self.model):
                self.on_samples(self.generate(), self._epoch, step, self._results)

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        logs = {} if logs is None else logs
        logs.update(self._results)
        step = optimizer_step(self.model)
        is_due = self._counter.is_due_after_epoch(step)
        if self.freq is not None:
            is_due = (epoch + 1) % self.freq == 0
        if is_due:
            self.on_samples(self.generate(), epoch + 1, step, logs)


def _check_request(labels: Any, num_samples: Any) -> np.ndarray | None:
    if (labels is None) == (num_samples is None):
        raise ValueError(
            "Give exactly one of `labels` and `num_samples`. "
            f"Received labels={labels}, num_samples={num_samples}."
        )
    if labels is None:
        check_integer("num_samples", num_samples, at_least=1)
        return None
    labels = np.asarray(labels)
    if labels.ndim != 1 or labels.size == 0 or labels.dtype.kind not in "iu":
        raise ValueError(
            "`labels` must be a non-empty sequence of integers. "
            f"Received shape {labels.shape} and dtype {labels.dtype}."
        )
    return labels
