"""The flow map and its derivatives against float64 NumPy and closed forms."""

import json

import keras
import numpy as np
import pytest
import reference
from backends import FLOATS, dtype_of, value_and_gradient
from function_network import FunctionNetwork
from keras import ops
from small_dit import small_dit

from keras_imm import backbones, backend
from keras_imm.backend.random_streams import random_states
from keras_imm.flow_map import FlowMap, Network

SIGMA_DATA = 0.4
BATCH = 6
every_defined = pytest.mark.parametrize(
    ("parameterization", "schedule"), reference.DEFINED
)
every_second_time = pytest.mark.parametrize("second_time", ["s", "stride"])
RTOL = {"float32": 2e-5, "float64": 1e-12}


def numpy(x):
    return np.asarray(ops.convert_to_numpy(ops.stop_gradient(x)))


def per_sample(values):
    return np.reshape(values, (-1, 1, 1))


def samples(dtype="float32"):
    """x, t and s."""
    rng = np.random.default_rng(0)
    t = rng.uniform(0.3, 0.95, BATCH)
    s = t * rng.uniform(0.1, 0.8, BATCH)
    x = rng.standard_normal((BATCH, 2, 3))
    return x.astype(dtype), t.astype(dtype), s.astype(dtype)


def network_output(x, c_t, c_s, labels=0, sin=np.sin, reshape=np.reshape):
    """G, which tells all its inputs apart."""
    c_t, c_s = (reshape(c, (-1, 1, 1)) for c in (c_t, c_s))
    return sin(x * (1.3 + c_t) + 0.7 * c_s * c_s + labels)


def function_of(x, c_t, c_s, labels=None, augmentation=None):
    shift = 0.0
    if labels is not None:
        shift = ops.reshape(ops.cast(labels, x.dtype), (-1, 1, 1))
    if augmentation is not None:
        shift = shift + ops.reshape(ops.sum(augmentation, axis=1), (-1, 1, 1))
    return network_output(x, c_t, c_s, shift, ops.sin, ops.reshape)


def flow_map(num_classes=0, augmentation_dim=0, function=function_of, **options):
    options = {"sigma_data": SIGMA_DATA, "time_scale": 2.0} | options
    return FlowMap(FunctionNetwork(function, num_classes, augmentation_dim), **options)


class Expected:
    """The formulas of the flow map, in float64."""

    def __init__(self, parameterization, schedule, second_time="s", time_scale=2.0):
        self.formulas = parameterization, schedule
        self.schedule = schedule
        self.second_time, self.time_scale = second_time, time_scale

    def output(self, x, t, s, labels=0.0):
        x, t, s = map(reference.float64, (x, t, s))
        a, b = reference.alpha(self.schedule, t), reference.sigma(self.schedule, t)
        x = x / per_sample(SIGMA_DATA * np.sqrt(a**2 + b**2))
        second = t - s if self.second_time == "stride" else s
        times = self.time_scale * t, self.time_scale * second
        return network_output(x, *times, per_sample(labels))

    def flow_map(self, x, t, s, output=None):
        output = self.output(x, t, s) if output is None else output
        skip = reference.c_skip(*self.formulas, s, t)
        out = reference.c_out(*self.formulas, s, t, SIGMA_DATA)
        return per_sample(skip) * reference.float64(x) + per_sample(out) * output

    def velocity(self, x, t):
        pair = reference.velocity_coefficients(*self.formulas, t, SIGMA_DATA)
        skip, out = map(per_sample, pair)
        return skip * reference.float64(x) + out * self.output(x, t, t)


# -- The flow map


