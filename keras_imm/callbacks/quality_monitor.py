"""Generated against held-out images during `fit`."""

import functools
import hashlib
import json
import os
import pathlib
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from keras_imm import distribution, metrics
from keras_imm.callbacks.sample_metrics import SampleMetrics, result_name
from keras_imm.callbacks.steps import optimizer_step
from keras_imm.files.atomic import atomic_files
from keras_imm.files.paths import user_path
from keras_imm.validation import check_choice

_MOST_PIXELS = 1024  # beyond, a Fréchet distance of pixels says little and takes long


class QualityMonitor(SampleMetrics):
    """Compares generated with held-out images, because the loss says little.

    The results join the logs as `frechet_1_step`, `frechet_2_steps` and so on, the best
    are kept, and the best model can be saved. A few hundred samples show where training
    goes; the distances of the literature take 50,000.

    Args:
        held_out: Float images `(num_images, ...)` that training does not see, in the
            range and shape of the training data.
        metric: Function `metric(generated, held_out)` that returns a number, given the
            features of both, or both as they are where there are none. Default:
            `keras_imm.metrics.frechet_distance`, on the flattened images where there
            are no features, for images of up to 1,024 numbers.
        features: Function of images `(num_images, ...)` that returns their features
            `(num_images, num_features)`, such as the `predict` of a Keras model.
            Default: none.
        held_out_features: Features of the held-out images, in place of `held_out`.
        name: Name of the metric in the logs. Default: "frechet", or the name of the
            function.
        mode: "min" if less is better, "max" if more is.
        save_best: Path of a `.keras` file that holds the model, with averages and
            optimizer, as it was when the result for the first of `num_steps` was best.
            Beside it, in `<path>.json`, are the result and the step; a run that
            continues goes on from them if name, mode and held-out data are the same
            (give results with other `features` another `name`), and else warns and
            replaces both. Default: nothing is saved.
        **kwargs: Arguments of `Sampling`: `labels` or `num_samples` (at least as many
            as there are features, for a distance that means much), `num_steps`, `freq`
            or `every_n_steps`, `tensorboard`, ...

    Attributes:
        history: Maps `"epoch"` (counted from 1), `"step"` (of the optimizer) and each
            result's name to the list of its values during the last `fit`.
        best: Maps each result's name to its best value during the last `fit`; where
            that continues a run, for the first of `num_steps` also before it, as
            `save_best` recorded it.
        best_step: Maps each result's name to the step of its best value.

    Raises:
        ValueError: If an argument is out of range, or `features` is missing where the
            images are too large for a distance of pixels; in `fit`, if `<path>.json`
            cannot be read.

    Example:

    ```python
    quality = keras_imm.callbacks.QualityMonitor(
        held_out_images,
        labels=np.arange(1000) % 10,
        num_steps=(2, 1),
        every_n_steps=5000,
        save_best="runs/a/best.keras",
    )
    history = model.fit(dataset, epochs=100, callbacks=[quality])
    quality.best["frechet_2_steps"], quality.best_step["frechet_2_steps"]
    ```

    Reference:
        - [Heusel et al., 2017](https://arxiv.org/abs/1706.08500), Eq. 6
    """

    def __init__(
        self,
        held_out: Any = None,
        metric: Callable[[Any, Any], Any] | None = None,
        features: Callable[[np.ndarray], Any] | None = None,
        held_out_features: Any = None,
        name: str | None = None,
        mode: str = "min",
        save_best: str | os.PathLike[str] | None = None,
        **kwargs: Any,
    ):
        for argument, value in (("metric", metric), ("features", features)):
            if value is not None and not callable(value):
                raise ValueError(
                    f"`{argument}` must be a function. Received: {argument}={value!r}"
                )
        _check_held_out(held_out, held_out_features, features)
        check_choice("mode", mode, ("min", "max"))
        name = _name(name, metric)
        super().__init__({name: self._measure}, **kwargs)
        self.held_out = None if held_out is None else np.asarray(held_out)
        if metric is None and features is None:
            features = _flat(self.held_out)
        self.metric = metrics.frechet_distance if metric is None else metric
        self.features = features
        self.name = name
        self.mode = mode
        self.save_best = None
        if save_best is not None:
            self.save_best = user_path(save_best, "save_best")
        if self.save_best is not None and self.save_best.suffix != ".keras":
            raise ValueError(
                "`save_best` must be the path of a `.keras` file. "
                f"Received: save_best={str(save_best)!r}"
            )
        self._held_out_features = held_out_features
        self.best: dict[str, float] = {}
        self.best_step: dict[str, int] = {}
        self._has_begun = False

    def on_train_begin(self, logs: dict[str, float] | None = None) -> None:
        super().on_train_begin(logs)
        self.best, self.best_step = {}, {}
        self._has_begun = False

    def on_epoch_begin(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        super().on_epoch_begin(epoch, logs)
        # Not at the start of `fit`: a checkpoint may have been restored since.
        if not self._has_begun and optimizer_step(self.model) > 0:
            self._recall_best()
        self._has_begun = True

    def on_samples(
        self,
        samples: dict[int, np.ndarray],
        epoch: int,
        step: int,
        logs: dict[str, float],
    ) -> None:
        super().on_samples(samples, epoch, step, logs)
        sign = 1 if self.mode == "min" else -1
        for num_steps in samples:
            key = result_name(self.name, num_steps)
            if sign * logs[key] < sign * self.best.get(key, sign * np.inf):
                self.best[key], self.best_step[key] = logs[key], step
                if num_steps == self.num_steps[0]:
                    self._save(key)

    def _measure(self, samples: np.ndarray, labels: np.ndarray | None) -> float:
        if self.held_out is not None and samples.shape[1:] != self.held_out.shape[1:]:
            raise ValueError(
                "`held_out` must have the shape of the samples, "
                f"(num_images, {', '.join(map(str, samples.shape[1:]))}). "
                f"Received: shape {self.held_out.shape}"
            )
        if not np.isfinite(samples).all():
            return float("nan")
        if self.features is None:
            return self.metric(samples, self.held_out)
        if self._held_out_features is None:
            self._held_out_features = self.features(self.held_out)
        return self.metric(self.features(samples), self._held_out_features)

    # -- The best model

    def _record(self) -> pathlib.Path:
        return self.save_best.with_name(self.save_best.name + ".json")

    def _recall_best(self) -> None:
        if self.save_best is None or not self.save_best.exists():
            return
        if not self._record().exists():
            return
        record = _read(self._record())
        key = result_name(self.name, self.num_steps[0])
        if {key, "step"} <= record.keys() and self._is_comparable(record):
            self.best[key], self.best_step[key] = record[key], record["step"]
        else:
            warnings.warn(
                f"{str(self._record())!r} is about another metric, mode or other "
                f"held-out data than {key!r} here: the best model is sought anew.",
                stacklevel=2,
            )

    def _is_comparable(self, record: dict[str, Any]) -> bool:
        """Whether a record's result can be compared with those of this callback."""
        return self._measured.items() <= record.items()

    @functools.cached_property
    def _measured(self) -> dict[str, str]:
        """What a result depends on besides its name: mode and held-out data."""
        held_out = self._held_out_features if self.held_out is None else self.held_out
        digest = hashlib.sha256(np.ascontiguousarray(held_out)).hexdigest()
        return {"mode": self.mode, "held_out": digest}

    def _save(self, key: str) -> None:
        if self.save_best is None or not distribution.is_chief():
            return
        self.save_best.parent.mkdir(parents=True, exist_ok=True)
        values = {key: self.best[key], "step": self.best_step[key], **self._measured}
        with atomic_files(self.save_best, self._record()) as (model, record):
            self.model.save(model)
            record.write_text(json.dumps(values))


def _read(path: pathlib.Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text())
        if not isinstance(record, dict):
            raise ValueError("it holds no object")
    except ValueError as error:
        raise ValueError(
            f"{str(path)!r}, the record of the best model, cannot be read: {error}. "
            "Remove it to seek the best model anew."
        ) from error
    return record


def _check_held_out(held_out: Any, held_out_features: Any, features: Any) -> None:
    if (held_out is None) == (held_out_features is None):
        raise ValueError(
            "Give exactly one of `held_out` and `held_out_features`. "
            f"Received: {held_out!r} and {held_out_features!r}"
        )
    if held_out_features is not None and features is None:
        raise ValueError(
            "`held_out_features` needs `features`, the function that gives those of "
            "the samples. Received: features=None"
        )
    images = np.asarray(held_out_features if held_out is None else held_out)
    if images.ndim < 2 or len(images) == 0 or images.dtype.kind != "f":
        name = "held_out_features" if held_out is None else "held_out"
        raise ValueError(
            f"`{name}` must be floats of shape (num_images, ...), as the training data "
            f"are. Received: shape {images.shape}, dtype {images.dtype}"
        )


def _flat(held_out: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """The images themselves as features."""
    pixels = held_out[0].size
    if pixels > _MOST_PIXELS:
        raise ValueError(
            f"Images of more than {_MOST_PIXELS} numbers need `features` or `metric`: "
            "a distance between so many pixels says little. "
            f"Received: held_out of shape {held_out.shape}"
        )
    return lambda images: images.reshape(len(images), -1)


def _name(name: str | None, metric: Callable | None) -> str:
    if name is None:
        name = "frechet" if metric is None else getattr(metric, "__name__", "")
    if not isinstance(name, str) or not name.isidentifier():
        raise ValueError(
            "`name` must name the metric in the logs, in letters, digits and "
            f"underscores. Received: name={name!r}"
        )
    return name
