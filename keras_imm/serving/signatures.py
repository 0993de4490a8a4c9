"""What a served model answers: TensorFlow functions with named inputs and outputs."""

import contextlib
import functools
import math
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import tensorflow as tf
from absl import logging

from keras_imm import samplers
from keras_imm.flow_map import FlowMap
from keras_imm.serving.row_noise import row_normal
from keras_imm.serving.settings import Settings


class ServedNetwork:
    """What a sampler is handed in a served graph: see `keras_imm.flow_map.Network`.

    The functions are shared, so that the graph holds each once, however many steps and
    signatures call it.
    """

    def __init__(
        self, flow: FlowMap, functions: dict[str, Any], label: Any, guidance_scale: Any
    ):
        self._functions = functions
        self._rest = label, guidance_scale
        self._rank = len(flow.data_shape)
        for name in (
            *("schedule", "parameterization", "sigma_data"),
            *("min_time", "max_time", "null_label", "coefficients"),
        ):
            setattr(self, name, getattr(flow, name))

    def flow_map(self, x: Any, t: Any, s: Any, labels: Any = None) -> Any:
        return self._call("flow_map", labels, x, t, s)

    def output(self, x: Any, t: Any, s: Any, labels: Any = None) -> Any:
        return self._call("output", labels, x, t, s)

    def velocity(self, x: Any, t: Any, labels: Any = None) -> Any:
        return self._call("velocity", labels, x, t)

    def _call(self, name: str, labels: Any, x: Any, *times: Any) -> Any:
        batch = tf.shape(x)[:1]
        times = (tf.broadcast_to(tf.cast(time, x.dtype), batch) for time in times)
        label, scale = self._rest
        label = label if labels is None else labels
        if scale is not None:
            scale = tf.broadcast_to(tf.cast(scale, x.dtype), batch)
            scale = tf.reshape(scale, (-1,) + (1,) * self._rank)
        return self._functions[name](x, *times, label, scale)


