"""The model: a flow map and the objective that it is trained for."""

import contextlib
import copy
import itertools
import json
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_imm import (
    backend,
    fit_data,
    objectives,
    parameterizations,
    samplers,
    schedules,
)
from keras_imm.backend import keras_private
from keras_imm.backend.checked_data import source_of
from keras_imm.backend.loss_log import LossLog
from keras_imm.backend.random_streams import assign_state, mix_seeds, random_states
from keras_imm.files import presets
from keras_imm.files.atomic import atomic_file
from keras_imm.files.hdf5_file import hdf5_file
from keras_imm.flow_map import FlowMap
from keras_imm.keras_callbacks import adapted_callbacks
from keras_imm.objectives.averaged_weights import check_momenta
from keras_imm.optimizers.half_precision import check_half_precision
from keras_imm.precision import at_least_float32
from keras_imm.samplers.plan import SamplingPlan
from keras_imm.samplers.request import SamplingRequest, checked_labels
from keras_imm.training_data import DataChecks
from keras_imm.training_length import orders_itself, steps_per_epoch_of
from keras_imm.validation import (
    check_boolean,
    check_choice,
    check_instance,
    check_integer,
)

_EVALUATION_STREAM = 1
_LONG_REQUEST = 32  # network evaluations from which `generate` shows a progress bar
_FLOW_MAP_DEFAULTS = {
    "schedule": "flow_matching",
    "parameterization": "euler_fm",
    "second_time": "s",
    "time_scale": 1000.0,
    "sigma_data": 0.5,
    "min_time": 0.0,
    "max_time": 0.994,
}


