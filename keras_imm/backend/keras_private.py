"""Every use of what Keras does not document, each with its reason.

Seen to work with the versions in `SEEN_WITH`; tests/backend/test_keras_private.py asks
for each of these parts. Methods of Keras that `TrainableModel` overrides and that are
private are listed in `OVERRIDDEN`.
"""

import contextlib
import contextvars
import functools
import importlib
import math
import os
from collections.abc import Callable, Iterator
from typing import Any

import keras
from keras import ops
from keras.src.backend.common import global_state
from keras.src.backend.common.stateless_scope import in_stateless_scope
from keras.src.backend.common.variables import AutocastScope, get_autocast_scope
from keras.src.initializers.random_initializers import compute_fans
from keras.src.random.seed_generator import draw_seed as _draw_seed
from keras.src.trainers import data_adapters
from keras.src.trainers.data_adapters.data_adapter import DataAdapter
from keras.src.utils.file_utils import is_remote_path as _is_remote_path

SEEN_WITH = ("3.15",)

# Under JAX, Keras empties the variables while it trains: a step that fails must give
# them back. Under PyTorch, Keras would compile its own bookkeeping with the step, and
# never compiles by itself.
OVERRIDDEN = {
    "jax": ("_get_jax_state", "_jax_state"),
    "tensorflow": (),
    "torch": ("_should_torch_compile", "_resolve_auto_jit_compile"),
}
# Hooks of the development version of Keras 3.16, overridden before it is released: the
# first is the new name of the one above, the second wraps every model in
# DistributedDataParallel once there are several processes.
OVERRIDDEN_IN_3_16 = {
    "jax": (),
    "tensorflow": (),
    "torch": ("_use_torch_compile", "_initialize_ddp"),
}


def without_autocast() -> Any:
    """Inside, variables are read in the dtype in which they are stored.

    Rematerialised blocks hand variables to another function; nothing public reads one
    uncast inside the call of a layer.
    """
    return AutocastScope(None)


def values_of(variables: list) -> list:
    """`[v.value for v in variables]`, the values that they have now.

    Under PyTorch `value` asks for each variable anew what surrounds the call, which
    takes longer than a small network's layers.
    """
    if keras.backend.backend() == "torch" and not _is_surrounded():
        values = [v._value for v in variables]
        if type(None) not in map(type, values):
            return values
    return [v.value for v in variables]


def _is_surrounded() -> bool:
    """Whether a scope decides what variables' values are."""
    return (
        in_stateless_scope()
        or get_autocast_scope() is not None
        or str(torch_device()) == "meta"
    )


def torch_device() -> Any:
    """Where Keras makes tensors under PyTorch; nothing public says it."""
    return _torch_core().get_device()


@functools.cache
def _torch_core() -> Any:
    return importlib.import_module("keras.src.backend.torch.core")


def own_state(stream: keras.random.SeedGenerator) -> Any:
    """The tensor that a draw changes under PyTorch; None where a scope's is changed."""
    return None if _is_surrounded() else stream.state._value


def allow_any_positional_arguments(model: keras.Model) -> None:
    """Lets a model be called as `model(x_t, 0.9, 0.1)`; Keras allows tensors alone."""
    model._allow_non_tensor_positional_args = True


def flash_attention_was_set() -> bool:
    """Whether Keras was told in this thread to use flash attention, or not to.

    Nothing public tells a user who enabled it from one who said nothing.
    """
    return hasattr(global_state.GLOBAL_STATE_TRACKER, "flash_attention")


def is_writing_legacy_file() -> bool:
    """Whether Keras asks for a config to write, or read, a model file of HDF5.

    `keras.saving.save_model` does it without calling a method that could be overridden.
    """
    return bool(global_state.get_global_attribute("use_legacy_config"))


def all_layers(layer: keras.layers.Layer, include_self: bool = True) -> list:
    """A layer and its sublayers at every depth; public for models only."""
    return list(layer._flatten_layers(include_self=include_self))


def has_torch_modules(layer: keras.layers.Layer) -> bool:
    """Whether PyTorch's own modules are inside, which hold their parameters themselves.

    They compute with these, whatever values stand for Keras's variables.
    """
    foreign = keras.layers.TorchModuleWrapper
    return any(isinstance(one, foreign) for one in all_layers(layer))


def variable_ids(layer: keras.layers.Layer) -> tuple:
    """Changes when variables of a layer or its sublayers are replaced or added."""
    return tuple(
        id(v)
        for one in all_layers(layer)
        for group in (one._trainable_variables, one._non_trainable_variables)
        for v in group
    )