@pytest.mark.parametrize("dtype", FLOATS)
@every_second_time
@every_defined
def test_against_the_formulas(parameterization, schedule, second_time, dtype):
    x, t, s = samples(dtype)
    f = flow_map(
        parameterization=parameterization, schedule=schedule, second_time=second_time
    )
    expected = Expected(parameterization, schedule, second_time)
    close = {"rtol": RTOL[dtype], "atol": RTOL[dtype]}
    x_s, g = f(x, t, s), f.output(x, t, s)
    assert dtype_of(x_s) == dtype_of(g) == dtype
    np.testing.assert_allclose(numpy(x_s), expected.flow_map(x, t, s), **close)
    np.testing.assert_allclose(numpy(g), expected.output(x, t, s), **close)
    velocity = f.velocity(x, t)
    assert dtype_of(velocity) == dtype
    np.testing.assert_allclose(numpy(velocity), expected.velocity(x, t), **close)


@every_defined
def test_the_velocity_is_the_slope_of_the_flow_map_at_s_equal_to_t(
    parameterization, schedule
):
    """The formulas of both, and not the code's, in float64."""
    x, t, _ = samples("float64")
    expected = Expected(parameterization, schedule)
    # The network is told t: where it is told s the product of c_out and dG/ds is 0.
    g, step = expected.output(x, t, t), 1e-6
    ahead, behind = (expected.flow_map(x, t, t + h, g) for h in (step, -step))
    slope = (ahead - behind) / (2 * step)
    np.testing.assert_allclose(expected.velocity(x, t), slope, rtol=1e-7, atol=1e-7)


@every_second_time
@every_defined
def test_the_identity_at_s_equal_to_t(parameterization, schedule, second_time):
    t = np.array([0.0, 1e-30, 0.006, 0.3, 0.994, 1.0], "float32")
    x = samples()[0]
    f = flow_map(
        parameterization=parameterization, schedule=schedule, second_time=second_time
    )
    np.testing.assert_array_equal(numpy(f(x, t, t)), x)
    compiled = backend.compile_function(f)
    tensors = map(ops.convert_to_tensor, (x, t, t))
    np.testing.assert_array_equal(numpy(compiled(*tensors)), x)
    g = numpy(f.output(x, t, t))
    expected = Expected(parameterization, schedule, second_time).output(x, t, t)
    np.testing.assert_allclose(g, expected, rtol=2e-5, atol=2e-5)


def test_given_coefficients_are_used():
    x, t, s = samples()
    f = flow_map(parameterization="simple_edm")
    coefficients = f.coefficients(*map(ops.convert_to_tensor, (s, t)))
    again = f(x, t, s, coefficients=coefficients)
    np.testing.assert_allclose(numpy(again), numpy(f(x, t, s)), rtol=1e-6)
    doubled = type(coefficients)(*(2.0 * c for c in coefficients))
    twice = numpy(f(x, t, s, coefficients=doubled))
    np.testing.assert_allclose(twice, 2 * numpy(f(x, t, s)), rtol=1e-5, atol=1e-6)


def test_times_may_be_numbers():
    x = samples()[0]
    t, s = np.full(BATCH, 0.8, "float32"), np.full(BATCH, 0.25, "float32")
    f = flow_map()
    np.testing.assert_array_equal(numpy(f(x, 0.8, 0.25)), numpy(f(x, t, s)))


def test_half_precision_samples_are_widened():
    x, t, s = samples()
    f = flow_map()
    x = ops.cast(ops.convert_to_tensor(x), "bfloat16")
    for value in (f(x, t, s), f.output(x, t, s), f.velocity(x, t)):
        assert dtype_of(value) == "float32"


# -- Labels and guidance

LABELS = np.array([0, 1, 2, 3, 1, 0], "int32")
NULL = 3


def test_labels_reach_the_network():
    x, t, s = samples()
    f, expected = flow_map(num_classes=NULL), Expected("euler_fm", "flow_matching")
    assert f.null_label == NULL
    for labels, told in ((LABELS, LABELS), (None, np.full(BATCH, NULL))):
        np.testing.assert_allclose(
            numpy(f.output(x, t, s, labels)),
            expected.output(x, t, s, told),
            rtol=2e-5,
            atol=2e-5,
        )
    assert flow_map().null_label is None