class ServedModel:
    """The functions of a SavedModel and the weights that they share.

    Args:
        flow: A built flow map, of which only shapes and times are used.
        functions: Its "flow_map", "output" and "velocity" as functions of TensorFlow's
            tensors: of x, times, label or None, and guidance scale or None.
        settings: Completed `Settings`.
        variables: The `tf.Variable`s that all functions use.
        decode: Function from a model's latents to images in [-1, 1], or None for
            models of pixels.
    """

    def __init__(
        self,
        flow: FlowMap,
        functions: dict[str, Callable],
        settings: Settings,
        variables: Sequence[tf.Variable],
        decode: Callable | None = None,
    ):
        self._flow = flow
        self._settings = settings
        self._functions = {
            name: tf.function(function, autograph=False)
            for name, function in functions.items()
        }
        self._decode = decode and tf.function(decode, autograph=False)
        self._row_normal = tf.function(row_normal, autograph=False)
        self._variables = list(variables)
        self._plans = settings.plans()
        # Computed here: within a function they would be no numbers.
        self._times = {
            steps: plan.times(flow).astype("float32")
            for steps, plan in self._plans.items()
        }

    # -- Signatures

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Writes a SavedModel of the signatures and of the weights that they use."""
        module = tf.Module()  # which knows nothing of the model and its optimizer
        module.shared_weights = self._variables
        signatures = self.signatures()
        with quiet():  # TensorFlow would list every weight for every signature
            tf.saved_model.save(module, os.fspath(folder), signatures=signatures)

    def signatures(self) -> dict[str, Any]:
        """Concrete functions by the names of their signatures."""
        return {
            name: _function(function, inputs).get_concrete_function()
            for name, (function, inputs) in self._chosen().items()
        }

    def inputs(self) -> dict[str, list[tf.TensorSpec]]:
        """Their inputs, with names and shapes."""
        return {name: inputs for name, (_, inputs) in self._chosen().items()}

    def _chosen(self) -> dict[str, tuple]:
        known = self._known()
        names = self._settings.signatures
        for name in names or ():
            if name not in known:
                raise ValueError(
                    f"`signatures` must be some of {', '.join(known)}. "
                    f"Received: {name!r}"
                )
        return {name: known[name] for name in names or known}

    def _known(self) -> dict[str, tuple]:
        default = self._settings.default_num_steps
        scale = self._settings.plan.guidance_scale

        def serve(seed, label=None, guidance_scale=scale, num_steps=default):
            return {"image": self._images(seed, label, guidance_scale, num_steps)}

        def serve_png(seed, label=None):
            images = self._images(seed, label, scale, default)
            return {"image_bytes": _encode_png(images)}

        def from_noise(noise, label=None, guidance_scale=None):
            return self._from_noise(noise, self._checked_label(label), guidance_scale)

        def flow_map(x_t, t, s, label=None, guidance_scale=None):
            label = self._checked_label(label)
            t, s = _checked_times(t, s)
            return {"x_s": self._network(label, guidance_scale).flow_map(x_t, t, s)}

        seed = tf.TensorSpec([None], tf.int64, name="seed")
        known = {
            "serving_default": (serve, [seed, *self._label()]),
        }
        if self._has_pictures():
            known["serving_png"] = (serve_png, [seed, *self._label()])
        if not self._plans[default].noises():  # the others take fresh noise
            known["generate_from_noise"] = (
                from_noise,
                self._noise_inputs(),
            )
        for num_steps in self._settings.num_steps:
            known[f"generate_{num_steps}_steps"] = (
                functools.partial(serve, num_steps=num_steps),
                [seed, *self._label(), *self._guidance()],
            )
        times = [tf.TensorSpec([None], tf.float32, name=name) for name in ("t", "s")]
        known["flow_map"] = (
            flow_map,
            [self._data("x_t"), *times, *self._label(), *self._guidance()],
        )
        if self._decode is not None:
            known["decode"] = (self._decoded, [self._data("latents")])
        return known

    def _has_pictures(self) -> bool:
        """Whether PNG files can hold what the model makes."""
        shape = self._flow.data_shape
        return self._decode is not None or (
            len(shape) == 3 and shape[-1] in (1, 2, 3, 4)
        )

    def _from_noise(
        self, noise: Any, label: Any = None, guidance_scale: Any = None
    ) -> dict[str, Any]:
        steps = self._settings.default_num_steps
        return {"image": self._sample(noise, label, guidance_scale, steps)}

    # -- Inputs

    def _noise_inputs(self) -> list[tf.TensorSpec]:
        return [self._data("noise"), *self._label(), *self._guidance()]

    def _data(self, name: str) -> tf.TensorSpec:
        return tf.TensorSpec([None, *self._flow.data_shape], tf.float32, name=name)

    def _label(self) -> list[tf.TensorSpec]:
        conditional = self._flow.num_classes > 0
        return [tf.TensorSpec([None], tf.int32, name="label")] * conditional

    def _guidance(self) -> list[tf.TensorSpec]:
        compiled_in = self._settings.plan.guidance_scale is not None
        return [tf.TensorSpec([None], tf.float32, name="guidance_scale")] * compiled_in

    def _checked_label(self, label: Any) -> Any:
        """The label, once it is known to be one: INVALID_ARGUMENT otherwise."""
        if label is None:
            return None
        last = self._flow.num_classes
        message = f"`label` must be in [0, {last}], where {last} is no class. Received:"
        known = tf.reduce_all((label >= 0) & (label <= last))
        with tf.control_dependencies([tf.debugging.Assert(known, [message, label])]):
            return tf.identity(label)

    # -- From noise to images

    def _images(self, seed: Any, label: Any, guidance_scale: Any, steps: int) -> Any:
        label = self._checked_label(label)
        noise = self._noise(seed, 0)
        return self._to_uint8(self._sample(noise, label, guidance_scale, steps, seed))

    def _noise(self, seed: Any, stream: int) -> Any:
        shape = self._flow.data_shape
        rows = self._row_normal(seed, math.prod(shape), stream)
        return tf.reshape(rows, (-1, *shape))

    def _sample(
        self, noise: Any, label: Any, guidance_scale: Any, steps: int, seed: Any = None
    ) -> Any:
        """The sampler of the settings, from noise of standard deviation 1."""
        flow, plan = self._flow, self._plans[steps]
        network = self._network(label, guidance_scale)
        noises = plan.noises()

        drawn = None

        def noise_at(i):
            nonlocal drawn
            if i < noises:
                drawn = self._noise(seed, i + 1) * flow.sigma_data
            return drawn

        def step(*state):
            return plan.sampler.step(network, *state)

        x = noise * flow.sigma_data
        return samplers.walk(step, x, self._times[steps], noise_at)

    def _network(self, label: Any, guidance_scale: Any) -> ServedNetwork:
        return ServedNetwork(self._flow, self._functions, label, guidance_scale)

    def _decoded(self, latents: Any) -> dict[str, Any]:
        return {"image": self._to_uint8(latents)}

    def _to_uint8(self, x: Any) -> Any:
        """Pixels or decoded latents as bytes, truncated as in the published code."""
        if self._decode is not None:
            x = 255.0 * (0.5 * self._decode(x) + 0.5)
        else:
            low, high = self._settings.value_range
            x = (x - low) * (255.0 / (high - low)) + 0.5
        return tf.cast(tf.clip_by_value(x, 0.0, 255.0), tf.uint8)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps TensorFlow and absl from logging below warnings."""
    logger, before = tf.get_logger(), logging.get_verbosity()
    level = logger.level
    logger.setLevel("WARNING")
    logging.set_verbosity(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)
        logging.set_verbosity(before)


def _function(function: Callable, inputs: list[tf.TensorSpec]) -> Any:
    def of_tensors(*tensors):
        names = [spec.name for spec in inputs]
        tensors = _checked_rows(tensors, inputs)
        return function(**dict(zip(names, tensors, strict=True)))

    return tf.function(of_tensors, input_signature=inputs, autograph=False)


def _checked_rows(tensors: Sequence, inputs: list[tf.TensorSpec]) -> list:
    """The tensors, once each is known to have its shape, and all as many rows.

    TensorFlow's Python checks what it is given; a server does not.
    """
    tensors = [
        tf.ensure_shape(x, spec.shape, name=f"shape_of_{spec.name}")
        for x, spec in zip(tensors, inputs, strict=True)
    ]
    names = " and ".join(f"`{spec.name}`" for spec in inputs)
    counts = [tf.shape(x)[0] for x in tensors]
    equal = tf.reduce_all(tf.equal(counts, counts[0]))
    message = f"{names} must have as many rows. Received:"
    with tf.control_dependencies([tf.debugging.Assert(equal, [message, *counts])]):
        return [tf.identity(x) for x in tensors]


def _checked_times(t: Any, s: Any) -> tuple[Any, Any]:
    """The times, once they are known to be in order."""
    message = "Times must satisfy 0 <= s <= t <= 1. Received t and s:"
    ordered = tf.reduce_all((s >= 0.0) & (s <= t) & (t <= 1.0))
    with tf.control_dependencies([tf.debugging.Assert(ordered, [message, t, s])]):
        return tf.identity(t), tf.identity(s)


def _encode_png(images: Any) -> Any:
    return tf.map_fn(
        tf.io.encode_png, images, fn_output_signature=tf.TensorSpec([], tf.string)
    )