def weights_made_trainable(layer: keras.layers.Layer) -> list[keras.Variable]:
    """Weights that are trained unless somebody froze their layer, in Keras's order.

    `trainable_variables` depends on what is frozen at the moment.
    """
    made = {id(v) for one in all_layers(layer) for v in one._trainable_variables}
    return [v for v in layer.weights if id(v) in made]


def data_adapter(data: Any, **options: Any) -> DataAdapter:
    """How Keras takes batches from data; `fit` takes an adapter in their place."""
    return data_adapters.get_data_adapter(data, **options)


def are_arrays(*data: Any) -> bool:
    """Whether `fit` would take all of these as arrays, None included."""
    return data_adapters.array_data_adapter.can_convert_arrays(data)


def is_remote_path(path: Any) -> bool:
    """Whether Keras writes what is at a path elsewhere first, and copies it."""
    return bool(_is_remote_path(os.fspath(path)))


def start_at_epoch(model: keras.Model, epoch: int | None) -> None:
    """Has the `fit` that is beginning count its epochs from `epoch`.

    Called by a callback in `on_train_begin`, as Keras's `BackupAndRestore` does it.
    None at the end has the next `fit` count from where it is told.
    """
    model._initial_epoch = epoch


def unwrap_optimizer(optimizer: Any) -> Any:
    """The optimizer inside a `LossScaleOptimizer`, or the optimizer itself."""
    return getattr(optimizer, "inner_optimizer", optimizer)


def moving_averages(optimizer: Any) -> list[tuple[keras.Variable, keras.Variable]]:
    """Pairs of a weight and its average; none without `use_ema`.

    Keras's one public use of the averages overwrites the weights with them.
    """
    found = []
    for inner in inner_optimizers(optimizer):
        if inner.built and inner.use_ema:
            averages = inner._model_variables_moving_average
            pairs = zip(inner._trainable_variables, averages, strict=True)
            found += [
                (weight, average) for weight, average in pairs if average is not None
            ]
    return found


def inner_optimizers(optimizer: Any) -> list:
    """The optimizers that update weights: those of a `MultiOptimizer`, or the one."""
    inner = unwrap_optimizer(optimizer)
    if inner is None:
        return []
    if isinstance(inner, keras.optimizers.MultiOptimizer):
        return list(inner.optimizers)
    return [inner]


def optimized_variables(optimizer: Any) -> list[keras.Variable]:
    """The weights that a built optimizer knows."""
    return unwrap_optimizer(optimizer)._trainable_variables


def prepare_inner_optimizers(optimizer: Any, prepare: Callable) -> None:
    """Calls `prepare` of each optimizer that updates weights, before it is built.

    A `MultiOptimizer` of a function learns of its optimizers while it is built.
    """
    prepared = inner_optimizers(optimizer)
    for inner in prepared:
        prepare(inner)
    outer = unwrap_optimizer(optimizer)
    if isinstance(outer, keras.optimizers.MultiOptimizer) and not outer.built:
        outer.build = functools.partial(
            _build_prepared, outer, outer.build, prepare, prepared
        )


def _build_prepared(
    optimizer: Any, own: Callable, prepare: Callable, prepared: list, variables: list
) -> None:
    """As `build` of a `MultiOptimizer`, preparing optimizers that are not yet."""
    choose = optimizer._optimizer_map

    def chosen(variable):
        one = choose(variable)
        if isinstance(one, keras.optimizers.Optimizer) and one not in prepared:
            prepare(one)
            prepared.append(one)
        return one

    optimizer._optimizer_map = chosen
    try:
        own(variables)
    finally:
        optimizer._optimizer_map = choose


def keep_averages_in_float32(optimizer: Any) -> None:
    """Has an optimizer keep float32 averages of weights in half precision.

    Called before it is built. Keras keeps and moves them in the weights' dtype, in
    which a momentum of 0.9999 is 1.
    """
    if optimizer.use_ema and not optimizer.built:
        own = optimizer.add_variable_from_reference
        optimizer.add_variable_from_reference = functools.partial(
            _add_float32_average, optimizer, own
        )