def test_augmentation_labels_reach_the_network():
    x, t, s = samples()
    told = np.random.default_rng(1).standard_normal((BATCH, 2)).astype("float32")
    expected = Expected("euler_fm", "flow_matching")
    for num_classes, labels in ((0, None), (NULL, LABELS)):
        f = flow_map(num_classes, augmentation_dim=2)
        for given, shift in ((told, told.sum(1)), (None, 0.0)):
            g = f.output(x, t, s, labels, augmentation_labels=given)
            if labels is not None:
                shift = shift + labels
            np.testing.assert_allclose(
                numpy(g), expected.output(x, t, s, shift), rtol=2e-5, atol=2e-5
            )


def test_guidance_is_two_passes_in_one():
    batches = []

    def counted(x, *rest):
        batches.append(x.shape[0])
        return function_of(x, *rest)

    x, t, s = samples()
    f = flow_map(NULL, augmentation_dim=2, function=counted)
    told = np.ones((BATCH, 2), "float32")
    options = {"augmentation_labels": told}
    guided, unguided = (numpy(f.output(x, t, s, y, **options)) for y in (LABELS, None))
    batches.clear()
    for w in (0.0, 1.0, 1.5, ops.convert_to_tensor(2.5)):
        g = numpy(f.output(x, t, s, LABELS, guidance_scale=w, **options))
        expected = float(w) * guided + (1 - float(w)) * unguided
        np.testing.assert_allclose(g, expected, rtol=1e-5, atol=1e-5)
    assert batches == [2 * BATCH] * 4
    x_s = numpy(f(x, t, s, LABELS, 1.5, **options))
    expected = Expected("euler_fm", "flow_matching")
    g = 1.5 * guided - 0.5 * unguided
    np.testing.assert_allclose(x_s, expected.flow_map(x, t, s, g), rtol=2e-5, atol=2e-5)
    velocity = numpy(f.velocity(x, t, LABELS, guidance_scale=1.5, **options))
    parts = [numpy(f.velocity(x, t, y, **options)) for y in (LABELS, None)]
    np.testing.assert_allclose(
        velocity, 1.5 * parts[0] - 0.5 * parts[1], rtol=1e-5, atol=1e-5
    )


def test_guidance_in_an_interval():
    x, _, _ = samples()
    t = np.array([0.1, 0.25, 0.3, 0.6, 0.75, 0.9], "float32")  # both ends are inside
    s = 0.5 * t
    inside = np.array([False, True, True, True, True, False])
    f = flow_map(NULL)
    plain = numpy(f(x, t, s, LABELS))
    guided = numpy(f(x, t, s, LABELS, 3.0))
    limited = f(x, t, s, LABELS, 3.0, guidance_interval=(0.25, 0.75))
    expected = np.where(per_sample(inside), guided, plain)
    np.testing.assert_allclose(numpy(limited), expected, rtol=1e-5, atol=1e-5)
    moved = np.abs(guided - plain).reshape(BATCH, -1).max(axis=1)
    assert np.all(moved[LABELS != NULL] > 1e-3)


# -- What is kept and checked


def test_training_reaches_the_backbone():
    f = FlowMap(randomized(small_dit(dropout=0.5)))
    x = np.random.default_rng(1).standard_normal((2, 4, 4, 1)).astype("float32")

    def differ(**options):
        return np.any(numpy(f(x, 0.9, 0.1, **options)) != numpy(f(x, 0.9, 0.1)))

    assert differ(training=True)
    assert not differ(training=False)


