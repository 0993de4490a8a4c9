"""What keras_imm uses of Keras without Keras promising it."""

import ast
import importlib
import inspect
import pathlib
import pkgutil
import re
import tomllib
from concurrent.futures import ThreadPoolExecutor

import keras
import numpy as np
import pytest
from keras import ops
from keras.src.backend.common.variables import AutocastScope

import keras_imm
from keras_imm.backend import keras_private

PACKAGE = pathlib.Path(keras_imm.__file__).parent
PROJECT = PACKAGE.parent / "pyproject.toml"


def require(owner, name):
    """Fails unless Keras has a private part, saying which and what was seen."""
    assert hasattr(owner, name), (
        f"Keras {keras.__version__} has no {name!r} in {owner!r}, which "
        f"keras_imm/backend/keras_private.py uses. Seen with Keras "
        f"{', '.join(keras_private.SEEN_WITH)}"
    )


def built_optimizer(kind=keras.optimizers.Adam, **options):
    variables = [keras.Variable(np.full(2, i, "float32")) for i in (1.0, 2.0)]
    optimizer = kind(0.5, **options)
    optimizer.build(variables)
    return optimizer, variables


def apply(optimizer, gradients, variables):
    """One step. JAX's with a scaled loss changes no variables itself."""
    if keras.backend.backend() != "jax":
        optimizer.apply(gradients, variables)
        return
    groups = variables, optimizer.variables
    values, state = ([v.value for v in group] for group in groups)
    after = optimizer.stateless_apply(state, gradients, values)
    for group, new in zip(groups, after, strict=True):
        for variable, value in zip(group, new, strict=True):
            variable.assign(value)


def numpy(x):
    return np.array(ops.convert_to_numpy(x))


def test_the_installed_keras_was_seen():
    version = ".".join(keras.__version__.split(".")[:2])
    assert version in keras_private.SEEN_WITH, (
        f"keras_imm/backend/keras_private.py was seen to work with Keras "
        f"{', '.join(keras_private.SEEN_WITH)}. Installed: {keras.__version__}"
    )


def test_the_package_asks_for_the_versions_that_were_seen():
    project = tomllib.loads(PROJECT.read_text())["project"]
    (requirement,) = (d for d in project["dependencies"] if d.startswith("keras"))
    lower, upper = re.fullmatch(r"keras>=(\d+\.\d+),<(\d+\.\d+)", requirement).groups()
    major, minor = keras_private.SEEN_WITH[-1].split(".")
    assert lower == keras_private.SEEN_WITH[0]
    assert upper == f"{major}.{int(minor) + 1}"


# -- Each private part exists


def private_names(path):
    """Attributes with a leading underscore that a file reads or sets."""
    return {
        node.attr
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and is_private(node.attr)
    }


def is_private(name):
    return name.startswith("_") and not name.startswith("__")


def owners():
    """An object of Keras that has each private part, by the part's name."""
    optimizer, _ = built_optimizer(use_ema=True)
    layer = keras.layers.Dense(2)
    layer.build((None, 3))
    of_optimizer = (
        "_all_reduce_sum_gradients",
        "_apply_weight_decay",
        "_backend_update_step",
        "_clip_gradients",
        "_get_variable_index",
        "_learning_rate",
        "_model_variables_moving_average",
        "_momentums",
        "_trainable_variables",
        "_update_model_variables_moving_average",
        "_velocities",
    )
    if keras.backend.backend() != "tensorflow":
        of_optimizer = of_optimizer[1:]  # `tf.distribute` is TensorFlow's
    of_layer = ("_flatten_layers", "_inbound_nodes", "_outbound_nodes")
    model = keras.Sequential()
    several = keras.optimizers.MultiOptimizer(lambda variable: optimizer)
    return {
        **dict.fromkeys(of_optimizer, optimizer),
        **dict.fromkeys(of_layer, layer),
        "_non_trainable_variables": layer,
        "_trainable_variables": layer,
        "_allow_non_tensor_positional_args": layer,
        "_initial_epoch": model,
        "_initializer": keras.Variable("zeros", (1,)),
        "_optimizer_map": several,
        "_keras_history": ops.square(keras.Input((2,))),
        "_value": keras.Variable("zeros", (1,)),
    }


