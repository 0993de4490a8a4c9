"""The flow map f_{s,t}: a network and everything between it and a jump in time."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import keras
from keras import ops

from keras_imm import parameterizations, schedules
from keras_imm.backbones.inputs import symbolic_inputs
from keras_imm.backend import jvp, keras_private
from keras_imm.backend.attention import differentiable_forwards
from keras_imm.backend.random_streams import random_states
from keras_imm.precision import at_least_float32
from keras_imm.validation import (
    check_choice,
    check_instance,
    check_positive_number,
    check_times,
)


class Coefficients(NamedTuple):
    """Weights of x_t and of the network's output in the flow map, shape (batch,)."""

    c_skip: Any
    c_out: Any


@keras.saving.register_keras_serializable(package="keras_imm")
class FlowMap:
    """f_{s,t}(x_t) = c_skip(s,t) x_t + c_out(s,t) G(c_in(t) x_t, c_t, c_s, label).

    c_in(t) = 1 / (sigma_data sqrt(alpha_t^2 + sigma_t^2)), c_t = time_scale t, and
    c_s = time_scale s, or time_scale (t - s).

    Args:
        backbone: The network G: a layer or model called as `backbone([x, c_t, c_s])`,
            or with labels and augmentation labels after them where it has an attribute
            `num_classes` or `augmentation_dim` above 0.
        schedule: "flow_matching", "cosine" or a `keras_imm.schedules.Schedule`.
        parameterization: "euler_fm", "simple_edm", "identity" or a
            `keras_imm.parameterizations.Parameterization`.
        second_time: Second time input of the backbone: "s", or "stride" for t - s.
        time_scale: Positive factor of the times that the backbone sees.
        sigma_data: Standard deviation of the data, and of the noise. Positive.
        min_time: Start of the time range, epsilon in the paper; in [0, max_time).
        max_time: End of the time range, T in the paper; in (min_time, 1].

    Call arguments:
        x_t: Samples at time t, shape (batch, ...).
        t: Times in [0, 1], shape (batch,) or a scalar.
        s: Times in [0, t], shape (batch,) or a scalar.
        labels: Integers in [0, num_classes], shape (batch,). Default: the null label.
        guidance_scale: Weight w of classifier-free guidance: G becomes
            w G(label) + (1 - w) G(null), both in one pass (Eq. 14). None for 1.
        guidance_interval: Pair of times: w is 1 where t is outside of it. Default: no
            limits.
        augmentation_labels: Floats of shape (batch, augmentation_dim). Default: zeros.
        training: Whether the backbone's dropout is on.
        coefficients: `Coefficients` of s and t, where they have been computed.

    Returns:
        Samples at time s, the shape of x_t, in float32 or the wider dtype of x_t.

    Raises:
        ValueError: If an argument is out of its range.

    Example:

    ```python
    backbone = keras_imm.backbones.DiT(image_shape=(8, 8, 1))
    flow_map = keras_imm.FlowMap(backbone, second_time="stride")
    x_t = np.random.normal(size=(2, 8, 8, 1)).astype("float32")
    x_s = flow_map(x_t, 0.9, 0.4)                  # (2, 8, 8, 1)
    velocity = flow_map.velocity(x_t, 0.9)         # (2, 8, 8, 1)
    ```

    Reference:
        - [Zhou et al., 2025](https://arxiv.org/abs/2503.07565), Section 4 and App. C.5
        - [Kynkäänniemi et al., 2024](https://arxiv.org/abs/2404.07724), for guidance in
          an interval
    """

    def __init__(
        self,
        backbone: keras.layers.Layer,
        schedule: str | schedules.Schedule = "flow_matching",
        parameterization: str | parameterizations.Parameterization = "euler_fm",
        second_time: str = "s",
        time_scale: float = 1000.0,
        sigma_data: float = 0.5,
        min_time: float = 0.0,
        max_time: float = 0.994,
    ):
        check_instance("backbone", backbone, keras.layers.Layer)
        check_choice("second_time", second_time, ("s", "stride"))
        check_positive_number("time_scale", time_scale)
        check_positive_number("sigma_data", sigma_data)
        check_times(min_time, max_time)
        self.backbone = backbone
        self.schedule = schedules.get(schedule)
        self.parameterization = parameterizations.get(parameterization)
        self.parameterization.check(self.schedule)
        self.second_time = second_time
        self.time_scale = time_scale
        self.sigma_data = sigma_data
        self.min_time = min_time
        self.max_time = max_time
        self.num_classes = int(getattr(backbone, "num_classes", 0) or 0)
        self.augmentation_dim = int(getattr(backbone, "augmentation_dim", 0) or 0)
        self.data_shape = _known_data_shape(backbone)
        self._changed_layers = ()

    @property
    def null_label(self) -> int | None:
        """The label that stands for none, or None without classes."""
        return self.num_classes or None

    @property
    def variables(self) -> list[keras.Variable]:
        """All weights and random states, in an order that freezing does not change."""
        return self.backbone.weights + random_states(self.backbone)

    def build(self, data_shape: Sequence[int]) -> None:
        """Builds the backbone for samples of a shape, which has no batch axis."""
        self.data_shape = tuple(data_shape)
        # One without `build` of its own is called built when it comes from a file.
        if not all(layer.built for layer in keras_private.all_layers(self.backbone)):
            self.backbone(symbolic_inputs(self.backbone, self.data_shape))
        _change_layers(self.backbone, self._changed_layers)
        self._changed_layers = ()

    def __call__(
        self,
        x_t: Any,
        t: Any,
        s: Any,
        labels: Any = None,
        guidance_scale: Any = None,
        guidance_interval: Any = None,
        augmentation_labels: Any = None,
        training: bool = False,
        coefficients: Coefficients | None = None,
    ) -> Any:
        x_t = at_least_float32(x_t)
        t, s = self._times(t, x_t), self._times(s, x_t)
        output = self._guided(
            x_t,
            t,
            s,
            labels,
            guidance_scale,
            guidance_interval,
            augmentation_labels,
            training,
        )
        c_skip, c_out = coefficients or self.coefficients(s, t)
        x_s = per_sample(c_skip, x_t) * x_t
        return x_s + per_sample(c_out, x_t) * ops.cast(output, x_t.dtype)

    def output(self, x_t: Any, t: Any, s: Any, labels: Any = None, **passed) -> Any:
        """G, guided where there is a guidance scale; s = t is a call like any other.

        Args:
            x_t: As in a call.
            t: As in a call.
            s: As in a call.
            labels: As in a call.
            **passed: Other arguments of a call, but `coefficients`.

        Returns:
            Tensor of the shape of x_t, in float32 or the wider dtype of x_t.
        """
        x_t = at_least_float32(x_t)
        t, s = self._times(t, x_t), self._times(s, x_t)
        return ops.cast(self._guided(x_t, t, s, labels, **passed), x_t.dtype)

    def velocity(self, x_t: Any, t: Any, labels: Any = None, **passed) -> Any:
        """dx/dt of the flow at (x_t, t): the derivative of f_{s,t}(x_t) in s at s = t.

        Args:
            x_t: As in a call.
            t: As in a call.
            labels: As in a call.
            **passed: Other arguments of a call, but `coefficients`.

        Returns:
            Tensor of the shape of x_t, in float32 or the wider dtype of x_t.
        """
        x_t = at_least_float32(x_t)
        t = self._times(t, x_t)
        output = self.output(x_t, t, t, labels, **passed)
        skip, out = self.parameterization.velocity_coefficients(
            self.schedule, t, self.sigma_data
        )
        return per_sample(skip, x_t) * x_t + per_sample(out, x_t) * output

    def coefficients(self, s: Any, t: Any) -> Coefficients:
        """c_skip(s, t) and c_out(s, t), each of the shape of the times."""
        pair = self.schedule, s, t
        return Coefficients(
            self.parameterization.c_skip(*pair),
            self.parameterization.c_out(*pair, self.sigma_data),
        )

    def _guided(
        self,
        x_t: Any,
        t: Any,
        s: Any,
        labels: Any,
        guidance_scale: Any = None,
        guidance_interval: Any = None,
        augmentation_labels: Any = None,
        training: bool = False,
    ) -> Any:
        """G, guided where there is a guidance scale (Eq. 14)."""
        norm = ops.sqrt(self.schedule.squared_norm(t)) * self.sigma_data
        x = x_t / per_sample(norm, x_t)
        c_t = self.time_scale * t
        c_s = self.time_scale * (s if self.second_time == "s" else t - s)
        augmentation = self._augmentation_inputs(augmentation_labels, x)
        if not self.num_classes:
            inputs = [x, c_t, c_s] + ([None, *augmentation] if augmentation else [])
            return self.backbone(inputs, training=training)
        null = ops.full((ops.shape(x)[0],), self.num_classes, dtype="int32")
        labels = null if labels is None else ops.cast(labels, "int32")
        inputs = [x, c_t, c_s, labels, *augmentation]
        if guidance_scale is None:
            return self.backbone(inputs, training=training)
        # Both branches in one pass.
        unguided_inputs = [*inputs[:3], null, *inputs[4:]]
        inputs = [
            ops.concatenate(pair) for pair in zip(inputs, unguided_inputs, strict=True)
        ]
        output = self.backbone(inputs, training=training)
        rows = ops.shape(x_t)[0]  # by `ops.split` PyTorch would export no other number
        guided, unguided = output[:rows], output[rows:]
        w = ops.cast(at_least_float32(guidance_scale), output.dtype)
        if guidance_interval is not None:
            interval = ops.cast(at_least_float32(guidance_interval), t.dtype)
            low, high = interval[0], interval[1]
            inside = per_sample(ops.logical_and(low <= t, t <= high), output)
            w = ops.where(inside, w, ops.ones_like(w))
        return w * guided + (1.0 - w) * unguided

    def _augmentation_inputs(self, augmentation_labels: Any, x: Any) -> list:
        """Augmentation labels as the backbone takes them; empty if it takes none."""
        if not self.augmentation_dim:
            return []
        if augmentation_labels is None:
            return [ops.zeros((ops.shape(x)[0], self.augmentation_dim), dtype=x.dtype)]
        return [ops.cast(augmentation_labels, x.dtype)]

    def _times(self, times: Any, x_t: Any) -> Any:
        times = ops.cast(at_least_float32(times), x_t.dtype)
        return ops.broadcast_to(times, (ops.shape(x_t)[0],))

    def get_config(self) -> dict[str, Any]:
        """Constructor arguments, for saving."""
        return {
            **{
                name: keras.saving.serialize_keras_object(getattr(self, name))
                for name in ("backbone", "schedule", "parameterization")
            },
            "second_time": self.second_time,
            "time_scale": self.time_scale,
            "sigma_data": self.sigma_data,
            "min_time": self.min_time,
            "max_time": self.max_time,
            "num_classes": self.num_classes,  # may be an attribute alone
            **self._layers_config(),
        }

    def _layers_config(self) -> dict:
        """Layers that are no longer as they were built; files need not have it."""
        changed = _changed_layers(self.backbone)
        return {"changed_layers": changed} if changed else {}

    @classmethod
    def from_config(cls, config: dict, custom_objects: dict | None = None) -> "FlowMap":
        """The flow map that `get_config` described, with fresh weights."""
        config = dict(config)
        num_classes = config.pop("num_classes")
        changed_layers = config.pop("changed_layers", ())
        for name in ("backbone", "schedule", "parameterization"):
            config[name] = keras.saving.deserialize_keras_object(
                config[name], custom_objects=custom_objects
            )
        if num_classes and not hasattr(config["backbone"], "num_classes"):
            config["backbone"].num_classes = num_classes
        flow_map = cls(**config)
        flow_map.change_layers(changed_layers)
        return flow_map

    def change_layers(self, changed_layers: Sequence[dict]) -> None:
        """Has layers quantized, and given weights of low rank, once they are built.

        Args:
            changed_layers: As `get_config` describes them under that name.
        """
        self._changed_layers = changed_layers
        if changed_layers and self.data_shape is not None:
            self.build(self.data_shape)


