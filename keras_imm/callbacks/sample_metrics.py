"""Sample quality during `fit`."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from keras_imm.callbacks.sampling import Sampling

Metric = Callable[[np.ndarray, np.ndarray | None], Any]


class SampleMetrics(Sampling):
    """Measures samples at the end of every `freq`-th epoch.

    The results join the epoch's logs as `frechet_1_step`, `frechet_2_steps` and so on:
    the progress bar shows them, `fit` returns them in its history, and callbacks that
    stand later in the list (`ModelCheckpoint`, `EarlyStopping`, `CSVLogger`) can use
    them. As with `validation_freq`, epochs without a measurement have no entry, so
    `history` of this callback keeps the epoch of each.

    Args:
        metrics: Maps names to functions `metric(samples, labels)` that return a number.
            `samples` is what `generate` returned and `labels` its labels or `None`.
        **kwargs: Arguments of `Sampling`: `labels`, `num_steps`, `freq`, ...

    Attributes:
        history: Maps `"epoch"` (counted from 1) and each result's name to the list of
            its values during the last `fit`.

    Raises:
        ValueError: If an argument is out of range, or `metrics` is empty or holds
            something that cannot be called.

    Example:

    ```python
    def frechet(samples, labels):
        features = samples.reshape(len(samples), -1)
        return keras_imm.metrics.frechet_distance(features, real_features)

    quality = keras_imm.callbacks.SampleMetrics(
        {"frechet": frechet}, labels=np.arange(1000) % 10, num_steps=(1, 2)
    )
    history = model.fit(dataset, epochs=10, callbacks=[quality])
    history.history["frechet_2_steps"]
    ```
    """

    def __init__(self, metrics: Mapping[str, Metric], **kwargs):
        super().__init__(**kwargs)
        if not metrics or not all(callable(metric) for metric in metrics.values()):
            raise ValueError(
                "`metrics` must map one or more names to functions. "
                f"Received {metrics!r}."
            )
        self.metrics = dict(metrics)
        self.history: dict[str, list] = {}

    def on_train_begin(self, logs: dict[str, float] | None = None) -> None:
        self.history = {}

    def on_samples(
        self, samples: dict[int, np.ndarray], epoch: int, logs: dict[str, float]
    ) -> None:
        self.history.setdefault("epoch", []).append(epoch)
        for name, metric in self.metrics.items():
            for num_steps, images in samples.items():
                key = f"{name}_{num_steps}_step{'s' if num_steps > 1 else ''}"
                logs[key] = float(metric(images, self.labels))
                self.history.setdefault(key, []).append(logs[key])