@pytest.mark.parametrize("name", sorted(owners()))
def test_keras_has_each_part(name):
    require(owners()[name], name)


def test_every_part_is_asked_for():
    """In the list above, under one backend or another."""
    used = private_names(PACKAGE / "backend" / "keras_private.py")
    own = {
        node.attr
        for node in ast.walk(ast.parse(inspect.getsource(keras_private)))
        if isinstance(node, ast.Attribute)
        and isinstance(node.ctx, ast.Store)
        and isinstance(node.value, ast.Name)
        and node.value.id == "self"
    }
    used |= set(keras_private._UPDATES.values())
    elsewhere = {"_all_reduce_sum_gradients"}
    elsewhere |= {"_learning_rate"}  # by its name as a string
    assert used - own - elsewhere == set(owners()) - elsewhere


def test_a_part_that_is_missing_is_named():
    with pytest.raises(AssertionError, match=r"no '_gone' in .*Seen with Keras 3\.15"):
        require(keras.layers.Layer, "_gone")


@pytest.mark.parametrize("name", keras_private.OVERRIDDEN[keras.backend.backend()])
def test_keras_calls_what_is_overridden(name):
    plain = keras.Sequential()
    if name == "_jax_state":  # an attribute that exists while Keras trains
        source = inspect.getsource(type(plain).jax_state_sync)
        assert "self._jax_state" in source, f"Keras's `jax_state_sync` has no {name!r}"
        return
    require(plain, name)
    sources = [
        inspect.getsource(inspect.getmodule(one))
        for one in type(plain).__mro__
        if hasattr(one, "train_function") or "Trainer" in one.__name__
    ]
    assert any(re.search(rf"self\.{name}\(", source) for source in sources), (
        f"Keras {keras.__version__} never calls {name!r}. "
        f"Seen with Keras {', '.join(keras_private.SEEN_WITH)}"
    )


def classes():
    """Every class of the package."""
    for info in pkgutil.walk_packages(keras_imm.__path__, "keras_imm."):
        others = set(BACKENDS) - {keras.backend.backend()}
        if info.name.endswith("__main__") or set(info.name.split(".")) & others:
            continue
        if info.name.startswith("keras_imm.serving."):  # holds no Keras class
            continue
        module = importlib.import_module(info.name)
        for one in vars(module).values():
            if inspect.isclass(one) and one.__module__ == info.name:
                yield one


BACKENDS = ("jax", "tensorflow", "torch")


def test_nothing_else_of_keras_is_overridden():
    """Neither on purpose nor because a name happens to be the same."""
    backend = keras.backend.backend()
    overridden = set()
    for one in classes():
        bases = [b for b in one.__mro__ if b.__module__.startswith("keras.")]
        theirs = {name for base in bases for name in vars(base)}
        overridden |= {n for n in vars(one) if is_private(n)} & theirs
    listed = {
        *keras_private.OVERRIDDEN[backend],
        *keras_private.OVERRIDDEN_IN_3_16[backend],
    }
    model = vars(keras_imm.backend.TrainableModel)
    assert overridden <= listed
    assert listed - {"_jax_state"} <= {n for n in model if is_private(n)}


# -- Nothing else uses a private part

