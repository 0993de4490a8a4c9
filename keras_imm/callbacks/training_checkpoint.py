"""Runs that survive being killed."""

import contextlib
import json
import os
import pathlib
import re
import time
import warnings
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_imm import distribution
from keras_imm.backend import keras_private
from keras_imm.callbacks import training_state
from keras_imm.files.atomic import (
    atomic_directory,
    remove_directory,
    remove_unfinished,
)
from keras_imm.files.paths import user_path
from keras_imm.validation import check_instance, check_integer, shortened

_FORMAT = 1
_WEIGHTS = "training_state.npz"
_STATE = "state.json"
_NAME = re.compile(r"epoch-(\d{6,})")


class TrainingCheckpoint(keras.callbacks.Callback):
    """Makes a killed `fit` continue, when it is run again, as if nothing had happened.

    At the end of every `freq`-th epoch it writes one checkpoint: weights, their
    averages, the optimizer's and the random states, the global step, the position in
    the data and the logs of all epochs so far. `fit` with the same `directory` starts
    from the newest checkpoint: the weights, the averages and the logs of a run that
    was killed at any moment are then, on one machine and backend, bit-equal to those
    of a run that was not. Epochs may be as short as you like (`steps_per_epoch` of
    `keras_imm.datasets.load`).

    A checkpoint is written to a temporary folder, synchronised with the disk and
    renamed: a reader sees a whole checkpoint or none. It must stand last among the
    callbacks, so that the logs that it keeps are complete. Of other callbacks it keeps
    nothing: what `EarlyStopping` or `ReduceLROnPlateau` have counted starts anew.
    Epochs are counted from the start of the run, also by `fit(epochs=...)`.

    Args:
        directory: Folder of the checkpoints, `epoch-000001` and so on; made if
            missing.
        dataset: The data set that `fit` is given, where it moves on from epoch to
            epoch: an object with `get_state()`, which returns JSON, and
            `set_state(state)`; its `fingerprint` (a dict of JSON), if it has one, must
            be the same when the run continues. Default: that of `fit`, if it is such
            an object. Other data must be the same, in the same order, in every epoch.
        settings: Further JSON values that must be the same when the run continues,
            such as the name of the recipe. The configuration of the model and of its
            optimizer and the number of steps in an epoch always must.
        freq: Epochs between checkpoints. The last epoch always ends with one.
        keep: How many of the newest checkpoints stay.

    Attributes:
        logs: A list of the logs of every epoch since the run began, each with its
            `epoch`, counted from 1.

    Raises:
        ValueError: If an argument is out of range; at the start of `fit`, if the
            checkpoint is that of another run: the error names the setting and its two
            values.
        OSError: If a checkpoint cannot be written. The last good one stays.
        FloatingPointError: If a weight is not finite. Nothing is saved, and the last
            good one stays.

    Example:

    ```python
    dataset = keras_imm.datasets.load("cifar10", batch_size=256)
    model.fit(
        dataset,
        epochs=100,
        callbacks=[keras_imm.callbacks.TrainingCheckpoint("runs/a", dataset)],
    )
    ```
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        dataset: Any = None,
        settings: Mapping[str, Any] | None = None,
        freq: int = 1,
        keep: int = 2,
    ):
        super().__init__()
        check_integer("freq", freq, at_least=1)
        check_integer("keep", keep, at_least=1)
        missing = [
            name for name in ("get_state", "set_state") if not hasattr(dataset, name)
        ]
        if dataset is not None and missing:
            raise ValueError(
                "`dataset` must have `get_state()` and `set_state(state)`. Received: "
                f"{type(dataset).__name__} without {' and '.join(missing)}"
            )
        self.directory = user_path(directory, "directory")
        self.dataset = dataset
        if settings is not None:
            check_instance("settings", settings, Mapping)
        self.settings = dict(settings or {})
        self.freq = freq
        self.keep = keep
        self.logs: list[dict] = []
        self._described: dict | None = None

    # -- During fit

    def on_train_begin(self, logs: dict | None = None) -> None:
        self._find_dataset()
        if self._described is None:  # before anything changes the learning rate
            self._described = describe(self._identity())
        self._restored = 0
        if distribution.is_chief():
            self._prepare_directory()
        distribution.barrier()
        checkpoints = self.checkpoints()
        if checkpoints:
            state = self._restore(checkpoints)
            # Where `fit` goes on; Keras reads it right after this method.
            keras_private.start_at_epoch(self.model, state["epoch"])
            self.logs = state["logs"]
            self._restored = len(self.logs)
            self._saved = state["epoch"]
        else:
            self.logs, self._saved = [], 0

    def _find_dataset(self) -> None:
        """The data set of `fit`, which a `FlowMapModel` keeps while it trains."""
        given, shuffled = getattr(self.model, "_fit_data", (None, False))
        if not (hasattr(given, "get_state") and hasattr(given, "set_state")):
            if shuffled and self.dataset is None:
                warnings.warn(
                    "`fit` shuffles these data in an order that a checkpoint does not "
                    "hold: a run that continues will not be the same. Give "
                    "`shuffle=False` or a data set of `keras_imm.datasets.load`.",
                    stacklevel=2,
                )
        elif self.dataset is None:
            self.dataset = given
        elif self.dataset is not given:
            raise ValueError(
                "`dataset` of TrainingCheckpoint must be the data set of `fit`. "
                f"Received: dataset={self.dataset!r}, fit's {given!r}"
            )

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        self._epoch = epoch + 1
        if hasattr(self.dataset, "end_epoch"):  # an epoch that was cut short counts
            self.dataset.end_epoch()
        values = {name: _number(value) for name, value in (logs or {}).items()}
        self.logs.append({"epoch": self._epoch, **values})
        if self._epoch % self.freq == 0 or self._epoch == self.params.get("epochs"):
            self.save()

    def on_train_end(self, logs: dict | None = None) -> None:
        keras_private.start_at_epoch(self.model, None)
        if len(self.logs) > self._restored and self._saved < self._epoch:
            self.save()  # another callback has stopped the run
        self._complete_history()

    def _complete_history(self) -> None:
        """Puts the epochs before the restart into what `fit` returns."""
        history = getattr(self.model, "history", None)
        if not isinstance(history, keras.callbacks.History):
            history = self.model.history = keras.callbacks.History()
            history.epoch = []
        before = self.logs[: self._restored]
        names = dict.fromkeys(name for entry in before for name in entry)
        names.pop("epoch", None)
        for name in names:
            earlier = [entry[name] for entry in before if name in entry]
            history.history[name] = earlier + history.history.get(name, [])
        history.epoch = [entry["epoch"] - 1 for entry in before] + history.epoch

    # -- Checkpoints

    def checkpoints(self) -> list[pathlib.Path]:
        """Folders of the checkpoints, the newest first."""
        found = [
            (int(match[1]), path)
            for path in self.directory.glob("epoch-*")
            if (match := _NAME.fullmatch(path.name)) and path.is_dir()
        ]
        return [path for _, path in sorted(found, reverse=True)]

    def saved_settings(self) -> dict[str, Any]:
        """What the run of the newest checkpoint was, before `fit` continues it.

        Returns:
            JSON values by path, such as `{"model.accumulation_steps": 2,
            "settings.recipe": "a"}`; empty where no checkpoint can be read.
        """
        for path in self.checkpoints():
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                return dict(json.loads((path / _STATE).read_text())["described"])
        return {}

    def save(self) -> None:
        """Writes a checkpoint of the model and the data set as they are now."""
        path = self.directory / f"epoch-{self._epoch:06d}"
        if distribution.is_chief() and not path.exists():
            try:
                with distribution.alone():
                    self._write(path)
            except FloatingPointError as error:
                raise FloatingPointError(
                    f"{error} after epoch {self._epoch}, so that nothing was saved. "
                    f"{self._left()}"
                ) from error
            except OSError as error:
                raise OSError(
                    error.errno,
                    f"Cannot write the checkpoint {str(path)!r}: "
                    f"{os.strerror(error.errno) if error.errno else error}. "
                    f"{self._left()}",
                ) from error
            for old in self.checkpoints()[self.keep :]:
                remove_directory(old)
        self._saved = self._epoch
        distribution.barrier()

    def _left(self) -> str:
        good = self.checkpoints()
        return f"The last good one is {str(good[0])!r}" if good else "There is no other"

    def _write(self, path: pathlib.Path) -> None:
        optimizer = self.model.optimizer
        state = {
            "format": _FORMAT,
            "epoch": self._epoch,
            "step": int(ops.convert_to_numpy(optimizer.iterations)),
            "learning_rate": float(ops.convert_to_numpy(optimizer.learning_rate)),
            "described": self._described,
            "dataset": None if self.dataset is None else self.dataset.get_state(),
            "logs": self.logs,
        }
        with atomic_directory(path) as folder:
            training_state.save(folder / _WEIGHTS, self.model)
            text = json.dumps(state, indent=1, default=_number)
            (folder / _STATE).write_text(text)

    def _prepare_directory(self) -> None:
        """Finds out before the first epoch whether checkpoints can be written."""
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            remove_unfinished(self.directory)
            probe = self.directory / f".unfinished-probe-{os.getpid()}"
            probe.mkdir()
            probe.rmdir()
        except OSError as error:
            raise OSError(
                f"Cannot write checkpoints into {str(self.directory)!r}: {error}"
            ) from error

    def _restore(self, checkpoints: list[pathlib.Path]) -> dict:
        """Puts back the newest checkpoint that can be read, and says if it is not."""
        for i, path in enumerate(checkpoints):
            try:
                state = json.loads((path / _STATE).read_text())
                if state["format"] != _FORMAT:
                    raise ValueError(f"its format is {state['format']}, not {_FORMAT}")
                self._check_same_run(path, state)
                training_state.load(path / _WEIGHTS, self.model)
            except _OtherRunError as error:
                raise ValueError(str(error)) from None
            except (OSError, ValueError, KeyError) as error:
                if i == len(checkpoints) - 1:
                    raise ValueError(
                        f"Cannot read the checkpoint {str(path)!r}: {error}"
                    ) from error
                warnings.warn(
                    f"Cannot read the checkpoint {str(path)!r}: {error}. "
                    f"Continuing from {str(checkpoints[i + 1])!r}.",
                    stacklevel=2,
                )
            else:
                if self.dataset is not None:
                    self.dataset.set_state(state["dataset"])
                self._set_aside(checkpoints[:i])
                return state
        raise AssertionError("there was no checkpoint")

    def _identity(self) -> dict:
        """What makes a run this run."""
        return {
            "settings": self.settings,
            "dataset": getattr(self.dataset, "fingerprint", None),
            "steps_per_epoch": self.params.get("steps"),
            "model": {
                "class_name": type(self.model).__name__,
                "config": self.model.get_config(),
            },
            "optimizer": self.model.get_compile_config().get("optimizer"),
        }

    def _set_aside(self, damaged: list[pathlib.Path]) -> None:
        """Leaves the places of damaged checkpoints to new ones."""
        distribution.barrier()  # until all processes have read what there is
        if distribution.is_chief():
            for path in damaged:
                path.rename(path.with_name(f"damaged-{path.name}-{time.time_ns()}"))

    def _check_same_run(self, path: pathlib.Path, state: dict) -> None:
        saved = state["described"]
        for name in sorted(saved.keys() | self._described.keys()):
            before, now = (d.get(name) for d in (saved, self._described))
            if name == "optimizer.learning_rate" and now == state["learning_rate"]:
                continue  # a callback has set it, in this process, since the run began
            if name.endswith(".module"):
                continue  # where a class is defined may change between versions
            if name == "model.objective.total_steps" and not (
                self.model.objective.needs_total_steps
            ):
                continue  # of another number of epochs, which changes nothing
            if name not in saved and _was_always_so(name, now):
                continue
            if name.startswith(_OF_SAMPLING):
                continue
            if before != now:
                raise _OtherRunError(
                    f"Cannot continue the run of {str(path)!r}: `{name}` was "
                    f"{shortened(repr(before))} and is {shortened(repr(now))}. Run "
                    "with the same settings, or with another directory to start anew."
                )


# Arguments that are younger than checkpoints, by the ends of their names, with what
# models did before.
_ADDED = {"flow_matching_share": 0.0, "times.class_name": "Uniform"}

# What does not change the training.
_OF_SAMPLING = ("model.sampling_plan", "model.pixels", "model.class_names")


def _was_always_so(name: str, value: Any) -> bool:
    """Whether an argument that a checkpoint does not know changes nothing."""
    return any(
        name.startswith("model.") and name.endswith(f".{added}") and value == default
        for added, default in _ADDED.items()
    )


class _OtherRunError(Exception):
    """The checkpoint is whole, but of a run with other settings."""


def _number(value: Any) -> Any:
    """Numbers of NumPy and of the backend as JSON holds them; the rest as it is."""
    if isinstance(value, (str, bool, int, float)) or value is None:
        return value
    return np.asarray(ops.convert_to_numpy(value)).item()


def describe(identity: dict) -> dict:
    """Nested settings as one flat dict, `{"dataset.batch_size": 256, ...}`.

    Names that Keras counts up within a process are replaced by their order, and what it
    derives from the rest is left out.
    """
    identity = json.loads(json.dumps(identity, default=str))
    names = {name: f"layer {i}" for i, name in enumerate(_layer_names(identity))}
    flat = {}

    def visit(path, value):
        if isinstance(value, dict):
            for key, item in value.items():
                if key not in ("build_config", "compile_config", "registered_name"):
                    visit((*path, key), item)
        elif isinstance(value, list) and any(
            isinstance(v, (dict, list)) for v in value
        ):
            for i, item in enumerate(value):
                visit((*path, str(i)), item)
        else:
            path = [part for part in path if part != "config"]
            flat[".".join(path)] = named(value)

    def named(value):
        if isinstance(value, list):
            return [named(item) for item in value]
        return names.get(value, value) if isinstance(value, str) else value

    visit((), identity)
    return flat


def _layer_names(value: Any) -> dict[str, None]:
    """The names of layers, models and optimizers in the order that they are met."""
    names: dict[str, None] = {}
    if isinstance(value, dict):
        if value.get("class_name", "DTypePolicy") != "DTypePolicy":
            config = value.get("config")
            if isinstance(config, dict) and isinstance(config.get("name"), str):
                names[config["name"]] = None
            if isinstance(value.get("name"), str):
                names[value["name"]] = None
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            names |= _layer_names(item)
    return names