@pytest.mark.parametrize("kind", ["DiT", "UNet", "functional"])
def test_config_round_trip(kind):
    if kind == "functional":
        x, c_t, c_s = keras.Input((2,)), keras.Input(()), keras.Input(())
        label = keras.Input((), dtype="int32")
        hidden = keras.layers.Dense(2)(x) + keras.layers.Embedding(4, 2)(label)
        backbone = keras.Model([x, c_t, c_s, label], hidden)
        backbone.num_classes = 3  # an attribute, which Keras does not save
    elif kind == "DiT":
        backbone = small_dit()
    else:
        backbone = backbones.UNet((4, 4, 1), model_channels=4, channel_mult=(1,))
    f = FlowMap(
        backbone,
        schedule="cosine",
        parameterization="simple_edm",
        second_time="stride",
        time_scale=10.0,
        sigma_data=0.7,
        min_time=0.01,
        max_time=0.9,
    )
    config = json.loads(json.dumps(keras.saving.serialize_keras_object(f)))
    again = keras.saving.deserialize_keras_object(config)
    assert type(again) is FlowMap
    assert again.num_classes == f.num_classes
    assert again.data_shape == f.data_shape
    for name in ("second_time", "time_scale", "sigma_data", "min_time", "max_time"):
        assert getattr(again, name) == getattr(f, name)
    assert type(again.schedule) is type(f.schedule)
    assert type(again.parameterization) is type(f.parameterization)
    again.build(f.data_shape)
    f.build(f.data_shape)
    for ours, theirs in zip(again.variables, f.variables, strict=True):
        assert ours.shape == theirs.shape
        ours.assign(theirs)
    x = np.random.default_rng(0).standard_normal((2, *f.data_shape)).astype("float32")
    np.testing.assert_allclose(
        numpy(again(x, 0.7, 0.1)), numpy(f(x, 0.7, 0.1)), atol=1e-6
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"schedule": "linear"}, "`schedule` must be one of.*'linear'"),
        ({"parameterization": "v"}, "`parameterization` must be one of.*'v'"),
        ({"second_time": "r"}, "`second_time` must be one of 's', 'stride'.*'r'"),
        ({"time_scale": 0.0}, "`time_scale` must be a finite number above 0.*0.0"),
        ({"sigma_data": -1}, "`sigma_data` must be a finite number above 0.*-1"),
        ({"min_time": 0.5, "max_time": 0.5}, "min_time=0.5, max_time=0.5"),
        ({"max_time": 1.01}, "max_time=1.01"),
        ({"schedule": "cosine"}, "euler_fm.* needs"),
    ],
)
def test_arguments_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        flow_map(**options)


def test_the_backbone_must_be_a_layer():
    with pytest.raises(ValueError, match="`backbone` must be a Layer"):
        FlowMap(lambda inputs: inputs[0])


def test_variables_are_those_of_the_backbone_in_an_order_of_their_own():
    backbone = small_dit(dropout=0.1)
    f = FlowMap(backbone)
    f.build((4, 4, 1))
    before = [v.path for v in f.variables]
    assert {id(v) for v in f.variables} >= {id(v) for v in backbone.variables}
    backbone.blocks[0].trainable = False
    assert [v.path for v in f.variables] == before


# -- A network for one pass


def test_labels_of_a_network_are_those_bound_in():
    x, t, s = samples()
    f = flow_map(NULL)
    network = Network(f, labels=LABELS)
    other = (LABELS + 1) % 3
    ones = np.ones_like(x)
    for method, arguments in (
        ("flow_map", (x, t, s)),
        ("output", (x, t, s)),
        ("velocity", (x, t)),
        ("derivative_in_s", (x, t, s)),
        ("total_derivative", (x, t, s)),
    ):
        call = getattr(network, method)
        unbound = getattr(Network(f), method)
        more = (ones,) if method == "total_derivative" else ()
        for given, expected in ((None, LABELS), (other, other)):
            results = (
                call(*arguments, given, *more),
                unbound(*arguments, expected, *more),
            )
            ours, theirs = map(keras.tree.flatten, results)
            for a, b in zip(ours, theirs, strict=True):
                np.testing.assert_array_equal(numpy(a), numpy(b), err_msg=method)
        # And unbound, the null label.
        bound_to_null = getattr(Network(f, np.full(BATCH, NULL)), method)
        a, b = (
            numpy(keras.tree.flatten(each(*arguments, None, *more))[0])
            for each in (unbound, bound_to_null)
        )
        np.testing.assert_array_equal(a, b)