# What begins with an underscore and is not Keras's.
EXCEPTIONS = {
    "_asdict": "documented method of named tuples",
    "_fields": "documented attribute of named tuples",
    "_exit": "documented function of os",
    "_data_dir_root": "TensorFlow Datasets: the folder of a data set not prepared yet",
    "_pytree": "PyTorch's trees, which its own exported programs are flattened by",
    "_inductor": "PyTorch's documented way to packages of AOTInductor",
    "_to_copy": "name of an ATen operation in a traced graph",
    "_foreach_copy_": "PyTorch's operation on many tensors at once",
    "_foreach_add": "as _foreach_copy_",
    "_foreach_div": "as _foreach_copy_",
    "_foreach_lerp_": "as _foreach_copy_",
    "_foreach_mul": "as _foreach_copy_",
    "_foreach_norm": "as _foreach_copy_",
    "_fused_adam_": "PyTorch's kernel of Adam",
    "_version": "PyTorch's count of how often a tensor was changed in place",
    "_unsafe_view": "name of an ATen operation in a traced graph",
    "_scaled_dot_product_cudnn_attention": "as _unsafe_view",
    "_scaled_dot_product_flash_attention": "as _unsafe_view",
    "_scaled_dot_product_flash_attention_for_cpu": "as _unsafe_view",
    "_scaled_dot_product_flash_attention_for_cpu_backward": "as _unsafe_view",
}