def _changed_layers(backbone: keras.layers.Layer) -> list[dict]:
    """Layers by their place, with their quantization and the rank of their LoRA."""
    changed = []
    for i, layer in enumerate(keras_private.all_layers(backbone)):
        entry = {}
        if getattr(layer, "quantization_mode", None) is not None:
            entry["dtype_policy"] = keras.dtype_policies.serialize(layer.dtype_policy)
        if getattr(layer, "lora_enabled", False):
            entry["lora"] = {"rank": layer.lora_rank, "lora_alpha": layer.lora_alpha}
        if entry:
            changed.append({"layer": i, **entry})
    return changed


def _change_layers(backbone: keras.layers.Layer, changed: Sequence[dict]) -> None:
    """Changes fresh layers alike, where their own config has not done it."""
    layers = keras_private.all_layers(backbone)
    for entry in changed:
        layer = layers[entry["layer"]]
        if "dtype_policy" in entry and layer.quantization_mode is None:
            layer.dtype_policy = keras.dtype_policies.deserialize(entry["dtype_policy"])
        if "lora" in entry and not layer.lora_enabled:
            layer.enable_lora(**entry["lora"])


class Network:
    """A flow map for one pass: how it is called and with which weights is bound in.

    Objectives and samplers are handed one. `labels=None` in its methods means the
    labels that are bound in.

    Args:
        flow_map: The `FlowMap`.
        labels: Integers of shape (batch,), or None for the null label.
        guidance_scale: As in a call of `FlowMap`.
        guidance_interval: As in a call of `FlowMap`.
        augmentation_labels: As in a call of `FlowMap`.
        training: As in a call of `FlowMap`.
        weights: Function from the name of averages to a context manager in which the
            backbone has them; see `with_weights`.
        masks: Values that the backbone's random states have at the beginning of every
            call, so that dropout draws one mask for all. Default: each call goes on
            where the one before it ended.

    Attributes:
        schedule: The flow map's `Schedule`, with derivatives.
        parameterization: Its `Parameterization`.
        sigma_data: Standard deviation of data and noise.
        min_time: Start of the time range.
        max_time: End of the time range.
        null_label: The label that stands for none, or None without classes.

    Example:

    ```python
    network = Network(flow_map, labels=labels, training=True)
    x_s = network.flow_map(x_t, t, s)              # with those labels
    g, derivative = network.total_derivative(x_t, t, s, None, velocity)
    ```
    """

    def __init__(
        self,
        flow_map: FlowMap,
        labels: Any = None,
        guidance_scale: Any = None,
        guidance_interval: Any = None,
        augmentation_labels: Any = None,
        training: bool = False,
        weights: Callable[[str], contextlib.AbstractContextManager] | None = None,
        masks: Sequence[Any] | None = None,
    ):
        self._flow_map = flow_map
        self._labels = labels
        self._bound = {
            "guidance_scale": guidance_scale,
            "guidance_interval": guidance_interval,
            "augmentation_labels": augmentation_labels,
            "training": training,
        }
        self._weights = weights
        self._masks = masks
        self._scope: Callable = contextlib.nullcontext
        self.schedule = flow_map.schedule
        self.parameterization = flow_map.parameterization
        self.sigma_data = flow_map.sigma_data
        self.min_time = flow_map.min_time
        self.max_time = flow_map.max_time
        self.null_label = flow_map.null_label

    def flow_map(
        self,
        x: Any,
        t: Any,
        s: Any,
        labels: Any = None,
        coefficients: Coefficients | None = None,
    ) -> Any:
        """f_{s,t}(x): the identity, without a gradient, where s = t."""
        labels = self._labels if labels is None else labels
        with self._call():
            return self._flow_map(
                x, t, s, labels, coefficients=coefficients, **self._bound
            )

    def output(self, x: Any, t: Any, s: Any, labels: Any = None) -> Any:
        """G at (x, t, s), float32 or wider; s = t is a call like any other."""
        labels = self._labels if labels is None else labels
        with self._call():
            return self._flow_map.output(x, t, s, labels, **self._bound)

    def velocity(self, x: Any, t: Any, labels: Any = None) -> Any:
        """dx/dt of the flow at (x, t)."""
        labels = self._labels if labels is None else labels
        with self._call():
            return self._flow_map.velocity(x, t, labels, **self._bound)

    def coefficients(self, s: Any, t: Any) -> Coefficients:
        """c_skip(s, t) and c_out(s, t)."""
        return self._flow_map.coefficients(s, t)

    def total_derivative(
        self, x: Any, t: Any, s: Any, labels: Any, velocity: Any, rate: Any = 1.0
    ) -> tuple[Any, Any]:
        """G and its derivative along (velocity, rate, 0) in (x, t, s).

        c_in(t), the time scale and the second time are differentiated, too, with
        respect to times that are not scaled.

        Args:
            x: Samples at time t, shape (batch, ...).
            t: Times of shape (batch,) or a scalar.
            s: As `t`.
            labels: Integers of shape (batch,), or None for those bound in.
            velocity: Tangent of x, the shape of x.
            rate: Tangent of t, of shape (batch,) or a number.

        Returns:
            Two tensors of the shape of x.
        """
        x, velocity = at_least_float32(x), at_least_float32(velocity)
        zeros = ops.zeros((ops.shape(x)[0],), x.dtype)  # each row's own, in memory too
        t, rate = (ops.cast(v, x.dtype) + zeros for v in (t, rate))
        velocity = ops.cast(velocity, x.dtype)

        return self._jvp(
            lambda x, t: self.output(x, t, s, labels), (x, t), (velocity, rate)
        )

    def derivative_in_s(self, x: Any, t: Any, s: Any, labels: Any = None) -> tuple:
        """G and its derivative in s, which can be differentiated again.

        Args:
            x: Samples at time t, shape (batch, ...).
            t: Times of shape (batch,).
            s: Times of shape (batch,).
            labels: Integers of shape (batch,), or None for those bound in.

        Returns:
            Two tensors of the shape of x.
        """
        x = at_least_float32(x)
        s = ops.cast(s, x.dtype)
        return self._jvp(
            lambda s: self.output(x, t, s, labels), (s,), (ops.ones_like(s),)
        )

    @property
    def draws_masks(self) -> bool:
        """Whether calls draw random numbers, such as dropout's.

        They are of the shape of the rows of a call: the masks of some rows alone are
        not those that these rows have among all.
        """
        return self._bound["training"] and bool(random_states(self._flow_map.backbone))

    @contextlib.contextmanager
    def _call(self) -> Iterator[None]:
        """Inside, the backbone has this network's weights and random states."""
        with self._scope():
            if self._masks is not None:
                states = random_states(self._flow_map.backbone)
                for state, value in zip(states, self._masks, strict=True):
                    state.assign(value)
            yield

    def _jvp(self, function: Callable, primals: tuple, tangents: tuple) -> tuple:
        """`jvp` of a function that calls the backbone."""
        has_masks = bool(random_states(self._flow_map.backbone))
        # PyTorch changes no variable, such as a random state, inside of a derivative.
        outside = replaced_values(self._flow_map.variables, {}) if has_masks else None
        with outside or contextlib.nullcontext(), differentiable_forwards():
            return jvp(function, primals, tangents)

    def part(self, rows: Callable[[Any], Any]) -> "Network":
        """The same network for some rows of the batch.

        Args:
            rows: `rows(x)` gives these rows of a tensor whose first axis is the batch.

        Returns:
            A `Network`.
        """
        bound = dict(self._bound)
        labels = None if self._labels is None else rows(self._labels)
        if bound["augmentation_labels"] is not None:
            bound["augmentation_labels"] = rows(bound["augmentation_labels"])
        network = Network(
            self._flow_map, labels, **bound, weights=self._weights, masks=self._masks
        )
        network._scope = self._scope
        return network

    def with_weights(self, name: str) -> "Network":
        """The same network with the averages of that name in place of the weights.

        Before the first step they are the weights themselves. Everything else, such as
        the dropout masks that come next, is as in this network.

        Args:
            name: One of the names in the objective's `averages`.

        Returns:
            A `Network`.

        Raises:
            ValueError: If there are no averages of that name.
        """
        if self._weights is None:
            raise ValueError(
                f"There are no averages here. Received: with_weights({name!r})"
            )
        network = self.part(lambda rows: rows)
        network._scope = lambda: self._weights(name)
        return network