def test_what_is_bound_in_reaches_the_flow_map():
    x, t, s = samples()
    f = flow_map(NULL, augmentation_dim=2)
    told = np.ones((BATCH, 2), "float32")
    network = Network(f, LABELS, 1.5, (0.2, 0.6), told)
    expected = f(x, t, s, LABELS, 1.5, (0.2, 0.6), told)
    np.testing.assert_array_equal(numpy(network.flow_map(x, t, s)), numpy(expected))
    assert network.schedule is f.schedule
    assert network.parameterization is f.parameterization
    assert (network.sigma_data, network.null_label) == (SIGMA_DATA, NULL)
    assert (network.min_time, network.max_time) == (f.min_time, f.max_time)


def test_there_are_no_averages_outside_of_training():
    with pytest.raises(ValueError, match=r"no averages here.*'target'"):
        Network(flow_map()).with_weights("target")


# -- Derivatives


def compiled(function):
    call = backend.compile_function(lambda *args: tuple(function(*args)))
    return lambda *args: call(*map(ops.convert_to_tensor, args))


HOW = pytest.mark.parametrize(
    "how", [lambda f: f, compiled], ids=["called", "compiled"]
)


def closed_form(schedule, second_time, time_scale, x, t, s, velocity, rate):
    """dG along (velocity, rate, 0), and dG/ds, of `network_output`."""
    x, t, s, velocity, rate = map(reference.float64, (x, t, s, velocity, rate))
    a, b = reference.alpha(schedule, t), reference.sigma(schedule, t)
    da = reference.alpha_derivative(schedule, t)
    db = reference.sigma_derivative(schedule, t)
    norm = SIGMA_DATA * np.sqrt(a**2 + b**2)
    c_in = 1 / norm
    c_in_rate = -(SIGMA_DATA**2) * (a * da + b * db) / norm**3
    is_stride = second_time == "stride"
    c_t, c_s = time_scale * t, time_scale * (t - s if is_stride else s)
    u = per_sample(c_in) * x
    cosine = np.cos(u * (1.3 + per_sample(c_t)) + 0.7 * per_sample(c_s) ** 2)
    du = per_sample(c_in) * velocity + per_sample(c_in_rate * rate) * x
    second = 1.4 * per_sample(c_s) * time_scale
    total = du * (1.3 + per_sample(c_t)) + u * time_scale * per_sample(rate)
    if is_stride:
        total = total + second * per_sample(rate)
    return cosine * total, cosine * second * (-1 if is_stride else 1)


@pytest.mark.parametrize("dtype", FLOATS)
@HOW
@every_second_time
@pytest.mark.parametrize("schedule", reference.SCHEDULES)
def test_derivatives_in_closed_form(schedule, second_time, how, dtype):
    x, t, s = samples(dtype)
    rng = np.random.default_rng(3)
    velocity = rng.standard_normal(x.shape).astype(dtype)
    rate = rng.uniform(0.5, 2, BATCH).astype(dtype)
    scale = 3.0
    network = Network(
        flow_map(
            schedule=schedule,
            parameterization="simple_edm",
            second_time=second_time,
            time_scale=scale,
        )
    )
    formula = Expected("simple_edm", schedule, second_time, scale)
    g = formula.output(x, t, s)
    close = {"rtol": 20 * RTOL[dtype], "atol": 20 * RTOL[dtype]}

    value, total = how(
        lambda x, t, s, v, rate: network.total_derivative(x, t, s, None, v, rate)
    )(x, t, s, velocity, rate)
    assert dtype_of(value) == dtype_of(total) == dtype
    expected, in_s = closed_form(schedule, second_time, scale, x, t, s, velocity, rate)
    np.testing.assert_allclose(numpy(value), g, **close)
    np.testing.assert_allclose(numpy(total), expected, **close)

    # One rate for all is a number.
    _, total = how(lambda x, t, s, v: network.total_derivative(x, t, s, None, v))(
        x, t, s, velocity
    )
    ones = np.ones(BATCH)
    expected, _ = closed_form(schedule, second_time, scale, x, t, s, velocity, ones)
    np.testing.assert_allclose(numpy(total), expected, **close)

    value, derivative = how(lambda x, t, s: network.derivative_in_s(x, t, s))(x, t, s)
    assert dtype_of(value) == dtype_of(derivative) == dtype
    np.testing.assert_allclose(numpy(value), g, **close)
    np.testing.assert_allclose(numpy(derivative), in_s, **close)