def defined_names(tree):
    """Names that a file defines: functions, variables, attributes of self."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield node.name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif (
            isinstance(node, ast.Attribute)
            and isinstance(node.ctx, ast.Store)
            and isinstance(node.value, ast.Name)
            and node.value.id in ("self", "cls")
        ):
            yield node.attr


def foreign_private_names(source):
    """What a file uses with a leading underscore and does not define itself."""
    tree = ast.parse(source)
    own = set(defined_names(tree))
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            names = [node.attr]
        elif isinstance(node, ast.ImportFrom):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [part for alias in node.names for part in alias.name.split(".")]
        else:
            continue
        yield from (n for n in names if is_private(n) and n not in own)


def others():
    private = PACKAGE / "backend" / "keras_private.py"
    return [path for path in sorted(PACKAGE.rglob("*.py")) if path != private]


@pytest.mark.one_backend("reads source files")
@pytest.mark.parametrize("path", others(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_nobody_else_uses_private_parts(path):
    source = path.read_text()
    imported = {
        name
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in (
            [f"{node.module}."]
            if isinstance(node, ast.ImportFrom)
            else [f"{alias.name}." for alias in node.names]
        )
    }
    assert not [name for name in imported if name.startswith("keras.src.")]
    assert not set(foreign_private_names(source)) - set(EXCEPTIONS), (
        "go through keras_imm/backend/keras_private.py"
    )


@pytest.mark.one_backend("reads source files")
def test_exceptions_are_used():
    used = {n for path in others() for n in foreign_private_names(path.read_text())}
    assert set(EXCEPTIONS) <= used


def test_the_scan_sees_what_it_looks_for():
    source = "import keras\nclass A(keras.Model):\n  def _a(self): self._b = layer._c\n"
    assert list(foreign_private_names(source)) == ["_c"]
    source = "from keras.src import _x\ndef f(self): return self._get_variable_index(1)"
    assert sorted(foreign_private_names(source)) == ["_get_variable_index", "_x"]


# -- Each function does what it says


def test_variables_are_read_uncast():
    class Reading(keras.layers.Layer):
        def build(self, _):
            self.w = self.add_weight(shape=(2,), name="w")

        def call(self, x):
            cast = self.w.value
            with keras_private.without_autocast():
                uncast = self.w.value
            seen.append(
                [keras.backend.standardize_dtype(v.dtype) for v in (cast, uncast)]
            )
            return x * 1.0

    seen = []
    Reading(dtype="mixed_bfloat16")(np.ones((1, 2), "float32"))
    assert seen[-1] == ["bfloat16", "float32"]


class Shifted(keras.Model):
    def __init__(self, allow):
        super().__init__()
        if allow:
            keras_private.allow_any_positional_arguments(self)

    def call(self, x, t=None):
        return x + t


def test_numbers_may_be_positional_arguments():
    x = ops.ones((2,))
    with pytest.raises(ValueError, match="positional"):
        Shifted(allow=False)(x, 0.5)
    np.testing.assert_array_equal(numpy(Shifted(allow=True)(x, 0.5)), [1.5, 1.5])


def test_variables_are_initialized_at_the_end_by_what_takes_the_place():
    given = []

    def replace(wanted):
        given.extend(wanted)
        return [lambda shape, dtype: ops.full(shape, 3, dtype)] * len(wanted)

    with keras_private.initialized_at_the_end(replace):
        first = keras.Variable("ones", (2,), name="first")
        second = keras.Variable("zeros", (3, 1), dtype="int32", trainable=False)
        assert not given
    np.testing.assert_array_equal(numpy(first.value), [3, 3])
    np.testing.assert_array_equal(numpy(second.value), [[3], [3], [3]])
    assert [one[1:] for one in given] == [((2,), "float32"), ((3, 1), "int32")]
    assert isinstance(given[0][0], keras.initializers.Ones)
    np.testing.assert_array_equal(numpy(keras.Variable("ones", (2,)).value), [1, 1])


@pytest.mark.parametrize("shape", [(30, 7), (3, 3, 4, 6), (9,)])
def test_the_limit_of_a_uniform_initializer_is_its_largest_value(shape):
    for mode in ("fan_in", "fan_out", "fan_avg"):
        initializer = keras.initializers.VarianceScaling(0.4, mode, "uniform", seed=1)
        assert keras_private.scales_uniform(initializer)
        limit = keras_private.uniform_limit(initializer, shape)
        # Its random values are in [-limit, limit), a hundredth of which is left out.
        largest = max(
            np.max(np.abs(numpy(type(initializer).from_config(config)(shape))))
            for config in (initializer.get_config() | {"seed": i} for i in range(300))
        )
        assert 0.99 * limit < largest <= limit * (1 + 1e-6)
    normal = keras.initializers.VarianceScaling(0.4, "fan_in", "truncated_normal")
    assert not keras_private.scales_uniform(normal)
    assert not keras_private.scales_uniform(lambda shape, dtype: None)


def nested():
    inner = keras.Sequential([keras.layers.Dense(2, name="a")], name="inner")
    outer = keras.Sequential([inner, keras.layers.Dense(1, name="b")], name="outer")
    outer.build((None, 3))
    return outer


def test_all_layers_are_found_at_every_depth():
    model = nested()
    names = [layer.name for layer in keras_private.all_layers(model)]
    assert names[0] == "outer"
    assert {"outer", "inner", "a", "b"} <= set(names)
    without = keras_private.all_layers(model, include_self=False)
    assert [layer.name for layer in without] == names[1:]


def test_weights_made_trainable_do_not_depend_on_what_is_frozen():
    model = keras.Sequential(
        [keras.layers.BatchNormalization(), keras.layers.Dense(2, name="a")]
    )
    model.build((None, 3))
    expected = [v.path for v in model.trainable_variables]
    assert len(expected) == 4 < len(model.weights)
    model.layers[1].trainable = False
    assert len(model.trainable_variables) == 2
    found = keras_private.weights_made_trainable(model)
    assert [v.path for v in found] == expected


def test_the_optimizer_inside_is_found():
    optimizer = keras.optimizers.SGD()
    scaled = keras.optimizers.LossScaleOptimizer(optimizer)
    assert keras_private.unwrap_optimizer(scaled) is optimizer
    assert keras_private.unwrap_optimizer(optimizer) is optimizer


@pytest.mark.parametrize("wrap", [lambda o: o, keras.optimizers.LossScaleOptimizer])
def test_moving_averages_are_those_of_the_weights(wrap):
    inner = keras.optimizers.SGD(1.0, use_ema=True, ema_momentum=0.75)
    optimizer = wrap(inner)
    assert keras_private.moving_averages(optimizer) == []  # not built
    variables = [keras.Variable(np.full(2, i, "float32")) for i in (1.0, 2.0)]
    optimizer.build(variables)
    scale = float(ops.convert_to_numpy(optimizer.scale_loss(np.float32(1.0))))
    for _ in range(2):  # the first average is the weight
        gradients = [scale * ops.ones((2,)) for _ in variables]
        apply(optimizer, gradients, variables)
    pairs = keras_private.moving_averages(optimizer)
    assert [weight is v for (weight, _), v in zip(pairs, variables, strict=True)]
    for start, (weight, average) in zip((1.0, 2.0), pairs, strict=True):
        np.testing.assert_allclose(numpy(weight), start - 2.0)
        expected = 0.75 * (start - 1.0) + 0.25 * (start - 2.0)
        np.testing.assert_allclose(numpy(average), expected)


def test_averages_of_half_precision_are_float32():
    """By the recursion in float64; Keras's own stay where they began."""
    variable = keras.Variable(np.full(2, 1.0, "float32"), dtype="bfloat16")
    optimizer = keras.optimizers.SGD(0.5, use_ema=True, ema_momentum=0.9999)
    keras_private.keep_averages_in_float32(optimizer)
    optimizer.build([variable])
    ((_, average),) = keras_private.moving_averages(optimizer)
    assert average.dtype == "float32"
    gradient = ops.convert_to_tensor(np.ones(2), "bfloat16")
    for _ in range(3):
        apply(optimizer, [gradient], [variable])
    expected = 0.5
    for weight in (0.0, -0.5):
        expected = 0.9999 * expected + 0.0001 * weight
    np.testing.assert_allclose(numpy(average), expected, rtol=1e-6)