def _add_float32_average(
    optimizer: Any, own: Callable, reference: Any, name: Any = None, **options: Any
) -> Any:
    """As `add_variable_from_reference`; averages are float32 or wider."""
    dtype = keras.backend.result_type(reference.dtype, "float32")
    if name != "average" or dtype == reference.dtype:
        return own(reference, name, **options)
    optimizer._update_model_variables_moving_average = functools.partial(
        _update_wide_averages, optimizer
    )
    return optimizer.add_variable(
        shape=reference.shape,
        initializer="zeros",
        dtype=dtype,
        name=f"{reference.path.replace('/', '_')}_{name}",
        layout=getattr(reference, "_layout", None),
    )


def _update_wide_averages(optimizer: Any, variables: list) -> None:
    """What Keras computes, in the averages' own dtype."""
    averages = optimizer._model_variables_moving_average
    for weight, average in zip(variables, averages, strict=True):
        if average is not None:
            begun = ops.cast(ops.not_equal(optimizer.iterations, 0), average.dtype)
            momentum = begun * optimizer.ema_momentum
            value = ops.cast(weight.value, average.dtype)
            average.assign(momentum * average.value + (1.0 - momentum) * value)


def learning_rate_object(optimizer: Any) -> Any:
    """The schedule that an optimizer was given; `learning_rate` is its value."""
    return getattr(optimizer, "_learning_rate", None)


def is_own_optimizer(optimizer: Any) -> bool:
    """Whether an optimizer, and the one inside it, are Keras's or this library's."""
    return all(
        type(one).__module__.startswith(("keras.src.", "keras_imm."))
        for one in (optimizer, unwrap_optimizer(optimizer))
    )


def is_built_by_initializers(optimizer: Any) -> bool:
    """Whether the variables of an optimizer may be given their values all at the end.

    Nadam and Adafactor make some of a number, and others may do anything.
    """
    others = keras.optimizers.Nadam, keras.optimizers.Adafactor
    is_several = isinstance(
        unwrap_optimizer(optimizer), keras.optimizers.MultiOptimizer
    )
    return (
        is_own_optimizer(optimizer)
        and not is_several  # of which some may be unknown
        and not isinstance(unwrap_optimizer(optimizer), others)
    )


def portable_optimizer_config(config: Any) -> Any:
    """Names Keras's optimizers by their public module.

    Under PyTorch they are subclasses of their own, which other backends would load
    and could not run.
    """
    if not isinstance(config, dict):
        return config
    config = {key: portable_optimizer_config(value) for key, value in config.items()}
    if str(config.get("module")).startswith("keras.src.backend.torch.optimizers"):
        config["module"] = "keras.optimizers"
    return config


def without_symbolic_marks(layers: list) -> Any:
    """Forgets, at its end, the symbolic calls that were made inside.

    A symbolic call leaves nodes in the layers; nothing public removes them.
    """
    return _WithoutMarks(layers)


class _WithoutMarks:
    def __init__(self, layers: list):
        self._marks = [
            (nodes, len(nodes))
            for layer in layers
            for nodes in (layer._inbound_nodes, layer._outbound_nodes)
        ]

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: Any) -> None:
        for nodes, length in self._marks:
            del nodes[length:]


def calls_between(outputs: Any, stop_at: list) -> Iterator[Any]:
    """The calls of operations between the symbolic tensors `stop_at` and `outputs`.

    Each has `operation`, `arguments`, `input_tensors` and `output_tensors`. Keras's
    graph of a functional model holds whole layers, not the operations in them.
    """
    known = {id(tensor) for tensor in stop_at}
    seen = set()
    waiting = [
        t for t in keras.tree.flatten(outputs) if isinstance(t, keras.KerasTensor)
    ]
    while waiting:
        tensor = waiting.pop()
        if id(tensor) in known or not hasattr(tensor, "_keras_history"):
            continue
        operation, node_index, _ = tensor._keras_history
        if operation is None:
            continue
        node = operation._inbound_nodes[node_index]
        if id(node) not in seen:
            seen.add(id(node))
            yield node
            waiting.extend(node.input_tensors)


def take_gradients_as_reduced(optimizer: Any) -> None:
    """Has an optimizer under `tf.distribute` take gradients that have been added up.

    Keras would add them up after clipping each and asking whether each is finite.
    """
    inner = unwrap_optimizer(optimizer)
    inner._all_reduce_sum_gradients = lambda gradients_and_variables: (
        gradients_and_variables
    )


# The methods by which a Keras optimizer updates all variables, by what they update.
_UPDATES = {
    "averages": "_update_model_variables_moving_average",
    "clipping": "_clip_gradients",
    "decay": "_apply_weight_decay",
    "step": "_backend_update_step",
}