def test_derivatives_with_guidance_are_guided():
    x, t, s = samples()
    velocity = np.ones_like(x)
    f = flow_map(NULL)

    def derivative(labels, scale=None):
        network = Network(f, labels, scale)
        return [
            numpy(network.total_derivative(x, t, s, None, velocity)[1]),
            numpy(network.derivative_in_s(x, t, s)[1]),
        ]

    guided = derivative(LABELS, 1.5)
    for both, label, null in zip(
        guided, derivative(LABELS), derivative(None), strict=True
    ):
        np.testing.assert_allclose(both, 1.5 * label - 0.5 * null, rtol=1e-4, atol=1e-4)


def randomized(backbone):
    FlowMap(backbone).build((4, 4, 1))
    rng = np.random.default_rng(7)
    for v in backbone.trainable_variables:
        v.assign(0.3 * rng.standard_normal(v.shape))
    return backbone


def dit_network(training=True, second_time="stride", schedule="cosine", **options):
    f = FlowMap(
        randomized(small_dit(depth=2, num_classes=3, **options)),
        schedule=schedule,
        parameterization="simple_edm",
        second_time=second_time,
        time_scale=3.0,
    )
    return Network(f, np.array([0, 1, 2, 3]), training=training), f


def dit_samples():
    rng = np.random.default_rng(4)
    x, velocity = rng.standard_normal((2, 4, 4, 4, 1)).astype("float32")
    t = np.array([0.3, 0.5, 0.7, 0.9], "float32")
    s = np.array([0.1, 0.4, 0.2, 0.6], "float32")
    return x, t, s, velocity


def difference(function, step=0.005):
    """Central difference of the fourth order of a function at 0."""
    near, far = (
        function(step) - function(-step),
        function(2 * step) - function(-2 * step),
    )
    return (8 * near - far) / (12 * step)


@pytest.mark.slow("trains or builds for seconds")
@pytest.mark.parametrize(
    "options",
    [{}, {"remat": True}, {"qk_norm": True}, {"dropout": 0.1}],
    ids=["plain", "remat", "qk_norm", "dropout"],
)
@HOW
def test_derivatives_of_a_transformer(options, how):
    if options.get("dropout") and how is compiled:
        pytest.skip("a step draws masks; see objectives/test_batch_loss.py")
    network, f = dit_network(**options)
    x, t, s, velocity = dit_samples()
    states = random_states(f.backbone)
    before = [ops.convert_to_numpy(state) for state in states]
    assert bool(states) == ("dropout" in options)

    def replayed(function):
        """The result with the masks of the first call."""
        for state, value in zip(states, before, strict=True):
            state.assign(ops.convert_to_tensor(value, state.dtype))
        return function()

    def output(x, t, s):
        return replayed(lambda: numpy(network.output(x, t, s)).astype("float64"))

    g = output(x, t, s)
    after = [ops.convert_to_numpy(state) for state in states]
    rate = np.float32(1.5)

    def total(x, t, s, velocity):
        return network.total_derivative(x, t, s, None, velocity, rate)

    value, derivative = replayed(lambda: how(total)(x, t, s, velocity))
    # The random streams have moved as in one pass.
    for state, expected in zip(states, after, strict=True):
        np.testing.assert_array_equal(ops.convert_to_numpy(state), expected)
    np.testing.assert_allclose(numpy(value), g, atol=1e-5)
    expected = difference(
        lambda h: output(
            (x + h * velocity).astype("float32"), (t + h * rate).astype("float32"), s
        )
    )
    size = np.abs(expected).max()
    assert size > 0.1
    np.testing.assert_allclose(numpy(derivative), expected, atol=2e-3 * size)

    value, derivative = replayed(
        lambda: how(lambda x, t, s: network.derivative_in_s(x, t, s))(x, t, s)
    )
    for state, expected in zip(states, after, strict=True):
        np.testing.assert_array_equal(ops.convert_to_numpy(state), expected)
    np.testing.assert_allclose(numpy(value), g, atol=1e-5)
    expected = difference(lambda h: output(x, t, (s + h).astype("float32")))
    size = np.abs(expected).max()
    assert size > 0.1
    np.testing.assert_allclose(numpy(derivative), expected, atol=2e-3 * size)
    if "dropout" in options:
        assert np.any(numpy(network.output(x, t, s)) != g)  # other masks