@keras.saving.register_keras_serializable(package="keras_imm")
class FlowMapModel(backend.TrainableModel):
    """A few-step generator: a flow map f_{s,t} and the objective it is trained for.

    Args:
        backbone: A layer or model called as `backbone([x, c_t, c_s])`, or as
            `backbone([x, c_t, c_s, labels])` where it has an attribute `num_classes`
            above 0. x is (batch, ...), c_t and c_s are (batch,) times multiplied by
            `time_scale`, labels are (batch,) integers in [0, num_classes], where
            num_classes is the null label. Where it has an attribute
            `augmentation_dim` above 0 the last of its inputs, after the labels or
            None, are (batch, augmentation_dim) augmentation labels, zeros unless
            there is an `augmentation`. It returns G, of the shape of x. Under a
            half-precision policy Keras rounds what a layer is given: make the layer
            with `autocast=False`, as `DiT` is, to see the times in float32.
        objective: A name, such as "moment_matching" or "mean_flow", of those that
            `keras_imm.objectives.get` lists, or a `keras_imm.objectives.Objective`.
        schedule: "flow_matching", "cosine" or a `keras_imm.schedules.Schedule`.
            Default of this and of the next five: the objective's `flow_map`, else
            "flow_matching", "euler_fm", "s", 1000, 0 and 0.994.
        parameterization: "euler_fm", "simple_edm", "identity" or a
            `keras_imm.parameterizations.Parameterization`.
        second_time: Second time input of the backbone: "s", or "stride" for t - s.
        time_scale: Positive factor of the times that the backbone sees.
        min_time: Start of the time range, epsilon in the paper; in [0, max_time).
        max_time: End of the time range, T in the paper; in (min_time, 1].
        sigma_data: Standard deviation of the data, and of the noise. Positive.
        accumulation_steps: Positive integer. Each batch is split into this many
            micro-batches whose gradients are averaged before one optimizer step.
        seed: Integer that starts the model's one random stream.
        augmentation: Layer called as `x, augmentation_labels = augmentation(x,
            training=True)` on every batch of training data, such as
            `keras_imm.augmentation.EDMAugmentation`. The backbone is given the labels
            in both passes; zeros, in sampling, stand for data as they are.
        **kwargs: `name` and other arguments of `keras.Model`.

    Attributes:
        sampling_plan: How `generate` samples where its arguments are None.
        pixels: How samples become bytes.
        class_names: Names of the labels.

    Call arguments:
        x_t: Samples at time t, shape (batch, ...).
        t: Times in [0, 1], shape (batch,) or a scalar. Default: `max_time`.
        s: Times in [0, t], shape (batch,) or a scalar. Default: `min_time`.
        labels: Integers in [0, num_classes], shape (batch,). Default: the null
            label.
        guidance_scale: Weight of classifier-free guidance (Eq. 14), or None for 1.
        training: Whether the backbone's dropout is on.
        augmentation_labels: Floats of shape (batch, augmentation_dim), for a backbone
            that takes them. Default: zeros.
        guidance_interval: Pair of times outside of which guidance is off.

    Returns:
        Samples at time s, the shape of x_t, in float32 or the wider dtype of x_t.

    Raises:
        ValueError: If an argument is out of its range.

    Example:

    ```python
    backbone = keras_imm.backbones.DiT(image_shape=(8, 8, 1), num_classes=10)
    model = keras_imm.FlowMapModel(backbone, objective="flow_matching")
    model.compile(keras.optimizers.AdamW(1e-4, epsilon=1e-8, use_ema=True))
    model.fit(dataset, epochs=10)      # yields images, or (images, labels)
    images = model.generate(labels=[3, 1, 4], num_steps=32)
    ```

    Reference:
        - [Zhou et al., 2025](https://arxiv.org/abs/2503.07565), Section 4, for the flow
          map, whose equations other docstrings number
    """

    def __init__(
        self,
        backbone: keras.layers.Layer,
        objective: str | objectives.Objective = "moment_matching",
        schedule: str | schedules.Schedule | None = None,
        parameterization: str | parameterizations.Parameterization | None = None,
        second_time: str | None = None,
        time_scale: float | None = None,
        min_time: float | None = None,
        max_time: float | None = None,
        sigma_data: float = 0.5,
        accumulation_steps: int = 1,
        seed: int = 0,
        augmentation: keras.layers.Layer | None = None,
        **kwargs: Any,
    ):
        check_instance("backbone", backbone, keras.layers.Layer)
        check_integer("accumulation_steps", accumulation_steps, at_least=1)
        check_integer("seed", seed, at_least=0)
        objective = objectives.get(objective)
        arguments = {
            "schedule": schedule,
            "parameterization": parameterization,
            "second_time": second_time,
            "time_scale": time_scale,
            "min_time": min_time,
            "max_time": max_time,
            "sigma_data": sigma_data,
        }
        flow_map = FlowMap(backbone, **_with_defaults(arguments, objective))
        check_momenta(objective.averages)
        objective.check(flow_map)
        if augmentation is not None:
            check_instance("augmentation", augmentation, keras.layers.Layer)
            if not flow_map.augmentation_dim:
                raise ValueError(
                    "`augmentation` needs a backbone with `augmentation_dim` above 0, "
                    "which takes augmentation labels. Received: "
                    f"augmentation={augmentation!r}, a {type(backbone).__name__} "
                    "without it"
                )

        # Coefficients and times are never cast to the backbone's half precision.
        kwargs.setdefault("dtype", backbone.dtype_policy)
        super().__init__(autocast=False, **kwargs)
        keras_private.allow_any_positional_arguments(self)  # model(x_t, 0.9, 0.1)
        self.backbone = backbone
        self._objective = objective
        self.augmentation = augmentation
        self._accumulation_steps = accumulation_steps
        self.seed = int(seed)
        self.seed_generator = keras.random.SeedGenerator(mix_seeds(self.seed))
        self._flow_map = flow_map
        self._averages = None
        self._log = None
        self._generator = None
        self._sampled_variables = ()
        self._has_warned = False
        self._warned_of = []
        self._batch_checks = self._data_checks()
        self._frozen_layers = ()
        self._sampling_plan = self._pixels = self._class_names = None
        if flow_map.data_shape is not None:
            self.build((None, *flow_map.data_shape))

    @property
    def objective(self) -> objectives.Objective:
        """What the flow map is trained for; another one is taken from the next step."""
        return self._objective

    @objective.setter
    def objective(self, objective: str | objectives.Objective) -> None:
        objective = objectives.get(objective)
        wanted, owned = (dict(one.averages) for one in (objective, self._objective))
        if wanted != owned:
            raise ValueError(
                "Another `objective` of a model must have the same `averages`, which "
                "the model owns; otherwise make another model of its backbone. "
                f"Received: averages={wanted}, the model's {owned}"
            )
        objective.check(self._flow_map)
        given = {name: getattr(self._flow_map, name) for name in objective.flow_map}
        _warn_of_what_is_not_meant(objective, given, stacklevel=3)
        self._objective = objective
        self._renew_step()

    @property
    def accumulation_steps(self) -> int:
        """Parts of a batch; another number of them is taken from the next step."""
        return self._accumulation_steps

    @accumulation_steps.setter
    def accumulation_steps(self, accumulation_steps: int) -> None:
        check_integer("accumulation_steps", accumulation_steps, at_least=1)
        self._accumulation_steps = accumulation_steps
        self._renew_step()

    def _renew_step(self) -> None:
        if self.step is not None:
            self.step = self._new_step()
            self.train_function = self.test_function = None

    # -- The pieces of the flow map

    @property
    def flow(self) -> FlowMap:
        """The flow map: the network with schedule and times, without the objective."""
        return self._flow_map

    @property
    def schedule(self) -> schedules.Schedule:
        """The noise schedule."""
        return self._flow_map.schedule

    @property
    def parameterization(self) -> parameterizations.Parameterization:
        """How the network's output becomes the flow map."""
        return self._flow_map.parameterization

    @property
    def second_time(self) -> str:
        """Second time input of the backbone: "s", or "stride" for t - s."""
        return self._flow_map.second_time

    @property
    def time_scale(self) -> float:
        """Factor of the times that the backbone sees."""
        return self._flow_map.time_scale

    @property
    def sigma_data(self) -> float:
        """Standard deviation of the data and of the noise."""
        return self._flow_map.sigma_data

    @property
    def min_time(self) -> float:
        """Start of the time range."""
        return self._flow_map.min_time

    @property
    def max_time(self) -> float:
        """End of the time range."""
        return self._flow_map.max_time

    @property
    def num_classes(self) -> int:
        """Number of labels; 0 for an unconditional model."""
        return self._flow_map.num_classes

    @property
    def augmentation_dim(self) -> int:
        """Number of augmentation labels that the backbone takes."""
        return self._flow_map.augmentation_dim

    @property
    def data_shape(self) -> tuple | None:
        """Shape of one sample, once it is known."""
        return self._flow_map.data_shape

    # -- What goes with a trained model

    @property
    def sampling_plan(self) -> samplers.SamplingPlan | None:
        """How `generate` samples where its arguments are None; None: the objective's.

        It is saved with the model, as `pixels` and `class_names` are.
        """
        return self._sampling_plan

    @sampling_plan.setter
    def sampling_plan(self, plan: samplers.SamplingPlan | None) -> None:
        if plan is not None:
            check_instance("sampling_plan", plan, SamplingPlan)
            if plan.weights != "ema":
                raise ValueError(
                    "`sampling_plan` of a model does not choose the weights, which "
                    "`generate` is told. Received: a plan with "
                    f"weights={plan.weights!r}"
                )
            if plan.guidance_scale is not None:
                plan = plan.with_arguments(guidance_scale=float(plan.guidance_scale))
            plan.completed(self.objective).check(self._flow_map)
        self._sampling_plan = plan

    @property
    def pixels(self) -> Callable | None:
        """From samples to images of bytes, such as `keras_imm.Pixels`, or None."""
        return self._pixels

    @pixels.setter
    def pixels(self, pixels: Callable | None) -> None:
        is_layer = isinstance(pixels, keras.layers.Layer)  # whose weights Keras adds
        is_saved = callable(pixels) and hasattr(pixels, "get_config")
        if pixels is not None and (is_layer or not is_saved):
            raise ValueError(
                "`pixels` must be callable and have a `get_config`, as "
                "`keras_imm.Pixels` has, and be no layer, or None. "
                f"Received: pixels={pixels!r}"
            )
        self._pixels = pixels

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """Names of the labels 0 to num_classes - 1, or None."""
        return self._class_names

    @class_names.setter
    def class_names(self, names: Sequence[str] | None) -> None:
        if names is not None:
            is_names = not isinstance(names, str) and all(
                isinstance(name, str) for name in names
            )
            if not is_names or len(names) != self.num_classes:
                raise ValueError(
                    "`class_names` must be a name for each label, here "
                    f"{self.num_classes}, or None. Received: class_names={names!r}"
                )
            names = tuple(names)
        self._class_names = names

    def to_uint8(self, samples: Any) -> np.ndarray:
        """Images of bytes from samples, by `pixels`.

        Raises:
            ValueError: If the model has no `pixels`.
        """
        if self.pixels is None:
            raise ValueError(
                "How samples become bytes is not known: give the model `pixels`, such "
                "as keras_imm.Pixels(scale=127.5, offset=127.5)."
            )
        return self.pixels(samples)

    # -- Building and calling

    def build(self, input_shape: tuple) -> None:
        """Builds the backbone for data of shape `input_shape`, batch included."""
        self._flow_map.build(input_shape[1:])
        if self.objective.averages and self._averages is None:
            self._averages = objectives.AveragedWeights(
                self.backbone, self.objective.averages
            )
            # Keras keeps the variables of lists that are attributes.
            self.averaged_weights = [
                v for each in self._averages.variables.values() for v in each
            ]
            if self.step is not None:  # compiled before the shape of the data was known
                self.step = self._new_step()
        self.built = True
        self._freeze()

    def _freeze(self) -> None:
        """Freezes the layers that were frozen in the model this one came from."""
        if self.built:
            layers = keras_private.all_layers(self)
            for i in self._frozen_layers:
                layers[i].trainable = False
            self._frozen_layers = ()

    def call(
        self,
        x_t: Any,
        t: Any = None,
        s: Any = None,
        labels: Any = None,
        guidance_scale: Any = None,
        training: bool = False,
        augmentation_labels: Any = None,
        guidance_interval: Any = None,
    ) -> Any:
        known = backend.known_value(labels)
        if known is not None:
            checked_labels(self._flow_map, known)
        return self._flow_map(
            x_t,
            self.max_time if t is None else t,
            self.min_time if s is None else s,
            labels,
            guidance_scale,
            guidance_interval,
            augmentation_labels,
            training,
        )

    # -- Training

    def compile(
        self,
        optimizer: Any,
        run_eagerly: bool = False,
        steps_per_execution: int = 1,
        jit_compile: bool | str = "auto",
        auto_scale_loss: bool = True,
        **others: Any,
    ) -> None:
        """Configures training; the loss is the objective's.

        Regularizers and `add_loss` of the backbone add nothing to it. Use the
        optimizer's weight decay. Compiling again starts the averages of the weights
        anew.

        Args:
            optimizer: Keras optimizer or its name. `use_ema=True` keeps the averaged
                weights that `generate` uses by default.
            run_eagerly: Whether layers are called one by one. Otherwise a step is
                traced, under PyTorch too: what its Python does happens once for each
                shape of a batch.
            steps_per_execution: As in `keras.Model.compile`.
            jit_compile: As in `keras.Model.compile`. Under PyTorch its compiler takes
                the traced step and the steps of `generate`; "auto" compiles on CUDA
                alone. What it cannot compile runs as traced, with a warning.
            auto_scale_loss: As in `keras.Model.compile`.
            **others: Other arguments of `keras.Model.compile`, none of which is taken.

        Raises:
            ValueError: If the optimizer accumulates gradients itself: that moves
                the average at every micro-step. Use `accumulation_steps`. Or if it
                averages weights that PyTorch's own modules hold.
            TypeError: If a loss or metrics are given.
        """
        received = list(others)
        if not isinstance(run_eagerly, bool):  # Keras's second argument is a loss
            received.append(f"run_eagerly={run_eagerly!r}")
        if received:
            raise TypeError(
                "The loss is the model's `objective`, and callbacks such as "
                "`SampleMetrics` measure samples: `compile` takes neither losses nor "
                f"metrics. Received: {', '.join(received)}"
            )
        if optimizer is None:
            raise ValueError(
                "`optimizer` must be a Keras optimizer or its name. Received: "
                "optimizer=None"
            )
        optimizer = keras.optimizers.get(optimizer)
        keras_private.prepare_inner_optimizers(optimizer, self._prepare_optimizer)
        super().compile(
            optimizer=optimizer,
            run_eagerly=run_eagerly,
            steps_per_execution=steps_per_execution,
            jit_compile=jit_compile,
            auto_scale_loss=auto_scale_loss,
        )
        self._compile_arguments = {
            "run_eagerly": run_eagerly,
            "steps_per_execution": steps_per_execution,
            "jit_compile": jit_compile,
            "auto_scale_loss": auto_scale_loss,
        }
        self._generator = None
        self._log = LossLog()
        self.step = self._new_step()
        self.train_function = self.test_function = None
        if self.built:
            self._build_optimizer()

    def _prepare_optimizer(self, optimizer: keras.optimizers.Optimizer) -> None:
        """Checks an optimizer that is to update weights, before it is built."""
        steps = optimizer.gradient_accumulation_steps
        if steps:
            raise ValueError(
                f"Use `accumulation_steps` of {type(self).__name__} in place of the "
                "optimizer's `gradient_accumulation_steps`. Received: "
                f"gradient_accumulation_steps={steps}"
            )
        self._check_averages_can_be_taken(optimizer.use_ema)
        keras_private.keep_averages_in_float32(optimizer)

    def _check_averages_can_be_taken(self, use_ema: bool) -> None:
        """Raises ValueError where averages would be kept of weights that stay raw."""
        averages = use_ema or self.objective.averages
        if averages and keras_private.has_torch_modules(self.backbone):
            raise ValueError(
                "A backbone with PyTorch's own modules (`TorchModuleWrapper`) computes "
                "with their own parameters, never with averages. Use an optimizer "
                "with `use_ema=False` and an objective without `averages`, or layers "
                f"of Keras. Received: use_ema={use_ema}, "
                f"averages={dict(self.objective.averages)}"
            )

    def _build_optimizer(self) -> None:
        together = keras_private.is_built_by_initializers(self.optimizer)
        with (
            backend.initial_values_together() if together else contextlib.nullcontext()
        ):
            self.optimizer.build(self.trainable_variables)

    def _new_step(self) -> backend.TrainStep:
        """The backend's step, handed what it needs."""
        return backend.TrainStep(self.batch_loss(), self.optimizer, self._log)

    def batch_loss(self) -> objectives.BatchLoss:
        """Draws, targets and losses of batches, as a train step takes them."""
        return objectives.BatchLoss(
            self._flow_map,
            self.objective,
            self.seed_generator,
            self.accumulation_steps,
            self.augmentation,
            self._averages,
        )

    @property
    def metrics(self) -> list:
        """The running means of the loss and of what the objective adds."""
        return [] if self._log is None else self._log.metrics

    def get_compile_config(self) -> dict:
        """Arguments of `compile` as they were given, so "auto" stays "auto"."""
        if not self.compiled:
            return {}
        optimizer = super().get_compile_config()["optimizer"]
        optimizer = keras_private.portable_optimizer_config(optimizer)
        return {"optimizer": optimizer, **self._compile_arguments}

    def compile_from_config(self, config: dict) -> None:
        """Compiles as `get_compile_config` described."""
        config = dict(config)
        optimizer = keras.saving.deserialize_keras_object(config.pop("optimizer"))
        self.compile(optimizer=optimizer, **config)

    def fit(self, *args: Any, **kwargs: Any) -> keras.callbacks.History:
        """As `keras.Model.fit`, on batches of x or (x, labels).

        The weights stay raw at the end; their averages stay in the optimizer. A data
        set with the attribute `ordered`, such as those of `keras_imm.datasets`, orders
        its batches itself: they are not shuffled. Data whose scale is not that of
        `sigma_data` are warned of, once.

        Raises:
            ValueError: If labels are outside of [0, num_classes), before a weight
                changes; if data are something else than the model takes, the last
                batch of arrays is no whole groups, or a callback cannot work with
                averaged weights; if weights were added since `compile`; or if the
                objective's `total_steps` is needed and neither given nor known from
                the data and the epochs.
        """
        given = fit_data.named_arguments(keras.Model.fit, args, kwargs)
        fit_data.check_fit_arguments(given)
        self._check_optimizer_knows_weights()
        x = given.get("x")
        if orders_itself(x):
            if given.get("steps_per_epoch") is not None:
                raise ValueError(
                    "`steps_per_epoch` of a data set that orders its batches itself is "
                    "an argument of the data set. Received: steps_per_epoch="
                    f"{given['steps_per_epoch']!r}"
                )
            given["shuffle"] = False
        given["callbacks"] = adapted_callbacks(
            given.get("callbacks"), self._all_averages
        )
        checked = fit_data.checked_for_fit(
            given,
            self._data_checks(),
            self.objective.rows_together,
            self.accumulation_steps,
            self.objective.rows_argument,
        )
        self._plan_progress(**given)
        # For callbacks that keep the position in the data.
        shuffled = hasattr(x, "shape") and given.get("shuffle", True)
        self._fit_data = (x, bool(shuffled))
        try:
            with self._raw_weights_kept():
                return super().fit(**checked)
        finally:
            del self._fit_data
            if hasattr(x, "end_epoch"):  # an epoch that was cut short counts
                x.end_epoch()

    def _data_checks(self) -> DataChecks:
        return DataChecks(self.num_classes, self.sigma_data, self._warned_of)

    def _check_optimizer_knows_weights(self) -> None:
        """Raises ValueError if weights came or went since the model was compiled."""
        optimizer = getattr(self, "optimizer", None)
        if optimizer is None or not optimizer.built:
            return
        optimized = keras_private.optimized_variables(optimizer)
        self._check_weights_are_there(optimized)
        for inner in keras_private.inner_optimizers(optimizer):
            check_half_precision(inner)
        known = {id(v) for v in optimized}
        new = [v.path for v in self.trainable_variables if id(v) not in known]
        if new:
            raise ValueError(
                "The model has weights that its optimizer was not built for, such as "
                f"those of `enable_lora`: compile it again. Received: {new[0]!r} and "
                f"{len(new) - 1} others"
            )

    def _check_weights_are_there(self, weights: list) -> None:
        """Raises ValueError if the model has these no more."""
        layers = [self.backbone] + ([self.augmentation] if self.augmentation else [])
        present = {i for layer in layers for i in keras_private.variable_ids(layer)}
        lost = [v.path for v in weights if id(v) not in present]
        if lost:
            raise ValueError(
                "The model has no longer the weights that its optimizer was built for: "
                "use `quantize` of the model, not of its layers, or compile it again. "
                f"Received: no {lost[0]!r} and {len(lost) - 1} others"
            )

    def _all_averages(self) -> list[keras.Variable]:
        """The variables that hold averages of the weights: optimizer's, objective's."""
        pairs = keras_private.moving_averages(getattr(self, "optimizer", None))
        return [average for _, average in pairs] + [
            v for _, v in self._named_averages()
        ]

    def _plan_progress(
        self,
        x: Any = None,
        y: Any = None,
        batch_size: int | None = None,
        epochs: int = 1,
        *_: Any,
        steps_per_epoch: int | None = None,
        validation_split: float = 0.0,
        **__: Any,
    ) -> None:
        """Fills in the objective's `total_steps`, which its progress is relative to."""
        total = self.objective.total_steps
        if total is not None:
            done = getattr(getattr(self, "optimizer", None), "iterations", 0)
            if (
                self.objective.needs_total_steps
                and int(ops.convert_to_numpy(done)) >= total
            ):
                warnings.warn(
                    f"All {total} steps of {type(self.objective).__name__} are done: "
                    "its progress stays at 1. Give it a larger `total_steps`.",
                    stacklevel=3,
                )
            return
        steps = steps_per_epoch or steps_per_epoch_of(x, batch_size, validation_split)
        if steps is not None:
            # Of this model alone: others may have been given the same object.
            own = copy.copy(self.objective)
            own.total_steps = int(steps) * int(epochs)
            self.objective = own
        elif self.objective.needs_total_steps:
            raise ValueError(
                f"{type(self.objective).__name__} follows the progress of training: "
                "give it `total_steps`, or give `fit` a `steps_per_epoch` or data of "
                f"known length. Received: total_steps=None, data {type(x).__name__}"
            )

    @contextlib.contextmanager
    def _raw_weights_kept(self) -> Iterator[None]:
        """Keeps Keras from overwriting the weights with their averages."""
        optimizer = getattr(self, "optimizer", None)
        if optimizer is None:
            yield
            return
        optimizer.finalize_variable_values = lambda var_list: None
        try:
            yield
        finally:
            del optimizer.finalize_variable_values

    def evaluate(self, *args: Any, **kwargs: Any) -> Any:
        """As `keras.Model.evaluate`, with the raw weights.

        Times and noise start from the same state each time, which is a function of
        the model's seed, so the same weights and data give the same loss. The
        stream that training draws from does not move, nor does a data set with the
        attribute `ordered`.

        Returns:
            The loss; with `return_dict=True` a dictionary of it and of the objective's
            other scalars.
        """
        given = fit_data.named_arguments(keras.Model.evaluate, args, kwargs)
        fit_data.check_fit_arguments(given)
        if not self.compiled:
            raise ValueError("You must call `compile()` before using the model.")
        source = source_of(given.get("x"))
        if not given.get("_use_cached_eval_dataset"):
            given["x"] = fit_data.checked_data(
                self._data_checks(), source, given.get("y"), shuffle=False
            )
        position = source.get_state() if orders_itself(source) else None
        state = ops.convert_to_numpy(self.seed_generator.state)
        assign_state(
            self.seed_generator.state, [mix_seeds(self.seed, _EVALUATION_STREAM), 0]
        )
        try:
            return _loss_of(super().evaluate(**given))
        finally:
            assign_state(self.seed_generator.state, state)
            if position is not None:
                source.set_state(position)

    def train_on_batch(self, *args: Any, **kwargs: Any) -> Any:
        """As `keras.Model.train_on_batch`; returns what `evaluate` does.

        The first batch that is given so is warned of where its scale is not that of
        `sigma_data`.
        """
        given = fit_data.named_arguments(keras.Model.train_on_batch, args, kwargs)
        return _loss_of(super().train_on_batch(**self._checked_batch(given)))

    def test_on_batch(self, *args: Any, **kwargs: Any) -> Any:
        """As `keras.Model.test_on_batch`; returns what `evaluate` does."""
        given = fit_data.named_arguments(keras.Model.test_on_batch, args, kwargs)
        return _loss_of(super().test_on_batch(**self._checked_batch(given)))

    def _checked_batch(self, given: dict) -> dict:
        fit_data.check_fit_arguments(given)
        self._batch_checks((given.get("x"), given.get("y")))
        return given

    # -- Flow maps and samples

    def flow_map(
        self,
        x_t: Any,
        t: Any,
        s: Any,
        labels: Any = None,
        guidance_scale: float | None = None,
        weights: str | Mapping[str, Any] = "ema",
        guidance_interval: tuple[float, float] | None = None,
    ) -> Any:
        """f_{s,t}(x_t), compiled and without gradient.

        `model(x_t, t, s, ...)` is the same with the raw weights, differentiable.

        Args:
            x_t: Samples at time t, shape (batch, ...).
            t: Times in [0, 1], shape (batch,) or a scalar.
            s: Times in [0, t], shape (batch,) or a scalar.
            labels: Integers in [0, num_classes], shape (batch,). Default: the null
                label.
            guidance_scale: Weight of classifier-free guidance (Eq. 14), or None
                for 1.
            weights: "ema" for the optimizer's averages, "raw" for the model's own, or
                arrays by the names of `named_weights`.
                Without an averaging optimizer, or before its first step, the two
                are the same.
            guidance_interval: Pair of times outside of which guidance is off.

        Returns:
            Tensor of the shape of x_t, float32 or the wider dtype of x_t.

        Raises:
            ValueError: If the times are out of order or range, the labels out of
                range, or an argument not known.
        """
        for name, time in (("t", t), ("s", s)):
            time = ops.convert_to_numpy(time)
            if not np.all((time >= 0.0) & (time <= 1.0)):
                raise ValueError(f"`{name}` must be in [0, 1]. Received: {name}={time}")
        if np.any(ops.convert_to_numpy(s) > ops.convert_to_numpy(t)):
            raise ValueError(f"Times must satisfy s <= t. Received: s={s}, t={t}")
        plan = SamplingPlan(
            guidance_scale=guidance_scale,
            guidance_interval=guidance_interval,
            weights=_of_plan(weights),
        )
        plan.check_guidance(self._flow_map)
        x_t = at_least_float32(x_t)
        labels = checked_labels(self._flow_map, labels)
        self.warn_of_untrained_labels(labels, plan)
        for name, value in (("t", t), ("s", s), ("labels", labels)):
            shape = () if value is None else tuple(np.shape(value))
            if shape not in ((), (x_t.shape[0],)):
                raise ValueError(
                    f"`{name}` must be a scalar or of shape (batch,), here "
                    f"({x_t.shape[0]},). Received: shape {shape}"
                )
        if labels is not None:
            labels = np.broadcast_to(labels, x_t.shape[:1])
        values = self.weights_for_sampling(weights)
        return self._generator.flow_map(values, x_t, t, s, labels, plan)

    def generate(
        self,
        labels: Any = None,
        num_samples: int | None = None,
        num_steps: int | None = None,
        guidance_scale: float | None = None,
        sampler: str | samplers.Sampler | None = None,
        time_grid: str | Sequence[float] | None = None,
        weights: str | Mapping[str, Any] = "ema",
        noise: Any = None,
        seed: int | None = None,
        batch_size: int = 256,
        verbose: str | int = "auto",
        guidance_interval: tuple[float, float] | None = None,
    ) -> np.ndarray:
        """Generates samples from noise.

        Args:
            labels: Integer labels in [0, num_classes], shape (num_samples,) or a
                scalar. Default: the null label.
            num_samples: Number of samples. Default: as many as labels or rows of
                noise, else 1.
            num_steps: Steps, a positive integer. Default of this, of `sampler` and of
                `time_grid`: those of `sampling_plan`, else the objective's; for moment
                matching 2, "pushforward" and "uniform". Another number of steps than
                that of a plan's list of eta takes the objective's grid.
            guidance_scale: Weight of classifier-free guidance (Eq. 14). Default of
                this and of `guidance_interval`: those of `sampling_plan`, else 1.
            sampler: "pushforward" (Algorithm 4), "restart" (Algorithm 5), "euler",
                "heun" or a `keras_imm.samplers.Sampler`.
            time_grid: "uniform" (Eq. 117), "edm" (Eq. 118), or the values of
                eta = sigma / alpha between `max_time` and `min_time` in sampling
                order: a list of n makes n + 1 steps, such as [1.4] for two.
            weights: "ema" for the optimizer's averages, "raw" for the model's own, or
                arrays by the names of `named_weights`.
                Without an averaging optimizer, or before its first step, the two
                are the same.
            noise: Standard-normal noise to start from, shape (num_samples, ...). With
                it the pushforward sampler is repeatable across backends; others are
                with all draws, shape (1 + sampler.noises(num_steps), num_samples, ...).
            seed: Non-negative integer that makes the samples repeatable on one
                backend for one `batch_size`. Default: the model's random stream.
            batch_size: Samples in one pass of the network.
            verbose: 0 for silence, 1 for a progress bar, "auto" for a progress bar
                on long requests.
            guidance_interval: Pair of times outside of which guidance is off.

        Returns:
            float32 array (num_samples, ...) in the range of the training data.

        Raises:
            ValueError: If labels are out of range, sizes disagree, or an argument
                is not known.
        """
        plan = self.own_plan(
            num_steps=num_steps,
            sampler=sampler,
            time_grid=time_grid,
            guidance_scale=guidance_scale,
            guidance_interval=guidance_interval,
            weights=_of_plan(weights),
        ).completed(self.objective)
        times = plan.checked_times(self._flow_map)
        request = SamplingRequest.checked(
            self._flow_map, 1 + plan.noises(), labels, num_samples, noise
        )
        check_integer("batch_size", batch_size, at_least=1)
        self.warn_of_untrained_labels(request.labels, plan)
        batch_size = min(batch_size, request.count)
        stream = self._sampling_stream(seed)
        values = self.weights_for_sampling(weights)
        sampling = self._generator  # which that has looked at

        batches = -(-request.count // batch_size)
        evaluations = batches * plan.evaluations()
        verbose = evaluations >= _LONG_REQUEST if verbose == "auto" else verbose
        progress = keras.utils.Progbar(evaluations) if verbose else None
        samples = []
        for batch in request.batches(batch_size):
            draws = None
            if batch.noise is None:
                x = sampling.draw_noise(stream, (batch_size, *self.data_shape))
            else:
                x = at_least_float32(batch.noise[0] * self.sigma_data)
                if len(batch.noise) > 1:
                    draws = at_least_float32(batch.noise[1:] * self.sigma_data)
            x = sampling.sample(values, plan, times, x, batch.labels, draws, stream)
            if progress is not None:
                progress.add(plan.evaluations())
            samples.append(ops.convert_to_numpy(x))
        return np.concatenate(samples)[: request.count].astype("float32", copy=False)

    def predict(
        self,
        x: Any,
        batch_size: int | None = None,
        verbose: str | int = "auto",
        steps: int | None = None,
        callbacks: list | None = None,
    ) -> np.ndarray:
        """Samples as `generate` does where nothing is said: by the model's own plan.

        Args:
            x: Integer labels of shape (num_samples,), or for an unconditional model
                noise of standard deviation 1, shape (num_samples, ...). An array, or
                an iterable of batches.
            batch_size: Rows in one pass of the network. Default: 32 for arrays.
            verbose: As in `generate`.
            steps: Batches to take from an iterable.
            callbacks: Keras callbacks.

        Returns:
            float32 array (num_samples, ...).
        """
        if isinstance(x, (list, tuple)) and all(np.ndim(row) == 0 for row in x):
            x = np.asarray(x)  # [3, 1, 4]: three labels, not (x, y, sample_weight)
        if hasattr(x, "shape") or isinstance(x, (list, tuple)):
            batches = [x]
        else:
            batches = itertools.islice(x, steps)
        callbacks = adapted_callbacks(callbacks, self._all_averages)
        callbacks = keras.callbacks.CallbackList(callbacks, model=self)
        callbacks.on_predict_begin()
        outputs = []
        for i, batch in enumerate(batches):
            batch, _, _ = keras.utils.unpack_x_y_sample_weight(batch)
            batch = ops.convert_to_numpy(batch)
            if self.num_classes and batch.ndim == 2 and batch.shape[1] == 1:
                batch = batch[:, 0]  # as `fit` takes them
            callbacks.on_predict_batch_begin(i)
            given = {"labels": batch} if self.num_classes else {"noise": batch}
            size = batch_size or 32
            outputs.append(self.generate(**given, batch_size=size, verbose=verbose))
            callbacks.on_predict_batch_end(i, {"outputs": outputs[-1]})
        callbacks.on_predict_end()
        return np.concatenate(outputs)

    def predict_on_batch(self, x: Any) -> np.ndarray:
        """As `predict`, in one pass of the network."""
        return self.predict(x, batch_size=max(1, len(x)), verbose=0)

    def named_weights(self) -> dict[str, Any]:
        """Values of the backbone's weights by names that any model like it has.

        Returns:
            Tensors by the weights' paths within the backbone.
        """
        weights = self._weights_by_name()
        values = keras_private.values_of(list(weights.values()))
        return dict(zip(weights, values, strict=True))

    def _weights_by_name(self) -> dict[str, keras.Variable]:
        weights = keras_private.weights_made_trainable(self.backbone)
        return {_name_within(self.backbone, weight): weight for weight in weights}

    def weights_for_sampling(self, weights: str | Mapping[str, Any] = "ema") -> list:
        """Values of the flow map's variables.

        Args:
            weights: "ema" for the optimizer's averages, "raw" for the model's own, or
                arrays by the names of `named_weights`, such as
                `keras_imm.averages.reconstruct` makes.

        Returns:
            List of tensors, in the order of `FlowMap.variables`.

        Raises:
            ValueError: If the model is not built or `weights` not known.
        """
        if not isinstance(weights, Mapping):
            check_choice("weights", weights, samplers.plan.WEIGHTS)
        if not self.built:
            raise ValueError(
                "The shape of the data is not known yet: train the model, call it on "
                "data, or `build` it before sampling."
            )
        self.hold_values()
        variables = self._sampling().variables
        if isinstance(weights, Mapping):
            return self._with_given(variables, weights)
        averages = self._optimizer_averages() if weights == "ema" else {}
        if not averages:
            return keras_private.values_of(variables)
        values = keras_private.values_of([averages.get(id(v), v) for v in variables])
        return [
            value
            if variable.dtype == keras.backend.standardize_dtype(value.dtype)
            else ops.cast(value, variable.dtype)  # of half-precision weights
            for variable, value in zip(variables, values, strict=True)
        ]

    def _with_given(self, variables: list, given: Mapping[str, Any]) -> list:
        """Values of the variables, of which the weights are given."""
        own = self._weights_by_name()
        for name in own.keys() | given.keys():
            shapes = [
                tuple(each[name].shape) if name in each else None
                for each in (own, given)
            ]
            if shapes[0] != shapes[1]:
                raise ValueError(
                    "`weights` must have the names and shapes of `named_weights`. "
                    f"{name!r} has the shape {shapes[0]}. Received: {shapes[1]}"
                )
        names = {id(weight): name for name, weight in own.items()}
        values = keras_private.values_of(variables)
        return [
            ops.convert_to_tensor(given[names[id(v)]], v.dtype)
            if id(v) in names
            else value
            for v, value in zip(variables, values, strict=True)
        ]

    def clone_backbone(
        self, weights: str | Mapping[str, Any] = "ema"
    ) -> keras.layers.Layer:
        """A copy of the backbone, to start another model from.

        Args:
            weights: "ema" for the optimizer's averages, "raw" for the model's own.

        Returns:
            A built layer of the backbone's class.

        Example:

        ```python
        backbone = trained.clone_backbone(weights="ema")
        model = keras_imm.FlowMapModel(backbone, objective="flow_matching")
        ```
        """
        values = self.weights_for_sampling(weights)
        copy = FlowMap.from_config(self._flow_map.get_config())
        copy.build(self.data_shape)
        for variable, value in zip(copy.variables, values, strict=True):
            variable.assign(ops.copy(value))  # JAX's training gives buffers away
        return copy.backbone

    def own_plan(self, **arguments: Any) -> SamplingPlan:
        """`sampling_plan`, or one without values, with some values in place of its own.

        Args:
            **arguments: Of `SamplingPlan`; None keeps the plan's own.

        Returns:
            A plan in which None stands for the objective's value.

        Raises:
            ValueError: If an argument is out of its range, or contradicts the plan.
        """
        if self.sampling_plan is not None:
            return self.sampling_plan.with_arguments(**arguments)
        return SamplingPlan(**arguments)

    def warn_of_untrained_labels(
        self, labels: np.ndarray | None, plan: SamplingPlan
    ) -> None:
        """Warns, once, if sampling needs a label that was never trained.

        That is the null label with `label_dropout=0.0`, or of an objective that leaves
        it out, and all others with 1.0.

        Args:
            labels: Integers in [0, num_classes], or None for the null label.
            plan: How they are sampled.
        """
        dropout = self.objective.label_dropout
        both = 0.0 < dropout < 1.0 and self.objective.jumps_without_label
        if not self.num_classes or both or self._has_warned:
            return
        labels = np.asarray(self.num_classes if labels is None else labels)
        guided = plan.guidance_scale not in (None, 1.0)
        if dropout == 1.0:
            untrained = "Labels other than the null label"
            needed = np.any(labels != self.num_classes)
        else:
            what = "guidance" if guided else "sampling without a label"
            untrained = f"The null label, which {what} needs,"
            needed = guided or np.any(labels == self.num_classes)
        if needed:
            self._has_warned = True
            verb = "are" if dropout == 1.0 else "is"
            how = f"trained with `label_dropout={dropout}`"
            if 0.0 < dropout < 1.0:
                how = f"trained in jumps by {type(self.objective).__name__}"
            warnings.warn(f"{untrained} {verb} not {how}.", stacklevel=3)

    def _sampling(self) -> samplers.Generator:
        own = keras_private.variable_ids(self.backbone)
        if self._generator is None or own != self._sampled_variables:
            self._sampled_variables = own
            compiled = not self.run_eagerly
            self._generator = samplers.Generator(
                self._flow_map, compiled, self.jit_compile
            )
        return self._generator

    def _optimizer_averages(self) -> dict[int, keras.Variable]:
        """The optimizer's average of a weight by the weight's `id`.

        Empty before the optimizer's first step.
        """
        optimizer = getattr(self, "optimizer", None)
        pairs = keras_private.moving_averages(optimizer)
        if not pairs or int(ops.convert_to_numpy(optimizer.iterations)) == 0:
            return {}
        self._check_weights_are_there([weight for weight, _ in pairs])
        return {id(weight): average for weight, average in pairs}

    def _restart_averages(self) -> None:
        """Has the optimizer's averages start anew at the weights."""
        for weight, average in keras_private.moving_averages(
            getattr(self, "optimizer", None)
        ):
            average.assign(weight)

    def _sampling_stream(self, seed: int | None) -> keras.random.SeedGenerator:
        if seed is None:
            return self.seed_generator
        check_integer("seed", seed, at_least=0)
        return keras.random.SeedGenerator(mix_seeds(int(seed)))

    # -- Saving and loading

    def quantize(self, *args: Any, **kwargs: Any) -> None:
        """As `keras.Model.quantize`, of the weights that `generate` samples.

        These are the averages, where an optimizer keeps them: they take the place of
        the raw weights. The model is no longer compiled: quantized weights are not
        trained.

        Raises:
            ValueError: If the model's objective keeps averages of weights, which would
                no longer fit: quantize another model of `clone_backbone()`.
        """
        if self._named_averages():
            raise ValueError(
                f"{type(self.objective).__name__} keeps averages of weights, which "
                "quantized ones do not fit: quantize "
                "FlowMapModel(model.clone_backbone(), ...) with another `objective`."
            )
        values = self.weights_for_sampling("ema")
        for variable, value in zip(self._flow_map.variables, values, strict=True):
            variable.assign(ops.copy(value))
        super().quantize(*args, **kwargs)
        self.compiled, self.optimizer, self.step = False, None, None
        self.train_function = self.test_function = None

    def save(
        self,
        filepath: Any,
        overwrite: bool = True,
        zipped: bool | None = None,
        **kwargs: Any,
    ) -> None:
        """As `keras.Model.save`, to a file that ends in ".keras".

        A file that is there stays as it is until the new one is complete.

        Raises:
            OSError: If the disk is full or read-only, among others. It names the file.
            ValueError: If it ends otherwise, such files would lack the averages; or if
                layers have LoRA and their optimizer averages, for Keras's files hold
                the sum of a layer's own weights and those of low rank.
        """
        if not str(filepath).endswith(".keras"):
            raise ValueError(
                '`filepath` must end in ".keras". For weights alone there is '
                "`save_weights`, for sampling `save_to_preset`. "
                f"Received: filepath={str(filepath)!r}"
            )
        self._check_averages_fit_files()
        options = {"overwrite": overwrite, "zipped": zipped, **kwargs}
        if not overwrite or zipped is False or not _is_local(filepath):
            super().save(filepath, **options)
            return
        with atomic_file(filepath) as unfinished:
            super().save(unfinished, **options)

    def save_weights(
        self,
        filepath: Any,
        overwrite: bool = True,
        max_shard_size: int | float | None = None,
        **kwargs: Any,
    ) -> None:
        """As `keras.Model.save_weights`.

        A file that is there stays as it is until the new one is complete.

        Raises:
            ValueError: As `save` of a model with LoRA, or if the file does not end in
                ".weights.h5".
            OSError: If the disk is full or read-only, among others. It names the file.
        """
        self._check_averages_fit_files()
        options = {"overwrite": overwrite, "max_shard_size": max_shard_size, **kwargs}
        is_file = overwrite and str(filepath).endswith(".weights.h5")
        if not is_file or not _is_local(filepath):
            super().save_weights(filepath, **options)
            return
        with atomic_file(filepath) as unfinished, hdf5_file(unfinished) as file:
            super().save_weights(file, **options)

    def _check_averages_fit_files(self) -> None:
        layers = keras_private.all_layers(self.backbone)
        has_lora = any(getattr(layer, "lora_enabled", False) for layer in layers)
        if has_lora and self._all_averages():
            raise ValueError(
                "A file holds the sum of a layer's weights and those of its LoRA, "
                "which averages of the latter do not fit. Save samples' weights by "
                "`save_to_preset`, a run by `keras_imm.callbacks.TrainingCheckpoint`, "
                "or compile with `use_ema=False`."
            )

    def export(self, *args: Any, **kwargs: Any) -> None:
        """Not taken: `keras_imm.serving` exports what `generate` does.

        Raises:
            NotImplementedError: Always. What `keras.Model.export` would export is one
                raw jump of the flow map.
        """
        raise NotImplementedError(
            "Use `keras_imm.serving.export_saved_model` or `export_onnx`, which export "
            "what `generate` does: averaged weights, labels and sampling steps."
        )

    def get_config(self) -> dict[str, Any]:
        """Constructor arguments, for saving.

        Raises:
            ValueError: If Keras writes a file in the format that ends in ".h5", which
                could not be loaded.
        """
        if keras_private.is_writing_legacy_file():
            raise ValueError(
                'The file of a model must end in ".keras": use `model.save`. Received: '
                'one that ends in ".h5", which Keras has begun and left empty'
            )
        config = self._flow_map.get_config()
        for name in ("objective", "augmentation"):
            config[name] = keras.saving.serialize_keras_object(getattr(self, name))
        for name in ("accumulation_steps", "seed", "name"):
            config[name] = getattr(self, name)
        layers = keras_private.all_layers(self)
        config["frozen_layers"] = [
            i for i, layer in enumerate(layers) if not layer.trainable
        ]
        return config | self._extras_config()

    def _extras_config(self) -> dict:
        """What goes with a trained model and has been set; files need not have it."""
        config = {}
        if self.sampling_plan is not None:
            config["sampling_plan"] = self.sampling_plan.get_config()
        if self.pixels is not None:
            config["pixels"] = keras.saving.serialize_keras_object(self.pixels)
        if self.class_names is not None:
            config["class_names"] = list(self.class_names)
        return config

    @classmethod
    def from_config(
        cls, config: dict, custom_objects: dict | None = None
    ) -> "FlowMapModel":
        """The model that `get_config` described, with fresh weights."""
        config = dict(config)
        num_classes = config.pop("num_classes")
        frozen_layers = config.pop("frozen_layers")
        changed_layers = config.pop("changed_layers", ())
        config.setdefault("augmentation", None)
        plan, class_names = (
            config.pop(name, None) for name in ("sampling_plan", "class_names")
        )
        pixels = keras.saving.deserialize_keras_object(
            config.pop("pixels", None), custom_objects=custom_objects
        )
        for name, value in config.items():
            if isinstance(value, dict):
                config[name] = keras.saving.deserialize_keras_object(
                    value, custom_objects=custom_objects
                )
        if num_classes and not hasattr(config["backbone"], "num_classes"):
            config["backbone"].num_classes = num_classes
        model = cls(**config)
        model.sampling_plan = None if plan is None else SamplingPlan.from_config(plan)
        model.pixels, model.class_names = pixels, class_names
        model.flow.change_layers(changed_layers)
        model._frozen_layers = frozen_layers
        model._freeze()
        return model

    @classmethod
    def from_preset(
        cls, preset: str | os.PathLike[str], load_weights: bool = True
    ) -> "FlowMapModel":
        """Makes a trained model.

        `generate` samples it as the preset says where an argument is None, and
        `to_uint8` makes images of the samples.

        Args:
            preset: A name of `keras_imm.presets.names()`, a folder that
                `save_to_preset` wrote, or "hf://user/name" for such a folder on the
                Hugging Face hub.
            load_weights: Whether to load the weights, or to leave new ones.

        Returns:
            A model of this class or a subclass, not compiled.

        Raises:
            ValueError: If there is no such preset, or it makes a model of another
                class or has no weights.
            OSError: If it cannot be fetched; the message says what to download.

        Example:

        ```python
        model.save_to_preset("digits")
        model = keras_imm.FlowMapModel.from_preset("digits")
        images = model.generate(labels=[3, 1, 4])
        ```
        """
        check_boolean("load_weights", load_weights)
        return presets.load(preset, cls, load_weights)

    def save_to_preset(
        self,
        folder: str | os.PathLike[str],
        weights: str | Mapping[str, Any] = "ema",
        dtype: str = "float16",
        description: Mapping[str, Any] | None = None,
        model_card: str | None = None,
    ) -> None:
        """Saves what sampling needs as a folder, for `from_preset` on any backend.

        The optimizer, its averages and the random state are left out: `save` keeps
        them. The folder has config.json, model.weights.h5, metadata.json and, if it
        is given, README.md. It is there whole or not at all.

        Args:
            folder: The folder to make. A preset that is there is replaced.
            weights: The weights to save: "ema" for the optimizer's averages, "raw" for
                the model's own.
            dtype: Type of the weights on the disk, "float16" or "float32".
                `from_preset` makes variables of the model's own type of them. Float16
                keeps 11 significant bits of a weight.
            description: What metadata.json says of the training, under "training":
                data, licence, command, seed, measured quality, or anything else that
                JSON can hold.
            model_card: Text of README.md, in Markdown.

        Raises:
            ValueError: If there is something else in the folder, a weight does not
                fit into `dtype`, or the model's class is not registered for saving.
            OSError: If the disk is full or read-only, among others.
        """
        if description is not None:
            check_instance("description", description, Mapping)
        if model_card is not None:
            check_instance("model_card", model_card, str)
        values = self.weights_for_sampling(weights)
        folder = presets.check_place(folder)
        saved = presets.make(presets.serialized(self), type(self), "The model")
        for variable, value in zip(saved.flow.variables, values, strict=True):
            variable.assign(ops.copy(value))  # JAX's training gives buffers away
        about = {
            "parameter_count": self.backbone.count_params(),
            "objective": keras.saving.serialize_keras_object(self.objective),
            "sampling_plan": self.own_plan().completed(self.objective).get_config(),
            "pixels": keras.saving.serialize_keras_object(self.pixels),
            "class_names": self.class_names,
            "image_shape": self.data_shape,
            "weights": "given" if isinstance(weights, Mapping) else weights,
            "training": dict(description or {}),
        }
        presets.save(folder, saved, about, dtype, model_card)

    def get_build_config(self) -> dict | None:
        """Shape of the data, for backbones that do not know it."""
        if self.data_shape is None:
            return None
        return {"input_shape": (None, *self.data_shape)}

    def build_from_config(self, config: dict) -> None:
        """Builds for the saved shape of the data."""
        if config and not self.built:
            self.build(tuple(config["input_shape"]))

    def save_own_variables(self, store: dict) -> None:
        """Saves what Keras leaves out: random states, averages, names of weights.

        Raises:
            ValueError: As `save` of a model with LoRA.
        """
        self._check_averages_fit_files()
        for i, state in enumerate(random_states(self)):
            store[f"random_state_{i}"] = ops.convert_to_numpy(state).astype("int64")
        for name, average in self._named_averages():
            store[name] = ops.convert_to_numpy(average)
        store["weights"] = np.frombuffer(json.dumps(self._inventory()).encode(), "u1")
        if keras_private.moving_averages(getattr(self, "optimizer", None)):
            store["has_averages"] = np.ones(1, "u1")

    def load_own_variables(self, store: dict) -> None:
        """Restores the states of the random streams, and the objective's averages.

        Warns if the file has averages of the optimizer, which this model does not take.

        Raises:
            ValueError: If the file is that of a model with other weights. Keras would
                leave out those that this model does not have.
        """
        saved = json.loads(np.asarray(store["weights"]).tobytes())
        for theirs, ours in itertools.zip_longest(saved, self._inventory()):
            if theirs is None or ours is None or theirs[1] != ours[1]:
                described = [
                    "no weight" if one is None else f"{one[0]} of shape {tuple(one[1])}"
                    for one in (theirs, ours)
                ]
                raise ValueError(
                    f"Weights do not fit: the file has {described[0]}, "
                    f"the model {described[1]}"
                )
        states = random_states(self)
        averages = self._named_averages()
        expected = len(states) + len(averages)
        found = len(set(store.keys()) - {"weights", "has_averages"})
        if found != expected:
            raise ValueError(
                f"Expected {len(states)} random states and {len(averages)} averages, "
                f"found {found} of both."
            )
        optimizer = getattr(self, "optimizer", None)
        if "has_averages" in store and not keras_private.moving_averages(optimizer):
            warnings.warn(
                "The file has averages of the weights, which this model does not take: "
                "`generate` will sample the raw weights. Compile the model with "
                "`use_ema=True` before, and load without `compile=False`; or sample a "
                "preset of `save_to_preset`.",
                stacklevel=2,
            )
        for i, state in enumerate(states):
            assign_state(state, store[f"random_state_{i}"])
        for name, average in averages:
            average.assign(np.asarray(store[name]))

    def _named_averages(self) -> list[tuple[str, keras.Variable]]:
        """The objective's averages by the names under which they are saved."""
        if self._averages is None:
            return []
        return [
            (f"{name}_average_{i}", average)
            for name, averages in self._averages.variables.items()
            for i, average in enumerate(averages)
        ]

    def _inventory(self) -> list:
        """Path within the model and shape of every weight, in Keras's order."""
        averages = {id(average) for _, average in self._named_averages()}
        return [
            ["/".join(v.path.split("/")[1:]), list(v.shape)]
            for v in self.weights
            if id(v) not in averages
        ]

    def load_weights(self, filepath: Any, **kwargs: Any) -> None:
        """As `keras.Model.load_weights`; a file that does not fit changes nothing.

        Averages are loaded with the optimizer's state. From a file that has none for
        this optimizer, of which Keras warns, they start anew at the loaded weights.

        Raises:
            ValueError: If the file cannot be read or does not fit the model; it
                names the file and the first weight that does not fit.
        """
        variables = self.weights + random_states(self)
        if self.compiled:
            variables = variables + self.optimizer.variables
        before = [ops.convert_to_numpy(v) for v in variables]
        try:
            with warnings.catch_warnings(record=True, action="always") as caught:
                super().load_weights(filepath, **kwargs)
        except Exception as error:
            for variable, value in zip(variables, before, strict=True):
                variable.assign(value)
            raise ValueError(
                f"Cannot load weights from {str(filepath)!r}: {error}"
            ) from error
        for warning in caught:
            warnings.warn_explicit(
                warning.message, warning.category, warning.filename, warning.lineno
            )
        if any("loading for optimizer" in str(one.message) for one in caught):
            # The file has no averages for this optimizer.
            self._restart_averages()

    def set_weights(self, weights: list) -> None:
        """As `keras.Model.set_weights`; averages start anew at them."""
        self.hold_values()
        super().set_weights(weights)
        self._restart_averages()


def _with_defaults(arguments: dict, objective: objectives.Objective) -> dict:
    """Arguments of a flow map: the objective's, then the usual, in place of None."""
    wanted = _FLOW_MAP_DEFAULTS | dict(objective.flow_map)
    _warn_of_what_is_not_meant(objective, arguments, stacklevel=4)
    return {
        name: wanted[name] if value is None else value
        for name, value in arguments.items()
    }


def _warn_of_what_is_not_meant(
    objective: objectives.Objective, arguments: dict, stacklevel: int
) -> None:
    """Warns of arguments of a flow map other than the objective wants."""
    for name, value in objective.flow_map.items():
        given = arguments[name]
        if given is not None and _value_of(name, given) != _value_of(name, value):
            warnings.warn(
                f"{type(objective).__name__} is meant for {name}={value!r}. "
                f"Received: {name}={given!r}",
                stacklevel=stacklevel,
            )


def _value_of(name: str, argument: Any) -> Any:
    """An argument as what can be compared: of a piece, its class and its config."""
    module = {"schedule": schedules, "parameterization": parameterizations}.get(name)
    if module is None:
        return argument
    piece = module.get(argument)
    return type(piece), piece.get_config()


def _of_plan(weights: str | Mapping[str, Any]) -> str:
    """What a `SamplingPlan` is told, where the weights themselves may be given."""
    return "raw" if isinstance(weights, Mapping) else weights


def _loss_of(logs: Any) -> Any:
    """The loss, where Keras lists it with the objective's other scalars."""
    return logs[0] if isinstance(logs, list) else logs


def _name_within(layer: keras.layers.Layer, variable: keras.Variable) -> str:
    """The path of a variable of a layer from that layer on."""
    path = variable.path
    return path.partition(f"{layer.name}/")[2] or path


def _is_local(path: Any) -> bool:
    """Whether it is the path of a file, and no address or folder."""
    is_path = isinstance(path, str | os.PathLike)
    return is_path and not (keras_private.is_remote_path(path) or os.path.isdir(path))