def per_sample(coefficient: Any, x: Any) -> Any:
    """Reshapes (batch,) to (batch, 1, ...), to multiply `x` of (batch, ...)."""
    return ops.reshape(coefficient, (-1,) + (1,) * (len(x.shape) - 1))


@contextlib.contextmanager
def replaced_values(
    variables: list[keras.Variable], values: dict[int, Any]
) -> Iterator[None]:
    """Inside, some variables have other values; what the others become stays.

    A `keras.StatelessScope` inside another hides the outer one: so all variables are
    named here, with the values that they have outside.

    Args:
        variables: All that what happens inside may read or change.
        values: The other values by the variables' `id`.
    """
    mapping = [(v, values.get(id(v), v.value)) for v in variables]
    with keras.StatelessScope(state_mapping=mapping) as scope:
        before = dict(scope.state_mapping)
        yield
    for variable, _ in mapping:
        after = scope.get_current_value(variable)
        if id(variable) not in values and after is not before[id(variable)]:
            variable.assign(after)


def _known_data_shape(backbone: keras.layers.Layer) -> tuple | None:
    """Shape of one sample, where the backbone knows it before it sees data."""
    shape = getattr(backbone, "image_shape", None)
    if shape is None and getattr(backbone, "inputs", None):
        shape = backbone.inputs[0].shape[1:]
    return None if shape is None else tuple(shape)
