"""Walking from noise to data, by compiled steps and compiled loops."""

import math
from collections.abc import Callable, Hashable
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_imm import backend
from keras_imm.backend.recently_used import RecentlyUsed
from keras_imm.flow_map import FlowMap, Network
from keras_imm.precision import at_least_float32
from keras_imm.samplers.plan import SamplingPlan
from keras_imm.samplers.sampler import Sampler
from keras_imm.validation import check_boolean, check_instance

_SHORT_GRID = 16  # times that the shortest compiled loop can take


def walk(
    step: Callable, x: Any, times: np.ndarray, noise_at: Callable[[int], Any]
) -> Any:
    """Samples by a loop of Python over the steps.

    Args:
        step: Function of x, t, s, index and noise, as `Sampler.step`.
        x: Noise to start from, shape (batch, ...).
        times: The grid, shape (num_steps + 1,), in the dtype of `x`.
        noise_at: From a step's index to its noise, or None.

    Returns:
        Samples, the shape of `x`.
    """
    return _walk(step, x, _step_tensors(times), noise_at)


def _walk(step: Callable, x: Any, grid: list, noise_at: Callable[[int], Any]) -> Any:
    for i, (t, s, index) in enumerate(grid):
        x = step(x, t, s, index, noise_at(i))
    return x


def _step_tensors(times: np.ndarray) -> list[tuple[Any, Any, Any]]:
    """t, s and the index of every step of a grid, as scalar tensors."""
    tensors = ops.convert_to_tensor(times)
    indices = ops.arange(len(times) - 1, dtype="int32")
    return [(tensors[i], tensors[i + 1], indices[i]) for i in range(len(times) - 1)]