def test_derivatives_under_mixed_bfloat16():
    """Near those in float32: as near as the values are."""
    x, t, s, velocity = dit_samples()
    found = []
    for policy in ("float32", "mixed_bfloat16"):
        network, _ = dit_network(dtype=policy, training=False)
        results = [
            *network.total_derivative(x, t, s, None, velocity),
            *network.derivative_in_s(x, t, s),
        ]
        assert all(dtype_of(one) == "float32" for one in results)
        found.append([numpy(one) for one in results])
    for exact, rounded in zip(*found, strict=True):
        size = np.sqrt(np.mean(exact**2))
        error = np.sqrt(np.mean((rounded - exact) ** 2))
        assert 1e-5 * size < error < 0.1 * size


def unet_network():
    backbone = backbones.UNet(
        (4, 4, 1),
        model_channels=8,
        channel_mult=(1,),
        num_blocks=1,
        attention_resolutions=(4,),
    )
    f = FlowMap(randomized(backbone), parameterization="simple_edm", time_scale=3.0)
    return Network(f, training=True)


def test_derivatives_of_a_unet():
    network = unet_network()
    x, t, s, velocity = dit_samples()

    def output(h):
        args = [(x + h * velocity), (t + h)]
        return numpy(network.output(*(a.astype("float32") for a in args), s))

    _, derivative = network.total_derivative(x, t, s, None, velocity)
    expected = difference(lambda h: output(h).astype("float64"))
    size = np.abs(expected).max()
    np.testing.assert_allclose(numpy(derivative), expected, atol=5e-3 * size)


@pytest.mark.parametrize("weight", ["attention", "conditioning"])
@pytest.mark.parametrize("remat", [False, True])
def test_the_derivative_in_s_can_be_differentiated(weight, remat):
    """The gradient of its mean square against differences along one direction."""
    network, f = dit_network(remat=remat)
    x, t, s, _ = map(ops.convert_to_tensor, dit_samples())
    variable = {
        "attention": f.backbone.blocks[0].attention.qkv.kernel,
        "conditioning": f.backbone.s_embedding.trainable_variables[0],
    }[weight]

    def loss(value):
        with keras.StatelessScope(state_mapping=[(variable, value)]):
            output, derivative = network.derivative_in_s(x, t, s)
        return ops.mean(ops.square(derivative)) + ops.mean(ops.square(output))

    start = ops.convert_to_numpy(variable)
    _, gradient = value_and_gradient(loss, start)
    direction = gradient / np.linalg.norm(gradient)

    def along(h):
        value = ops.convert_to_tensor((start + h * direction).astype("float32"))
        return float(numpy(loss(value)))

    slope = difference(along, step=0.005)
    assert slope > 1e-2
    assert np.linalg.norm(gradient) == pytest.approx(slope, rel=8e-3)


def test_a_scalar_time_of_a_derivative_is_that_of_every_row():
    flow = FlowMap(FunctionNetwork(lambda x, t, s: x * per_sample_of(t * s)))
    x, _, _ = samples()
    rate = np.linspace(0.5, 1.5, BATCH).astype("float32")
    times = np.full((2, BATCH), [[0.75], [0.25]], "float32")
    network = Network(flow)
    expected = network.total_derivative(x, *times, None, x, rate)
    found = network.total_derivative(x, 0.75, 0.25, None, x, rate)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(numpy(one), numpy(other), rtol=1e-6)
    assert np.abs(numpy(expected[1])).max() > 0.0


def per_sample_of(times):
    return ops.reshape(times, (-1, 1, 1))