def test_data_come_as_adapters_and_arrays_are_known():
    batches = [np.zeros((2, 3), "float32")] * 3
    adapter = keras_private.data_adapter((batch,) for batch in batches)
    assert isinstance(adapter, keras_private.DataAdapter)
    assert keras_private.data_adapter(adapter) is adapter
    assert keras_private.are_arrays(batches[0], None)
    assert not keras_private.are_arrays(iter(batches), None)


def test_variables_that_are_added_are_noticed():
    layer = keras.layers.Dense(2)
    layer.build((None, 3))
    before = keras_private.variable_ids(layer)
    assert before == keras_private.variable_ids(layer)
    layer.enable_lora(1)
    assert before != keras_private.variable_ids(layer)


def test_without_averaging_there_are_no_averages():
    assert keras_private.moving_averages(built_optimizer()[0]) == []
    assert keras_private.moving_averages(None) == []


def test_the_schedule_of_the_learning_rate_is_found():
    schedule = keras.optimizers.schedules.CosineDecay(0.5, 10)
    optimizer = keras.optimizers.SGD(schedule)
    assert keras_private.learning_rate_object(optimizer) is schedule
    assert float(optimizer.learning_rate) == 0.5
    assert keras_private.learning_rate_object(object()) is None


class Own(keras.optimizers.SGD):
    pass


def test_whose_an_optimizer_is():
    for optimizer in (keras.optimizers.Adam(), keras_imm.optimizers.RAdam()):
        assert keras_private.is_own_optimizer(optimizer)
        scaled = keras.optimizers.LossScaleOptimizer(optimizer)
        assert keras_private.is_own_optimizer(scaled)
    assert not keras_private.is_own_optimizer(Own())
    assert not keras_private.is_own_optimizer(
        keras.optimizers.LossScaleOptimizer(Own())
    )


def test_a_saved_optimizer_is_named_by_its_public_module():
    inner = keras.optimizers.AdamW(0.25, weight_decay=0.5)
    for optimizer in (inner, keras.optimizers.LossScaleOptimizer(inner)):
        config = keras.saving.serialize_keras_object(optimizer)
        portable = keras_private.portable_optimizer_config(config)
        assert "keras.src.backend" not in str(portable)
        assert "keras.optimizers" in portable["module"]
        loaded = keras.saving.deserialize_keras_object(portable)
        assert type(loaded) is type(optimizer)
        assert keras_private.unwrap_optimizer(loaded).weight_decay == 0.5
    assert keras_private.portable_optimizer_config("adam") == "adam"


