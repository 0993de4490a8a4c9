"""What a trained model is for: flow maps and samples, from averaged weights."""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_imm import compilation, samplers
from keras_imm.precision import at_least_float32
from keras_imm.seeds import mix_seeds, random_states
from keras_imm.validation import check_choice, check_integer

_SHORT_GRID = 16  # times that the shortest compiled loop can take
_LONG_REQUEST = 32  # network evaluations from which `generate` shows a progress bar


class Generation:
    """`flow_map`, `generate` and `predict` of a `keras_imm.IMM`."""

    def flow_map(
        self,
        x_t: Any,
        t: Any,
        s: Any,
        labels: Any = None,
        guidance_scale: float | None = None,
        weights: str = "ema",
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
            weights: "ema" for the optimizer's averages, "raw" for the model's own.
                Without an averaging optimizer, or before its first step, the two
                are the same.

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
        x_t = at_least_float32(x_t)
        labels = self._check_labels(labels)
        for name, value in (("t", t), ("s", s), ("labels", labels)):
            shape = () if value is None else tuple(np.shape(value))
            if shape not in ((), (x_t.shape[0],)):
                raise ValueError(
                    f"`{name}` must be a scalar or of shape (batch,), here "
                    f"({x_t.shape[0]},). Received: shape {shape}"
                )
        if labels is not None:
            labels = np.broadcast_to(labels, x_t.shape[:1])
        return self._jump(self._weights(weights), labels, guidance_scale)(x_t, t, s)

    def generate(
        self,
        labels: Any = None,
        num_samples: int | None = None,
        num_steps: int = 2,
        guidance_scale: float | None = None,
        sampler: str = "pushforward",
        time_grid: str | Sequence[float] = "uniform",
        weights: str = "ema",
        noise: Any = None,
        seed: int | None = None,
        batch_size: int = 256,
        verbose: str | int = "auto",
    ) -> np.ndarray:
        """Generates samples from noise.

        Args:
            labels: Integer labels in [0, num_classes], shape (num_samples,) or a
                scalar. Default: the null label.
            num_samples: Number of samples. Default: as many as labels or rows of
                noise, else 1.
            num_steps: Network evaluations per sample, a positive integer.
            guidance_scale: Weight of classifier-free guidance (Eq. 14), or None
                for 1.
            sampler: "pushforward" (Algorithm 4) or "restart" (Algorithm 5).
            time_grid: "uniform" (Eq. 117), "edm" (Eq. 118), or the values of
                eta = sigma / alpha between `max_time` and `min_time` in sampling
                order: a list of n makes n + 1 steps, such as [1.4] for two.
            weights: "ema" for the optimizer's averages, "raw" for the model's own.
                Without an averaging optimizer, or before its first step, the two
                are the same.
            noise: Standard-normal noise to start from, shape (num_samples, ...).
                Makes the pushforward sampler repeatable across backends.
            seed: Non-negative integer that makes the samples repeatable on one
                backend for one `batch_size`. Default: the model's random stream.
            batch_size: Samples in one pass of the network.
            verbose: 0 for silence, 1 for a progress bar, "auto" for a progress bar
                on long requests.

        Returns:
            float32 array (num_samples, ...) in the range of the training data.

        Raises:
            ValueError: If labels are out of range, sizes disagree, or an argument
                is not known.
        """
        check_choice("sampler", sampler, samplers.SAMPLERS)
        times = samplers.time_grid(
            time_grid, num_steps, self.schedule, self.min_time, self.max_time
        )
        if num_steps not in (2, len(times) - 1):
            raise ValueError(
                f"`time_grid` as a list of {len(times) - 2} makes {len(times) - 1} "
                f"steps. Received: num_steps={num_steps}"
            )
        labels = self._check_labels(labels)
        count, labels, noise = self._check_request(labels, num_samples, noise)
        check_integer("batch_size", batch_size, at_least=1)
        batch_size = min(batch_size, count)
        generator = self._sampling_stream(seed)
        values = self._weights(weights)

        starts = range(0, count, batch_size)
        evaluations = len(starts) * (len(times) - 1)
        verbose = evaluations >= _LONG_REQUEST if verbose == "auto" else verbose
        progress = keras.utils.Progbar(evaluations, verbose=int(bool(verbose)))

        def fresh_noise(*_):
            return self._draw_noise(generator, batch_size)

        samples = []
        for start in starts:
            rows = _padded_rows(start, batch_size, count)
            x = fresh_noise() if noise is None else noise[rows] * self.sigma_data
            x = at_least_float32(x)
            jump = self._jump(
                values, None if labels is None else labels[rows], guidance_scale
            )
            if sampler == "pushforward":
                x = jump.pushforward(x, times)
            else:
                x = samplers.restart(jump, x, times, self.schedule, fresh_noise)
            progress.add(len(times) - 1)
            samples.append(ops.convert_to_numpy(x)[: count - start])
        return np.concatenate(samples).astype("float32")

    def _draw_noise(self, generator: keras.random.SeedGenerator, count: int) -> Any:
        """Noise of standard deviation sigma_data for some samples."""
        shape = (count, *self.data_shape)
        if keras.backend.backend() != "jax":
            return keras.random.normal(shape, seed=generator) * self.sigma_data
        # One call of the device in place of a dozen.
        noise, state = self._sampling_graph().noise(shape)(generator.state.value)
        generator.state.assign(state)
        return noise

    def _jump(self, values: list, labels: Any, guidance_scale: float | None) -> "_Jump":
        """The compiled flow map of given weights and labels."""
        if guidance_scale is not None and not self.num_classes:
            raise ValueError(
                "`guidance_scale` needs a backbone with `num_classes` > 0. "
                f"Received: guidance_scale={guidance_scale!r}"
            )
        if labels is not None:
            labels = np.asarray(labels, "int32")
            if keras.backend.backend() == "torch":
                labels = ops.convert_to_tensor(labels)
        if guidance_scale is not None:
            _check_guidance_scale(guidance_scale)
            guidance_scale = at_least_float32(guidance_scale)
        return _Jump(self._sampling_graph(), values, labels, guidance_scale)

    def _sampling_graph(self) -> "_SamplingGraph":
        if self._compiled_flow_map is None:
            self._compiled_flow_map = _SamplingGraph(self)
        return self._compiled_flow_map

    def _state(self) -> list[keras.Variable]:
        """All weights and random states, in an order that freezing does not change."""
        return self.weights + random_states(self)

    def _weights(self, weights: str) -> list:
        """Values of `_state()`: raw, or with the optimizer's averages."""
        check_choice("weights", weights, ("ema", "raw"))
        if not self.built:
            raise ValueError(
                "The shape of the data is not known yet: train the model, call it on "
                "data, or `build` it before sampling."
            )
        averages = self._averages() if weights == "ema" else {}
        variables = self._sampling_graph().variables
        return [averages.get(id(v), v).value for v in variables]

    def _averages(self) -> dict[int, keras.Variable]:
        """The optimizer's average of a weight by the weight's `id`.

        Empty before the optimizer's first step.
        """
        optimizer = getattr(self, "optimizer", None)
        optimizer = getattr(optimizer, "inner_optimizer", optimizer)
        if optimizer is None or not optimizer.built or not optimizer.use_ema:
            return {}
        if int(ops.convert_to_numpy(optimizer.iterations)) == 0:
            return {}
        return {
            id(weight): average
            for weight, average in zip(
                optimizer._trainable_variables,
                optimizer._model_variables_moving_average,
                strict=True,
            )
        }

    def _sampling_stream(self, seed: int | None) -> keras.random.SeedGenerator:
        if seed is None:
            return self.seed_generator
        check_integer("seed", seed, at_least=0)
        return keras.random.SeedGenerator(mix_seeds(int(seed)))

    def _check_labels(self, labels: Any) -> np.ndarray | None:
        if labels is None:
            return None
        if not self.num_classes:
            raise ValueError(
                "The backbone is unconditional (num_classes=0). "
                f"Received: labels={labels!r}"
            )
        labels = np.asarray(ops.convert_to_numpy(labels))
        if labels.ndim > 1 or not np.issubdtype(labels.dtype, np.integer):
            raise ValueError(
                "`labels` must be integers of shape (num_samples,). "
                f"Received: shape {labels.shape}, dtype {labels.dtype}"
            )
        outside = labels[(labels < 0) | (labels > self.num_classes)]
        if outside.size:
            raise ValueError(
                f"`labels` must be in [0, {self.num_classes}], where "
                f"{self.num_classes} is the null label. Received: {outside[0]}"
            )
        return labels

    def _check_request(
        self, labels: np.ndarray | None, num_samples: int | None, noise: Any
    ) -> tuple[int, np.ndarray | None, np.ndarray | None]:
        """The number of samples that all arguments agree on."""
        if num_samples is not None:
            check_integer("num_samples", num_samples, at_least=1)
        sizes = {"num_samples": num_samples}
        if noise is not None:
            noise = np.asarray(ops.convert_to_numpy(noise))
            if noise.shape[1:] != self.data_shape:
                raise ValueError(
                    f"`noise` must have shape (num_samples, "
                    f"{', '.join(map(str, self.data_shape or ()))}). "
                    f"Received: shape {noise.shape}"
                )
            sizes["noise"] = len(noise)
        if labels is not None and labels.ndim == 1:
            sizes["labels"] = len(labels)
        known = {name: size for name, size in sizes.items() if size is not None}
        if len(set(known.values())) > 1 or 0 in known.values():
            raise ValueError(
                "`num_samples`, `labels` and `noise` must agree on a positive number "
                f"of samples. Received: {known}"
            )
        count = next(iter(known.values()), 1)
        if labels is not None:
            labels = np.broadcast_to(labels, (count,))
        return count, labels, noise

    def predict(
        self,
        x: Any,
        batch_size: int | None = None,
        verbose: str | int = "auto",
        steps: int | None = None,
        callbacks: list | None = None,
    ) -> np.ndarray:
        """Samples with the model's default sampler.

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


class _Jump:
    """The flow map with given weights, labels and guidance: (x, t, s) -> x_s."""

    def __init__(
        self, graph: "_SamplingGraph", values: list, labels: Any, guidance_scale: Any
    ):
        self._graph = graph
        self._values = values
        self._rest = labels, guidance_scale

    def __call__(self, x: Any, t: Any, s: Any) -> Any:
        t, s = _as_time(t, x.dtype), _as_time(s, x.dtype)
        return self._graph.flow_map(self._values, x, t, s, *self._rest)

    def pushforward(self, x: Any, times: np.ndarray) -> Any:
        """As `samplers.pushforward`, in one call of the device where it can loop."""
        if self._graph.pushforward is None:
            return samplers.pushforward(self, x, times)
        # One compiled loop serves all grids of up to as many times.
        longest = max(_SHORT_GRID, 2 ** math.ceil(math.log2(len(times))))
        dtype = keras.backend.standardize_dtype(x.dtype)
        padded = np.zeros(longest, dtype)
        padded[: len(times)] = times
        count = np.asarray(len(times) - 1, "int32")
        return self._graph.pushforward(self._values, x, padded, count, *self._rest)


class _SamplingGraph:
    """The flow map of a model as a function of its variables' values, and noise.

    `flow_map(values, x_t, t, s, labels, guidance_scale)` is one jump. `pushforward(
    values, x, times, count, labels, guidance_scale)` is `count` jumps along `times`, or
    None where no loop is compiled.
    """

    def __init__(self, model: Generation):
        self.variables = model._state()
        self._sigma_data = model.sigma_data
        self._noise = {}

        def flow_map(values, x_t, t, s, labels, guidance_scale):
            mapping = zip(self.variables, values, strict=True)
            with keras.StatelessScope(state_mapping=mapping):
                return model(x_t, t, s, labels, guidance_scale, training=False)

        def pushforward(values, x, times, count, labels, guidance_scale):
            def step(i, x):
                t, s = ops.take(times, i), ops.take(times, i + 1)
                x_s = flow_map(values, x, t, s, labels, guidance_scale)
                return ops.reshape(x_s, ops.shape(x))  # of as many samples as before

            return ops.fori_loop(0, count, step, x)

        self.flow_map, self.pushforward = flow_map, None
        if not model.run_eagerly:
            self.flow_map = compilation.compile_function(flow_map, model.jit_compile)
            if keras.backend.backend() != "torch":
                self.pushforward = compilation.compile_function(
                    pushforward, model.jit_compile
                )

    def noise(self, shape: tuple) -> Callable:
        """Noise from the state of a random stream: state -> (noise, new state)."""

        def draw(state):
            stream = keras.random.SeedGenerator(0)
            mapping = [(stream.state, state)]
            with keras.StatelessScope(state_mapping=mapping) as scope:
                noise = keras.random.normal(shape, seed=stream) * self._sigma_data
            return noise, scope.get_current_value(stream.state)

        if shape not in self._noise:
            self._noise[shape] = compilation.compile_function(draw)
        return self._noise[shape]


def _as_time(time: Any, dtype: Any) -> Any:
    if isinstance(time, float):
        dtype = keras.backend.standardize_dtype(dtype)
        return ops.convert_to_tensor(np.asarray(time, dtype))
    return ops.cast(at_least_float32(time), dtype)


def _check_guidance_scale(value: Any) -> None:
    """Raises ValueError unless `value` is one finite number, of any kind."""
    try:
        finite = math.isfinite(value)
    except (TypeError, ValueError):
        finite = False
    if not finite:
        raise ValueError(
            "`guidance_scale` must be a finite number or None. "
            f"Received: guidance_scale={value!r}"
        )


def _padded_rows(start: int, batch_size: int, count: int) -> np.ndarray:
    """Rows of one batch; the last batch repeats the last row to keep its size."""
    return np.minimum(np.arange(start, start + batch_size), count - 1)
