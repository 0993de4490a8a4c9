"""Numbers on samples during `fit`."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from keras_imm.callbacks.sampling import Sampling

Metric = Callable[[np.ndarray, np.ndarray | None], Any]


class SampleMetrics(Sampling):
    """Measures samples as training goes on.

    The results join the epoch's logs as `frechet_1_step`, `frechet_2_steps` and so on:
    the progress bar shows them, `fit` returns them in its history, and callbacks that
    stand later in the list (`ModelCheckpoint`, `EarlyStopping`, `CSVLogger`) can use
    them. As with `validation_freq`, epochs without a measurement have no entry, so
    `history` of this callback keeps the epoch and the step of each. Of several
    measurements within an epoch the last joins its logs.

    To compare samples with held-out images, see `QualityMonitor`.

    Args:
        metrics: Maps names to functions `metric(samples, labels)` that return a number.
            `samples` is what `generate` returned and `labels` its labels or `None`.
        **kwargs: Arguments of `Sampling`: `labels`, `num_steps`, `freq` or
            `every_n_steps`, `tensorboard`, ...

    Attributes:
        history: Maps `"epoch"` (counted from 1), `"step"` (of the optimizer) and each
            result's name to the list of its values during the last `fit`.

    Raises:
        ValueError: If an argument is out of range, or `metrics` is empty or holds
            something that cannot be called.

    Example:

    ```python
    def agreement(samples, labels):
        return np.mean(classifier.predict(samples) == labels)

    quality = keras_imm.callbacks.SampleMetrics(
        {"agreement": agreement}, labels=np.arange(1000) % 10, num_steps=(1, 2)
    )
    history = model.fit(dataset, epochs=10, callbacks=[quality])
    history.history["agreement_2_steps"]
    ```
    """

    def __init__(self, metrics: Mapping[str, Metric], **kwargs: Any):
        super().__init__(**kwargs)
        is_mapping = isinstance(metrics, Mapping) and len(metrics) > 0
        if not is_mapping or not all(map(callable, metrics.values())):
            raise ValueError(
                "`metrics` must map one or more names to functions. "
                f"Received {metrics!r}."
            )
        self.metrics = dict(metrics)
        self.history: dict[str, list] = {}

    @property
    def result_names(self) -> list[str]:
        """Names of the results."""
        return [
            result_name(name, num_steps)
            for name in self.metrics
            for num_steps in self.num_steps
        ]

    def on_train_begin(self, logs: dict[str, float] | None = None) -> None:
        super().on_train_begin(logs)
        self.history = {}

    def on_samples(
        self,
        samples: dict[int, np.ndarray],
        epoch: int,
        step: int,
        logs: dict[str, float],
    ) -> None:
        results = {
            result_name(name, num_steps): float(metric(images, self.labels))
            for name, metric in self.metrics.items()
            for num_steps, images in samples.items()
        }
        for key, value in {"epoch": epoch, "step": step, **results}.items():
            self.history.setdefault(key, []).append(value)
        logs.update(results)
        if self.tensorboard is not None:
            self.tensorboard.add_scalars(results, step)


def result_name(name: str, num_steps: int) -> str:
    """How a metric of samples in so many steps is called in the logs."""
    return f"{name}_{num_steps}_step{'s' if num_steps > 1 else ''}"