@contextlib.contextmanager
def replaced_updates(optimizer: Any, replacements: dict) -> Iterator[None]:
    """Inside, functions take the place of an optimizer's updates of all variables.

    Keras's optimizers have no public hook for all variables at once.

    Args:
        optimizer: Keras optimizer.
        replacements: By "averages", "clipping", "decay" or "step" a function that is
            called with the optimizer, its own method and that method's arguments, and
            returns what that method does.
    """
    inner = unwrap_optimizer(optimizer)
    replaced = []
    for part, function in replacements.items():
        method = _UPDATES[part]
        if method not in vars(inner):  # where somebody put his own it stays
            own = functools.partial(function, inner, getattr(inner, method))
            setattr(inner, method, own)
            replaced.append(method)
    try:
        yield
    finally:
        for method in replaced:
            delattr(inner, method)


def variable_index(optimizer: Any, variable: keras.Variable) -> int:
    """Place of a variable among those that an optimizer was built with.

    `update_step`, which a subclass implements, is given the variable alone.
    """
    return optimizer._get_variable_index(variable)


def adam_moments(optimizer: Any, variables: list) -> tuple[list, list]:
    """Values of an Adam's first and second moments of the variables."""
    inner = unwrap_optimizer(optimizer)
    indices = [variable_index(inner, v) for v in variables]
    return tuple(
        [moments[i].value for i in indices]
        for moments in (inner._momentums, inner._velocities)
    )


@contextlib.contextmanager
def initialized_at_the_end(replace: Callable[[list], list]) -> Iterator[None]:
    """Gives the variables that are made inside their values when all are made.

    Keras does so with those that a stateless scope leaves behind; nothing public says
    which these are. Inside another stateless scope they are left to that one.

    Args:
        replace: From a list of initializers, shapes and dtypes to a list of
            initializers that are called in their places.
    """
    if in_stateless_scope():
        yield
        return
    with keras.StatelessScope():
        yield
        made = global_state.get_global_attribute("uninitialized_variables", [])
        wanted = [(v._initializer, tuple(v.shape), v.dtype) for v in made]
        for variable, initializer in zip(made, replace(wanted), strict=True):
            variable._initializer = initializer


def scales_uniform(initializer: Any) -> bool:
    """Whether an initializer is Keras's `VarianceScaling` of a uniform distribution."""
    scaling = keras.initializers.VarianceScaling
    own = type(initializer).__call__ is scaling.__call__
    return own and initializer.distribution == "uniform"


def uniform_limit(initializer: Any, shape: tuple) -> float:
    """The largest value that such an initializer gives; only its values are public."""
    fan_in, fan_out = compute_fans(
        shape, input_axes=initializer.input_axes, output_axes=initializer.output_axes
    )
    fans = {"fan_in": fan_in, "fan_out": fan_out}
    fan = fans.get(initializer.mode, (fan_in + fan_out) / 2.0)
    return math.sqrt(3.0 * (initializer.scale / max(1.0, fan)))


# What takes the place of Keras's draws under PyTorch, by the draw's name.
_DRAWS = contextvars.ContextVar("draws", default=None)


@contextlib.contextmanager
def replaced_draws(replacements: dict) -> Iterator[None]:
    """Inside, in this thread, functions take the place of Keras's random functions.

    Under PyTorch these make a generator from a seed's values, which no traced graph can
    hold, and nothing public says where else a layer should draw from.

    Args:
        replacements: By "dropout", "normal" or "uniform" a function with the arguments
            of that function of `keras.random`.
    """
    _let_draws_be_replaced()
    token = _DRAWS.set(replacements)
    try:
        yield
    finally:
        _DRAWS.reset(token)


@functools.cache
def _let_draws_be_replaced() -> None:
    """Once: layers look up these functions in the module, when they are called."""
    module = importlib.import_module("keras.src.backend.torch.random")
    for name in ("dropout", "normal", "uniform"):
        setattr(module, name, _replaceable(name, getattr(module, name)))


def _replaceable(name: str, own: Any) -> Any:
    @functools.wraps(own)
    def draw(*args: Any, **kwargs: Any) -> Any:
        replacement = (_DRAWS.get() or {}).get(name, own)
        return replacement(*args, **kwargs)

    return draw


def draw_seed(seed: Any) -> Any:
    """The next seed, a tensor of two integers, of what layers call their seed.

    None is Keras's own stream, which nothing public leads to.
    """
    return _draw_seed(seed)