class Generator:
    """A flow map as compiled functions of its variables' values.

    Args:
        flow_map: A built `FlowMap`.
        compiled: Whether to compile; otherwise layers are called one by one.
        jit_compile: As in `backend.compile_function`.
    """

    def __init__(
        self, flow_map: FlowMap, compiled: bool = True, jit_compile: bool = False
    ):
        check_instance("flow_map", flow_map, FlowMap)
        check_boolean("compiled", compiled)
        check_boolean("jit_compile", jit_compile)
        self._flow_map = flow_map
        self.variables = flow_map.variables
        self._compiled = compiled
        self._jit_compile = jit_compile
        self._jump = self._compile(self._call)
        self._steps = RecentlyUsed()
        self._loops = RecentlyUsed()
        self._noises = RecentlyUsed()
        self._grids = RecentlyUsed()
        self._stream = keras.random.SeedGenerator(0)  # stands for others in functions

    def flow_map(
        self, values: list, x_t: Any, t: Any, s: Any, labels: Any, plan: SamplingPlan
    ) -> Any:
        """f_{s,t}(x_t) with given values of `variables` and the plan's guidance."""
        t, s = _as_time(t, x_t.dtype), _as_time(s, x_t.dtype)
        return self._jump(values, x_t, t, s, *_condition(labels, plan))

    def sample(
        self,
        values: list,
        plan: SamplingPlan,
        times: np.ndarray,
        x: Any,
        labels: Any,
        draws: Any = None,
        seed_generator: keras.random.SeedGenerator | None = None,
    ) -> Any:
        """Samples of one batch.

        Args:
            values: Values of `variables`.
            plan: Completed and checked `SamplingPlan`.
            times: Its times for this flow map.
            x: Noise to start from, of standard deviation `sigma_data`.
            labels: Integers of shape (batch,), or None.
            draws: All further noise, of the same standard deviation, shape (draws,
                batch, ...), or None to draw it.
            seed_generator: The stream to draw it from.

        Returns:
            Samples, the shape of `x`.
        """
        condition = _condition(labels, plan)
        x = backend.processes.share_batch(x)
        dtype = keras.backend.standardize_dtype(x.dtype)
        times = times.astype(dtype)
        noises = plan.noises()
        if self._compiled and backend.compiles_loops:
            return self._sample_in_one_call(
                values, plan, x, times, noises, condition, draws, seed_generator
            )
        step = self._step(plan.sampler)
        drawn = None

        def noise_at(i):
            nonlocal drawn
            if noises and i < noises:
                drawn = (
                    self.draw_noise(seed_generator, x.shape)
                    if draws is None
                    else draws[i]
                )
            return drawn

        return _walk(
            lambda *state: step(values, *state, *condition),
            x,
            self._grid(times),
            noise_at,
        )

    def _grid(self, times: np.ndarray) -> list:
        """Tensors of the steps, which the last few grids have kept."""
        key = times.dtype.char, times.tobytes()
        return self._grids.get_or_make(key, lambda: _step_tensors(times))

    def draw_noise(
        self, seed_generator: keras.random.SeedGenerator, shape: tuple
    ) -> Any:
        """Noise of standard deviation `sigma_data` of a shape with the batch."""
        shape = tuple(shape)
        if not (self._compiled and backend.compiles_loops):
            return self._normal(shape, seed_generator)
        # One call of the device in place of a dozen.
        draw = self._noises.get_or_make(
            shape,
            lambda: backend.compile_function(
                lambda state: self._draw_from_state(shape, state)
            ),
        )
        noise, state = draw(seed_generator.state.value)
        seed_generator.state.assign(state)
        return noise

    # -- The functions that are compiled

    def _call(self, values, x_t, t, s, labels, scale, interval):
        with self._stateless(values):
            return self._flow_map(x_t, t, s, labels, scale, interval)

    def _step(self, sampler: Sampler) -> Callable:
        """One step: (values, x, t, s, index, noise, *condition) -> x."""

        def step(values, x, t, s, index, noise, labels, scale, interval):
            with self._stateless(values):
                network = Network(self._flow_map, labels, scale, interval)
                return sampler.step(network, x, t, s, index, noise)

        return self._cached(self._steps, sampler, step)

    def _loop(self, sampler: Sampler) -> Callable:
        """All steps, and the state of the random stream after them."""

        def loop(
            values, x, times, count, noises, draws, state, labels, scale, interval
        ):
            shape = ops.shape(x)  # TensorFlow may have traced it for any batch size

            def body(i, carry):
                x, state = carry
                noise = None
                if draws is not None:
                    last = ops.shape(draws)[0] - 1
                    noise = ops.take(draws, ops.minimum(i, last), axis=0)
                elif state is not None:
                    noise, drawn = self._draw_from_state(shape, state)
                    state = ops.where(i < noises, drawn, state)
                t, s = ops.take(times, i), ops.take(times, i + 1)
                with self._stateless(values):
                    network = Network(self._flow_map, labels, scale, interval)
                    x_s = sampler.step(network, x, t, s, i, noise)
                # Of as many samples as before.
                return ops.reshape(x_s, ops.shape(x)), state

            if state is not None:
                return ops.fori_loop(0, count, body, (x, state))
            x = ops.fori_loop(0, count, lambda i, x: body(i, (x, None))[0], x)
            return x, None

        return self._cached(self._loops, sampler, loop)

    def _sample_in_one_call(
        self, values, plan, x, times, noises, condition, draws, seed_generator
    ):
        # One compiled loop serves all grids of up to as many times.
        longest = max(_SHORT_GRID, 2 ** math.ceil(math.log2(len(times))))
        padded = np.zeros(longest, times.dtype)
        padded[: len(times)] = times
        count = np.asarray(plan.num_steps, "int32")
        if not noises:
            draws = None
        draws_itself = noises > 0 and draws is None
        noises_left = np.asarray(noises, "int32") if draws_itself else None
        state = seed_generator.state.value if draws_itself else None
        x, state = self._loop(plan.sampler)(
            values, x, padded, count, noises_left, draws, state, *condition
        )
        if draws_itself:
            seed_generator.state.assign(state)
        return x

    def _stateless(self, values: list) -> keras.StatelessScope:
        mapping = zip(self.variables, values, strict=True)
        return keras.StatelessScope(state_mapping=mapping)

    def _draw_from_state(self, shape: tuple, state: Any) -> tuple[Any, Any]:
        """Noise from the state of a random stream, and the next state."""
        stream = self._stream
        with keras.StatelessScope(state_mapping=[(stream.state, state)]) as scope:
            noise = self._normal(shape, stream)
        return noise, scope.get_current_value(stream.state)

    def _normal(self, shape: tuple, stream: keras.random.SeedGenerator) -> Any:
        return backend.draw_normal(shape, stream) * self._flow_map.sigma_data

    def _cached(
        self, functions: RecentlyUsed, sampler: Sampler, function: Callable
    ) -> Callable:
        """The compiled function of all samplers that are alike."""
        return functions.get_or_make(
            _function_key(sampler), lambda: self._compile(function)
        )

    def _compile(self, function: Callable) -> Callable:
        if self._compiled:
            return backend.compile_function(function, self._jit_compile)
        # Or PyTorch would keep every step for a gradient.
        return lambda *arguments: keras.tree.map_structure(
            ops.stop_gradient, function(*arguments)
        )


def _function_key(sampler: Sampler) -> Hashable:
    """Equal for samplers that are alike: of equal configs and attributes."""
    return type(sampler), _content(sampler.get_config()), _content(vars(sampler))


def _content(value: Any) -> Hashable:
    """Equal for equal numbers, arrays and containers; else for the same object."""
    if isinstance(value, dict):
        return dict, tuple((key, _content(item)) for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return type(value), tuple(map(_content, value))
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        array = np.asarray(ops.convert_to_numpy(value))
        return array.shape, array.dtype.str, array.tobytes()
    if isinstance(value, Hashable):
        return type(value), value
    return type(value), id(value)


def _condition(labels: Any, plan: SamplingPlan) -> tuple:
    """Labels, guidance scale and interval as a compiled function takes them."""
    if labels is not None:
        labels = backend.as_argument(labels)
    scale, interval = plan.guidance_scale, plan.guidance_interval
    scale = None if scale is None else at_least_float32(scale)
    interval = None if interval is None else at_least_float32(interval)
    return labels, scale, interval


def _as_time(time: Any, dtype: Any) -> Any:
    if isinstance(time, float):
        return ops.convert_to_tensor(
            np.asarray(time, keras.backend.standardize_dtype(dtype))
        )
    return ops.cast(at_least_float32(time), dtype)
