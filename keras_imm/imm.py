"""The model: a backbone and the pieces that turn it into a flow map."""

import contextlib
import itertools
import json
import warnings
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_imm import (
    kernels,
    objective,
    parameterizations,
    schedules,
    time_mappings,
    trainers,
    weightings,
)
from keras_imm.generation import Generation
from keras_imm.precision import at_least_float32
from keras_imm.backend.random_streams import assign_state, mix_seeds, random_states
from keras_imm.validation import (
    check_batch_size,
    check_choice,
    check_fraction,
    check_instance,
    check_integer,
    check_positive_number,
)

_PIECES = ("schedule", "parameterization", "time_mapping", "kernel", "weighting")
_EVALUATION_STREAM = 1


@keras.saving.register_keras_serializable(package="keras_imm")
class IMM(Generation, trainers.get(), keras.Model):
    """Inductive Moment Matching: a few-step generator trained in one stage.

    The model learns a flow map f_{s,t} that carries samples at time t to time s, by
    matching the distribution it reaches from t with the one it reaches from a
    slightly earlier r.

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
        schedule: "flow_matching", "cosine" or a `keras_imm.schedules.Schedule`.
        parameterization: "euler_fm", "simple_edm", "identity" or a
            `keras_imm.parameterizations.Parameterization`.
        time_mapping: "eta_decrement", "time_decrement", "log_snr_decrement",
            "inverse_eta_increment" or a `keras_imm.time_mappings.TimeMapping`.
        kernel: "laplace", "rbf", "energy" or a `keras_imm.kernels.Kernel`, such as
            `PseudoHuber(c)`.
        weighting: "elbo", "uniform" or a `keras_imm.weightings.Weighting`.
        second_time: What the backbone is told of s: "s", or "stride" for t - s.
        time_scale: Positive factor of the times that the backbone sees.
        group_size: Particles per group, M in the paper. A positive integer that
            divides the batch.
        accumulation_steps: Positive integer. Each batch is split into this many
            micro-batches whose gradients are averaged before one optimizer step.
        sigma_data: Standard deviation of the data, and of the noise. Positive.
        min_time: Start of the time range, epsilon in the paper; in [0, max_time).
        max_time: End of the time range, T in the paper; in (min_time, 1]. 0.994 for
            flow matching, 0.996 for cosine.
        label_dropout: Probability in [0, 1] that a label becomes the null label
            while training.
        drop_target_labels: Whether a dropped label is dropped in both passes, as in
            Algorithm 3, or in the pass with gradient alone.
        seed: Integer that starts the model's one random stream.
        augmentation: Layer called as `x, augmentation_labels = augmentation(x,
            training=True)` on every batch of training data, such as
            `keras_imm.augmentation.EDMAugmentation`. The backbone is told the labels
            in both passes; zeros, in sampling, stand for data as they are.
        **kwargs: `name` and other arguments of `keras.Model`.

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

    Returns:
        Samples at time s, the shape of x_t, in float32 or the wider dtype of x_t.

    Raises:
        ValueError: If an argument is out of its range.

    Example:

    ```python
    backbone = keras_imm.backbones.DiT(image_shape=(8, 8, 1), num_classes=10)
    model = keras_imm.IMM(backbone)
    model.compile(keras.optimizers.AdamW(1e-4, epsilon=1e-8, use_ema=True))
    model.fit(dataset, epochs=10)      # yields images, or (images, labels)
    images = model.generate(labels=[3, 1, 4], num_steps=2)
    model.save("model.keras")
    # The averaged weights come back with the optimizer: not with `compile=False`.
    model = keras.models.load_model("model.keras")
    ```

    Reference: Zhou, Ermon, Song, Inductive Moment Matching, ICML 2025.
    """

    def __init__(
        self,
        backbone: keras.layers.Layer,
        schedule: str | schedules.Schedule = "flow_matching",
        parameterization: str | parameterizations.Parameterization = "euler_fm",
        time_mapping: str | time_mappings.TimeMapping = "eta_decrement",
        kernel: str | kernels.Kernel = "laplace",
        weighting: str | weightings.Weighting = "elbo",
        second_time: str = "s",
        time_scale: float = 1000.0,
        group_size: int = 4,
        accumulation_steps: int = 1,
        sigma_data: float = 0.5,
        min_time: float = 0.0,
        max_time: float = 0.994,
        label_dropout: float = 0.1,
        drop_target_labels: bool = True,
        seed: int = 0,
        augmentation: keras.layers.Layer | None = None,
        **kwargs: Any,
    ):
        check_instance("backbone", backbone, keras.layers.Layer)
        check_choice("second_time", second_time, ("s", "stride"))
        check_positive_number("time_scale", time_scale)
        check_integer("accumulation_steps", accumulation_steps, at_least=1)
        check_integer("seed", seed, at_least=0)
        check_fraction("label_dropout", label_dropout)
        num_classes = int(getattr(backbone, "num_classes", 0) or 0)
        augmentation_dim = int(getattr(backbone, "augmentation_dim", 0) or 0)
        if augmentation is not None:
            check_instance("augmentation", augmentation, keras.layers.Layer)
            if not augmentation_dim:
                raise ValueError(
                    "`augmentation` needs a backbone with `augmentation_dim` above 0, "
                    "which can be told what was done. Received: "
                    f"augmentation={augmentation!r}, a {type(backbone).__name__} "
                    "without it"
                )
        loss = objective.MomentMatching(
            schedule,
            parameterization,
            time_mapping,
            kernel,
            weighting,
            group_size=group_size,
            sigma_data=sigma_data,
            min_time=min_time,
            max_time=max_time,
            label_dropout=label_dropout if num_classes else 0.0,
            drop_target_labels=drop_target_labels,
            null_label=num_classes,
        )

        # Coefficients and times are never cast to the backbone's half precision.
        kwargs.setdefault("dtype", backbone.dtype_policy)
        super().__init__(autocast=False, **kwargs)
        self._allow_non_tensor_positional_args = True  # model(x_t, 0.9, 0.1)
        self.backbone = backbone
        self.objective = loss
        self.schedule = loss.schedule
        self.parameterization = loss.parameterization
        self.time_mapping = loss.time_mapping
        self.kernel = loss.kernel
        self.weighting = loss.weighting
        self.second_time = second_time
        self.time_scale = time_scale
        self.group_size = group_size
        self.accumulation_steps = accumulation_steps
        self.sigma_data = sigma_data
        self.min_time = min_time
        self.max_time = max_time
        self.label_dropout = label_dropout
        self.drop_target_labels = drop_target_labels
        self.seed = int(seed)
        self.num_classes = num_classes
        self.augmentation = augmentation
        self.augmentation_dim = augmentation_dim
        self.data_shape = _known_data_shape(backbone)
        self.seed_generator = keras.random.SeedGenerator(mix_seeds(self.seed))
        self._compiled_flow_map = None
        self._frozen_layers = ()
        if self.data_shape is not None:
            self.build((None, *self.data_shape))

    # -- Building and calling

    def build(self, input_shape: tuple) -> None:
        """Builds the backbone for data of shape `input_shape`, batch included."""
        self.data_shape = tuple(input_shape[1:])
        if not self.backbone.built:
            dtype = keras.backend.floatx()
            inputs = [keras.KerasTensor((None, *self.data_shape), dtype)]
            inputs += [keras.KerasTensor((None,), "float32")] * 2
            if self.num_classes:
                inputs.append(keras.KerasTensor((None,), "int32"))
            if self.augmentation_dim:
                inputs += [None] * (4 - len(inputs))
                shape = (None, self.augmentation_dim)
                inputs.append(keras.KerasTensor(shape, "float32"))
            self.backbone(inputs)
        self.built = True
        self._freeze()

    def _freeze(self) -> None:
        """Freezes the layers that were frozen in the model this one came from."""
        if self.built:
            layers = self._flatten_layers()
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
    ) -> Any:
        x_t = at_least_float32(x_t)
        batch = ops.shape(x_t)[0]
        t = self._times(self.max_time if t is None else t, batch, x_t.dtype)
        s = self._times(self.min_time if s is None else s, batch, x_t.dtype)
        output = self._network(
            x_t, t, s, labels, guidance_scale, training, augmentation_labels
        )
        c_skip = self.parameterization.c_skip(self.schedule, s, t)
        c_out = self.parameterization.c_out(self.schedule, s, t, self.sigma_data)
        c_skip = objective.per_sample(c_skip, x_t)
        c_out = objective.per_sample(c_out, x_t)
        return c_skip * x_t + c_out * ops.cast(output, x_t.dtype)

    def _network(
        self,
        x_t: Any,
        t: Any,
        s: Any,
        labels: Any,
        guidance_scale: Any,
        training: bool,
        augmentation_labels: Any,
    ) -> Any:
        """G, guided where there is a guidance scale (Eq. 14)."""
        norm = ops.sqrt(self.schedule.squared_norm(t)) * self.sigma_data
        x = x_t / objective.per_sample(norm, x_t)
        c_t = self.time_scale * t
        c_s = self.time_scale * (s if self.second_time == "s" else t - s)
        told = self._augmentation_inputs(augmentation_labels, x)
        if not self.num_classes:
            inputs = [x, c_t, c_s, None, told] if told is not None else [x, c_t, c_s]
            return self.backbone(inputs, training=training)
        null = ops.full((ops.shape(x)[0],), self.num_classes, dtype="int32")
        labels = null if labels is None else ops.cast(labels, "int32")
        inputs = [x, c_t, c_s, labels] + ([] if told is None else [told])
        if guidance_scale is None:
            return self.backbone(inputs, training=training)
        # Both branches in one pass.
        unguided_inputs = [*inputs[:3], null, *inputs[4:]]
        inputs = [
            ops.concatenate(pair) for pair in zip(inputs, unguided_inputs, strict=True)
        ]
        output = self.backbone(inputs, training=training)
        guided, unguided = ops.split(output, 2)
        w = ops.cast(at_least_float32(guidance_scale), output.dtype)
        return w * guided + (1.0 - w) * unguided

    def _augmentation_inputs(self, augmentation_labels: Any, x: Any) -> Any:
        """What the backbone is told of the augmentation; None if it takes nothing."""
        if not self.augmentation_dim:
            return None
        if augmentation_labels is None:
            return ops.zeros((ops.shape(x)[0], self.augmentation_dim), dtype=x.dtype)
        return ops.cast(augmentation_labels, x.dtype)

    def _times(self, times: Any, batch: Any, dtype: Any) -> Any:
        times = ops.cast(at_least_float32(times), dtype)
        return ops.broadcast_to(times, (batch,))

    # -- Training: what the backend's trainer asks for

    def draw_particles(self, data: Any, training: bool) -> objective.Particles:
        """Times, noise and labels of one batch, from the model's random stream."""
        x, labels, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        if sample_weight is not None:
            raise ValueError("IMM takes no sample weights; data is x or (x, labels).")
        kind = keras.backend.standardize_dtype(x.dtype)
        if not keras.backend.is_float_dtype(kind):
            raise ValueError(
                "Training data must be floating point, scaled to a standard deviation "
                f"of `sigma_data`={self.sigma_data}. Received: dtype {kind}"
            )
        if not self.num_classes:
            labels = None
        elif labels is None and training and self.label_dropout < 1.0:
            raise ValueError(
                f"The backbone has num_classes={self.num_classes}: data must be "
                "(x, labels). Received: x alone"
            )
        if labels is not None:
            _check_training_labels(labels)
            labels = ops.cast(ops.reshape(labels, (-1,)), "int32")
        check_batch_size(
            x.shape[0],
            self.group_size,
            self.accumulation_steps if training else 1,
            self.devices_per_batch(),
        )
        told = None
        if training and self.augmentation is not None:
            x, told = self.augmentation(x, training=True)
        particles = self.objective.draw(
            x, labels, self.seed_generator, dropout=training
        )
        return particles._replace(augmentation_labels=told)

    def micro_batch(self, particles: Any, index: Any) -> Any:
        """Part `index` of `accumulation_steps` equal parts, whole groups each.

        Every `accumulation_steps`-th group: each of the devices that share a batch
        finds its share of a part in its share of the batch.
        """
        groups = (-1, self.accumulation_steps, self.group_size)

        def part(field):
            if field is None:
                return None
            shape = tuple(field.shape[1:])
            chosen = ops.take(ops.reshape(field, groups + shape), index, axis=1)
            return ops.reshape(chosen, (-1, *shape))

        return type(particles)(*(part(field) for field in particles))

    def compute_target(self, particles: Any, training: bool) -> Any:
        """The target pass. The masks that dropout drew are drawn again afterwards."""
        states = [v for v in random_states(self) if v is not self.seed_generator.state]
        before = [v.value * 1 for v in states]
        y_target = self.objective.target(self._flow_map(training, particles), particles)
        for state, value in zip(states, before, strict=True):
            state.assign(value)
        return y_target

    def compute_objective(self, particles: Any, y_target: Any, training: bool) -> Any:
        """The scalar loss of one batch."""
        flow_map = self._flow_map(training, particles)
        return self.objective.loss(flow_map, particles, y_target)

    def evaluate_objective(self, data: Any) -> Any:
        """The loss of one batch of an evaluation."""
        particles = self.draw_particles(data, training=False)
        y_target = self.compute_target(particles, training=False)
        return self.compute_objective(particles, y_target, training=False)

    def update_logs(self, loss: Any) -> dict:
        """Adds a batch's loss to the running mean and returns the logs."""
        self._loss_tracker.update_state(loss)
        return self.get_metrics_result()

    def _flow_map(
        self, training: bool, particles: objective.Particles
    ) -> objective.FlowMap:
        return lambda x, t, s, labels: self(
            x,
            t,
            s,
            labels,
            training=training,
            augmentation_labels=particles.augmentation_labels,
        )

    # -- Keras's methods, where IMM differs

    def compile(
        self,
        optimizer: Any,
        run_eagerly: bool = False,
        steps_per_execution: int = 1,
        jit_compile: bool | str = "auto",
        auto_scale_loss: bool = True,
    ) -> None:
        """Configures training; the loss is the model's own.

        It is the paper's objective alone: regularizers and `add_loss` of the backbone
        add nothing to it. Use the optimizer's weight decay. Compiling again starts the
        averages of the weights anew.

        Args:
            optimizer: Keras optimizer or its name. `use_ema=True` keeps the averaged
                weights that `generate` uses by default.
            run_eagerly: Whether layers are called one by one. Otherwise a step is
                traced, under PyTorch too: what its Python does happens once for each
                shape of a batch.
            steps_per_execution: As in `keras.Model.compile`.
            jit_compile: As in `keras.Model.compile`. Under PyTorch its compiler takes
                the traced step.
            auto_scale_loss: As in `keras.Model.compile`.

        Raises:
            ValueError: If the optimizer accumulates gradients itself: that moves
                the average at every micro-step. Use `accumulation_steps`.
        """
        optimizer = keras.optimizers.get(optimizer)
        steps = getattr(
            optimizer, "inner_optimizer", optimizer
        ).gradient_accumulation_steps
        if steps:
            raise ValueError(
                "Use `accumulation_steps` of IMM in place of the optimizer's "
                "`gradient_accumulation_steps`. Received: "
                f"gradient_accumulation_steps={steps}"
            )
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
        self._compiled_flow_map = None
        if self.built:
            self.optimizer.build(self.trainable_variables)

    def get_compile_config(self) -> dict:
        """Arguments of `compile` as they were given, so "auto" stays "auto"."""
        if not self.compiled:
            return {}
        optimizer = super().get_compile_config()["optimizer"]
        return {"optimizer": _portable(optimizer), **self._compile_arguments}

    def compile_from_config(self, config: dict) -> None:
        """Compiles as `get_compile_config` described."""
        config = dict(config)
        optimizer = keras.saving.deserialize_keras_object(config.pop("optimizer"))
        self.compile(optimizer=optimizer, **config)

    def fit(self, *args: Any, **kwargs: Any) -> keras.callbacks.History:
        """As `keras.Model.fit`, on batches of x or (x, labels).

        The weights stay raw at the end; their averages stay in the optimizer. A data
        set with the attribute `ordered`, such as those of `keras_imm.datasets`, orders
        its batches itself: they are not shuffled.
        """
        x = args[0] if args else kwargs.get("x")
        if _orders_itself(x):
            if kwargs.get("steps_per_epoch") is not None:
                raise ValueError(
                    "`steps_per_epoch` of a data set that orders its batches itself is "
                    "an argument of the data set. Received: steps_per_epoch="
                    f"{kwargs['steps_per_epoch']!r}"
                )
            kwargs["shuffle"] = False
        # For callbacks that keep the position in the data.
        shuffled = hasattr(x, "shape") and kwargs.get("shuffle", True)
        self._fit_data = (x, bool(shuffled))
        try:
            with self._raw_weights_kept():
                return super().fit(*args, **kwargs)
        finally:
            del self._fit_data
            if hasattr(x, "end_epoch"):  # an epoch that was cut short counts
                x.end_epoch()

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
        """
        x = args[0] if args else kwargs.get("x")
        position = x.get_state() if _orders_itself(x) else None
        state = ops.convert_to_numpy(self.seed_generator.state)
        assign_state(
            self.seed_generator.state, [mix_seeds(self.seed, _EVALUATION_STREAM), 0]
        )
        try:
            return super().evaluate(*args, **kwargs)
        finally:
            assign_state(self.seed_generator.state, state)
            if position is not None:
                x.set_state(position)

    # -- Saving and loading

    def get_config(self) -> dict:
        """Constructor arguments, for saving."""
        config = {
            name: keras.saving.serialize_keras_object(getattr(self, name))
            for name in ("backbone", "augmentation", *_PIECES)
        }
        arguments = (
            "second_time",
            "time_scale",
            "group_size",
            "accumulation_steps",
            "sigma_data",
            "min_time",
            "max_time",
            "label_dropout",
            "drop_target_labels",
            "seed",
            "name",
        )
        config["num_classes"] = self.num_classes  # may be an attribute alone
        config["frozen_layers"] = [
            i for i, layer in enumerate(self._flatten_layers()) if not layer.trainable
        ]
        return config | {name: getattr(self, name) for name in arguments}

    @classmethod
    def from_config(cls, config: dict, custom_objects: dict | None = None) -> "IMM":
        """The model that `get_config` described, with fresh weights."""
        config = dict(config)
        num_classes = config.pop("num_classes")
        frozen_layers = config.pop("frozen_layers")
        config.setdefault("augmentation", None)
        for name in ("backbone", "augmentation", *_PIECES):
            config[name] = keras.saving.deserialize_keras_object(
                config[name], custom_objects=custom_objects
            )
        if num_classes and not hasattr(config["backbone"], "num_classes"):
            config["backbone"].num_classes = num_classes
        model = cls(**config)
        model._frozen_layers = frozen_layers
        model._freeze()
        return model

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
        """Saves what Keras leaves out: random states, names and shapes of weights."""
        for i, state in enumerate(random_states(self)):
            store[f"random_state_{i}"] = ops.convert_to_numpy(state).astype("int64")
        store["weights"] = np.frombuffer(json.dumps(self._inventory()).encode(), "u1")

    def load_own_variables(self, store: dict) -> None:
        """Restores the states of the random streams.

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
        if len(store.keys()) != len(states) + 1:
            raise ValueError(
                f"Expected {len(states)} random states, found {len(store.keys()) - 1}."
            )
        for i, state in enumerate(states):
            assign_state(state, store[f"random_state_{i}"])

    def _inventory(self) -> list:
        """Path within the model and shape of every weight, in Keras's order."""
        return [["/".join(v.path.split("/")[1:]), list(v.shape)] for v in self.weights]

    def load_weights(self, filepath: Any, **kwargs: Any) -> None:
        """As `keras.Model.load_weights`; a file that does not fit changes nothing.

        Averages are loaded with the optimizer's state. From a file that has none for
        this optimizer, of which Keras warns, they start anew at the loaded weights.

        Raises:
            ValueError: If the file cannot be read or does not fit the model; it
                names the file and the first weight that does not fit.
        """
        variables = self._state()
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
            # The file has no averages for this optimizer: they start anew.
            averages = self._averages()
            for weight in self.trainable_variables:
                if id(weight) in averages:
                    averages[id(weight)].assign(weight)