def test_symbolic_calls_are_forgotten():
    layer = keras.layers.Dense(2)
    layer(keras.Input((3,)))
    nodes = list(layer._inbound_nodes)
    with keras_private.without_symbolic_marks([layer]):
        layer(keras.Input((3,)))
        assert len(layer._inbound_nodes) == len(nodes) + 1
    assert layer._inbound_nodes == nodes


def test_calls_are_found_between_two_tensors():
    before = ops.square(keras.Input((3,)))
    x = ops.exp(before)
    y = ops.matmul(x, ops.transpose(x)) + keras.layers.Dense(3)(x)
    calls = list(keras_private.calls_between(y, stop_at=[before]))
    names = [type(call.operation).__name__ for call in calls]
    assert sorted(names) == ["Add", "Dense", "Exp", "Matmul", "Transpose"]
    matmul = calls[names.index("Matmul")]
    assert matmul.input_tensors[0] is x
    assert matmul.arguments.args[0] is x
    assert tuple(matmul.output_tensors[0].shape) == tuple(
        ops.matmul(x, ops.transpose(x)).shape
    )


def test_an_optimizer_takes_gradients_as_they_are():
    inner = keras.optimizers.SGD(1.0)
    keras_private.take_gradients_as_reduced(keras.optimizers.LossScaleOptimizer(inner))
    pairs = [("gradient", "variable")]
    assert inner._all_reduce_sum_gradients(pairs) is pairs


@pytest.mark.parametrize("wrap", [lambda o: o, keras.optimizers.LossScaleOptimizer])
def test_updates_are_replaced_inside_alone(wrap):
    """Each part is called with the optimizer, its own method and its arguments."""
    if keras.backend.backend() != "torch":
        pytest.skip("PyTorch's step alone replaces them")
    inner, variables = built_optimizer(use_ema=True, beta_2=0.5)
    optimizer = wrap(inner)
    if optimizer is not inner:
        optimizer.build(variables)
    calls = []

    def replacement(part):
        def function(given, own, *arguments):
            calls.append(part)
            assert given is inner
            return own(*arguments)

        return function

    import torch

    parts = ("averages", "clipping", "decay", "step")
    replacements = {part: replacement(part) for part in parts}
    scale = float(optimizer.scale_loss(ops.ones(())))
    gradients = [scale * ops.ones((2,)) for _ in variables]
    with torch.no_grad():
        with keras_private.replaced_updates(optimizer, replacements):
            optimizer.apply(list(gradients), variables)
        assert sorted(calls) == sorted(parts)
        optimizer.apply(list(gradients), variables)
    assert len(calls) == len(parts)
    np.testing.assert_allclose(numpy(variables[0]), 1.0 - 2 * 0.5, atol=1e-5)


def test_moments_and_places_are_those_of_the_variables():
    optimizer, variables = built_optimizer(beta_1=0.5, beta_2=0.75)
    gradients = [np.full(2, g, "float32") for g in (4.0, 8.0)]
    optimizer.apply([ops.convert_to_tensor(g) for g in gradients], variables)
    assert [keras_private.variable_index(optimizer, v) for v in variables] == [0, 1]
    first, second = keras_private.adam_moments(optimizer, variables[::-1])
    np.testing.assert_allclose([numpy(v)[0] for v in first], [4.0, 2.0])
    np.testing.assert_allclose([numpy(v)[0] for v in second], [16.0, 4.0])


def test_keras_draws_where_they_are_replaced():
    """Layers and functions look them up in the module that is changed."""
    if keras.backend.backend() != "torch":
        pytest.skip("PyTorch's draws alone are replaced")
    calls = []

    def replacement(name):
        def draw(*args, **kwargs):
            calls.append((name, kwargs.get("seed")))
            return ops.ones((2, 3, 3, 4))

        return draw

    layers = keras.layers
    users = {
        "dropout": [layers.Dropout(0.5), layers.SpatialDropout2D(0.5, seed=1)],
        "normal": [layers.GaussianNoise(0.5), layers.GaussianDropout(0.5, seed=1)],
        "uniform": [layers.AlphaDropout(0.5)],
    }
    x = ops.ones((2, 3, 3, 4))
    for name, of_name in users.items():
        for layer in of_name:
            with keras_private.replaced_draws({name: replacement(name)}):
                layer(x, training=True)
            assert calls == [(name, layer.seed_generator)], (
                f"Keras {keras.__version__} draws elsewhere in {layer.name!r}. "
                f"Seen with Keras {', '.join(keras_private.SEEN_WITH)}"
            )
            calls.clear()
            layer(x, training=True)
            assert not calls
    with keras_private.replaced_draws({"normal": replacement("normal")}):
        keras.random.normal((2,), seed=1)
        keras.random.truncated_normal((2, 3, 3), seed=2)
        keras.random.uniform((2,), seed=3)
    assert [seed for _, seed in calls] == [1, 2]


def test_values_are_those_that_variables_have_now():
    """Also in scopes, of variables that were assigned, and of those yet to be made."""
    variables = [keras.Variable(np.full(2, i, "float32")) for i in (1.0, 2.0)]

    def read():
        return [numpy(v).tolist() for v in keras_private.values_of(variables)]

    assert read() == [[1.0, 1.0], [2.0, 2.0]]
    variables[0].assign([3.0, 4.0])
    assert read() == [[3.0, 4.0], [2.0, 2.0]]
    with keras.StatelessScope(state_mapping=[(variables[1], ops.zeros(2))]):
        assert read() == [[3.0, 4.0], [0.0, 0.0]]
        made = keras.Variable("ones", (2,))
        assert numpy(keras_private.values_of([made])[0]).tolist() == [1.0, 1.0]
    with AutocastScope("float16"):
        dtypes = {ops.dtype(v) for v in keras_private.values_of(variables)}
        assert dtypes == {"float16"}
    assert read() == [[3.0, 4.0], [2.0, 2.0]]


@pytest.mark.skipif(keras.backend.backend() != "torch", reason="PyTorch's variables")
def test_values_of_replaced_tensors_are_the_new_ones():
    import torch

    variable = keras.Variable(np.ones(2, "float32"))
    assert keras_private.values_of([variable])[0] is variable.value
    variable._value = torch.nn.Parameter(torch.zeros(2))
    assert keras_private.values_of([variable])[0] is variable.value
    with keras.device("meta"):
        assert keras_private.values_of([variable])[0].device.type == "meta"
    assert (
        keras_private.torch_device()
        == keras_private.own_state(keras.random.SeedGenerator(1)).device.type
    )


def test_the_seed_of_a_draw_is_the_streams_state_before_it():
    stream = keras.random.SeedGenerator(5)
    assert [numpy(keras_private.draw_seed(stream)).tolist() for _ in range(2)] == [
        [5, 0],
        [5, 1],
    ]
    assert numpy(keras_private.draw_seed(7)).tolist() == [7, 0]
    one, other = (numpy(keras_private.draw_seed(None)).tolist() for _ in range(2))
    assert one != other


def test_an_epoch_is_where_fit_begins():
    class Continued(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            keras_private.start_at_epoch(self.model, 3)

        def on_train_end(self, logs=None):
            keras_private.start_at_epoch(self.model, None)

    model = keras.Sequential([keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    data = {"x": np.ones((2, 1)), "y": np.ones((2, 1)), "verbose": 0, "epochs": 5}
    assert model.fit(**data, callbacks=[Continued()]).epoch == [3, 4]
    assert model.fit(**data).epoch == [0, 1, 2, 3, 4]


def test_whether_flash_attention_was_set():
    """Keras keeps it for a thread, so a new one has been told nothing."""

    def seen(*calls):
        def ask():
            for call in calls:
                call()
            return keras_private.flash_attention_was_set()

        with ThreadPoolExecutor(1) as thread:
            return thread.submit(ask).result()

    assert not seen()
    assert not seen(keras.config.is_flash_attention_enabled)
    assert seen(keras.config.enable_flash_attention)
    assert seen(keras.config.disable_flash_attention)