def _orders_itself(data: Any) -> bool:
    """Whether these are batches whose order is the data set's own business."""
    return bool(getattr(data, "ordered", False))


def _check_training_labels(labels: Any) -> None:
    """Raises ValueError unless labels are integers, one per sample."""
    kind = keras.backend.standardize_dtype(labels.dtype)
    one_each = len(labels.shape) == 1 or tuple(labels.shape[1:]) == (1,)
    if not keras.backend.is_int_dtype(kind) or not one_each:
        raise ValueError(
            "Labels must be integers of shape (batch,). "
            f"Received: shape {tuple(labels.shape)}, dtype {kind}"
        )


def _portable(config: Any) -> Any:
    """Names Keras's optimizers by their public module.

    Under PyTorch they are subclasses of their own, which other backends would load
    and could not run.
    """
    if not isinstance(config, dict):
        return config
    config = {key: _portable(value) for key, value in config.items()}
    if str(config.get("module")).startswith("keras.src.backend.torch.optimizers"):
        config["module"] = "keras.optimizers"
    return config


def _known_data_shape(backbone: keras.layers.Layer) -> tuple | None:
    """Shape of one sample, where the backbone knows it before it sees data."""
    shape = getattr(backbone, "image_shape", None)
    if shape is None and getattr(backbone, "inputs", None):
        shape = backbone.inputs[0].shape[1:]
    return None if shape is None else tuple(shape)
