"""Moment matching against Eq. 67 in float64 NumPy, its limits, and its draws."""

import keras
import numpy as np
import pytest
import reference
import scipy.stats
from backends import FLOATS, dtype_of, value_and_gradient
from contracts.objective import ObjectiveContract
from function_network import FunctionNetwork
from keras import ops
from kernel_formulas import KERNELS, every_kernel

from keras_imm import (
    backend,
    kernels,
    time_distributions,
    time_mappings,
    weightings,
)
from keras_imm.flow_map import FlowMap, Network
from keras_imm.objectives import MomentMatching
from keras_imm.objectives.moment_matching import Particles

SIGMA_DATA = 0.5
MAX_TIME = {"flow_matching": 0.994, "cosine": 0.996}
A, B = 2, 5
every_defined = pytest.mark.parametrize(
    ("parameterization", "schedule"), reference.DEFINED
)
GROUPS, M, DIMENSION = 6, 4, 12


class TestMomentMatchingContract(ObjectiveContract):
    @pytest.fixture(params=["group", "one particle", "flow matching"])
    def instance(self, request):
        if request.param == "flow matching":
            return MomentMatching(
                group_size=2, times="logit_normal", flow_matching_share=0.25
            )
        if request.param == "one particle":
            return MomentMatching(kernel="energy", group_size=1)
        return MomentMatching(
            time_mapping=time_mappings.TimeDecrement(k=5, min_gap=1e-4),
            kernel=kernels.PseudoHuber(c=0.1),
            weighting=weightings.ELBO(a=2, b=5),
            group_size=2,
            label_dropout=0.3,
            drop_target_labels=False,
        )


# -- A network with fixed random weights: one function, in NumPy and in keras.ops

_rng = np.random.default_rng(5)
WEIGHTS = _rng.standard_normal((DIMENSION, DIMENSION)) / np.sqrt(DIMENSION)
SHIFTS = _rng.standard_normal((2, 1, DIMENSION))


def hidden(x, t, s, tanh=np.tanh, like=np.asarray):
    """G of what the backbone is given, with a time scale of 1."""
    shift = t[:, None] * like(SHIFTS[0]) + s[:, None] * like(SHIFTS[1])
    return tanh(x @ like(WEIGHTS) + shift)


def backbone_function(x, c_t, c_s, *_):
    def like(weights):
        return ops.convert_to_tensor(weights, x.dtype)

    return hidden(x, c_t, c_s, ops.tanh, like)


def network_in_numpy(schedule):
    """G as a function of x_t, t and s."""

    def network(x, t, s):
        norm = reference.alpha(schedule, t) ** 2 + reference.sigma(schedule, t) ** 2
        return hidden(x / (SIGMA_DATA * np.sqrt(norm))[:, None], t, s)

    return network


class Case:
    """An objective with a network.

    Attributes:
        objective: The `MomentMatching`.
        network: The `Network` of `backbone_function`.
    """

    def __init__(
        self,
        schedule="flow_matching",
        parameterization="simple_edm",
        kernel="laplace",
        weighting=None,
        time_mapping=None,
        group_size=M,
        min_time=0.0,
        max_time=None,
        sigma_data=SIGMA_DATA,
        num_classes=0,
        **options,
    ):
        if max_time is None:
            max_time = MAX_TIME.get(schedule, 0.994)
        self.objective = MomentMatching(
            time_mapping=time_mapping or time_mappings.EtaDecrement(k=12),
            kernel=kernel,
            weighting=weighting or weightings.ELBO(a=A, b=B),
            group_size=group_size,
            **options,
        )
        self.flow_map_options = {
            "schedule": schedule,
            "parameterization": parameterization,
            "time_scale": 1.0,
            "sigma_data": sigma_data,
            "min_time": min_time,
            "max_time": max_time,
        }
        self.num_classes = num_classes
        self.network = self.network_of(backbone_function)
        self.schedule = self.network.schedule
        self.max_time = max_time

    def network_of(self, function):
        backbone = FunctionNetwork(function, self.num_classes)
        flow_map = FlowMap(backbone, **self.flow_map_options)
        self.objective.check(flow_map)
        return Network(flow_map)

    def noised(self, x, noise, s, r, t):
        """Particles from arrays, with one s, r, t per group."""
        size = self.objective.group_size
        times = [ops.convert_to_tensor(np.repeat(time, size)) for time in (s, r, t)]
        arrays = map(ops.convert_to_tensor, (x, noise))
        return self.objective.noised(self.network, *arrays, *times)

    def target(self, particles):
        return self.objective.target(self.network, particles)

    def loss(self, x, noise, s, r, t):
        particles = self.noised(x, noise, s, r, t)
        target = self.target(particles)
        return self.objective.loss(self.network, particles, target)[0]

    def loss_of_output(self, g, particles, target):
        """The loss where the network's output is g."""
        network = self.network_of(lambda *_: g)
        return self.objective.loss(network, particles, target)[0]

    def output(self, particles):
        """G of the particles, in float32."""
        x, t, s = map(numpy, (particles.x_t, particles.t, particles.s))
        network = network_in_numpy(self.flow_map_options["schedule"])
        return network(x, t, s).astype("float32")


def data(dtype="float32", batch=GROUPS * M, seed=0):
    """x and noise."""
    rng = np.random.default_rng(seed)
    return (SIGMA_DATA * rng.standard_normal((2, batch, DIMENSION))).astype(dtype)


def random_times(dtype, max_time, seed=1):
    rng = np.random.default_rng(seed)
    t = rng.uniform(0.1, max_time, GROUPS)
    return (t * rng.uniform(0.0, 0.9, GROUPS)).astype(dtype), t.astype(dtype)


def numpy(x):
    return np.asarray(ops.convert_to_numpy(x))


# -- Eq. 67


@pytest.mark.parametrize(
    ("k", "rtol", "dtype"),
    [
        # With k = 12 y and its target share two of their digits and more, which the
        # loss squares; with k = 8 float32 keeps nearly all of its own.
        pytest.param(8, 1e-5, "float32", id="k8-float32"),
        pytest.param(12, 5e-4, "float32", id="k12-float32"),
        pytest.param(12, 1e-11, *FLOATS[1].values, marks=FLOATS[1].marks),
    ],
)
@every_kernel
@every_defined
def test_equation_67(parameterization, schedule, kernel, formula, k, rtol, dtype):
    x, noise = data(dtype)
    max_time = MAX_TIME[schedule]
    s, t = random_times(dtype, max_time)
    r = reference.r("eta_decrement", schedule, s, t, k, 0.0, 0.0, max_time)
    r = r.astype(dtype)
    loss = Case(schedule, parameterization, kernel).loss(x, noise, s, r, t)
    assert dtype_of(loss) == dtype
    network = network_in_numpy(schedule)
    expected = reference.loss(
        network, x, noise, s, r, t, parameterization, schedule, formula, M, A, B
    )
    np.testing.assert_allclose(numpy(loss), expected, rtol=rtol)


@every_kernel
def test_gradient_of_the_network_output(kernel, formula):
    """Against differences of Eq. 67 in float64, with the target held still."""
    case = Case(kernel=kernel)
    x, noise = data()
    s, t = random_times("float32", 0.9)
    r = reference.r("eta_decrement", "flow_matching", s, t, 6, 0.0, 0.0, 0.994)
    particles = case.noised(x, noise, s, r.astype("float32"), t)
    y_target = case.target(particles)
    g = case.output(particles)
    _, gradient = value_and_gradient(
        lambda g: case.loss_of_output(g, particles, y_target), g
    )

    args = ("simple_edm", "flow_matching", *map(numpy, (particles.s, particles.t)))
    skip = reference.c_skip(*args)[:, None]
    out = reference.c_out(*args, SIGMA_DATA)[:, None]
    scale = 1 / np.abs(out[::M, 0])
    weight = reference.weight("flow_matching", t, A, B)

    def exact(g):
        y = skip * reference.float64(numpy(particles.x_t)) + out * g
        values = reference.grouped_mmd(y, numpy(y_target), scale, formula, M)
        return np.mean(weight * values)

    for i, j in [(0, 0), (5, 3), (14, 11), (23, 7)]:
        step = np.zeros(g.shape)
        step[i, j] = 1e-5
        slope = (exact(g + step) - exact(g - step)) / 2e-5
        assert gradient[i, j] == pytest.approx(slope, rel=2e-3, abs=1e-7)


# Pairs s <= t at the ends of the range, equal, adjacent and nearly so.
def edge_times(min_time, max_time):
    low, high = np.array([min_time, max_time], "float32")
    inner = np.float32(0.3)
    pairs = [
        (low, low),
        (low, np.nextafter(low, high) if low else np.float32(1e-30)),
        (low, low + np.float32(1e-7)),
        (low, inner),
        (inner, inner),
        (np.nextafter(inner, low), inner),
        (low, high),
        (np.nextafter(high, low), high),
        (high, high),
    ]
    return np.array(pairs, "float32").T


def losses_and_gradients(case, s, r, t, x, noise):
    """Of the whole batch, with respect to the network's output."""
    particles = case.noised(x, noise, s, r, t)
    y_target = case.target(particles)
    return value_and_gradient(
        lambda g: case.loss_of_output(g, particles, y_target), case.output(particles)
    )


@pytest.mark.parametrize(
    ("parameterization", "schedule", "kernel"),
    [(*pair, "laplace") for pair in reference.DEFINED]
    + [("identity", "flow_matching", name) for name in KERNELS if name != "laplace"]
    + [("simple_edm", "cosine", name) for name in KERNELS if name != "laplace"],
)
def test_finite_over_the_whole_range(parameterization, schedule, kernel):
    case = Case(schedule, parameterization, KERNELS[kernel][0])
    times = []
    for min_time in (0.0, 0.006):
        s, t = edge_times(min_time, case.max_time)
        r = case.objective.time_mapping(case.schedule, s, t, min_time, case.max_time)
        times.append([s, numpy(r), t])
    s, r, t = np.concatenate(times, axis=1)
    x, noise = data(batch=len(t) * M)
    # Two of the particles of every group are the same.
    for each in (x, noise):
        each[1::M] = each[0::M]
    loss, gradient = losses_and_gradients(case, s, r, t, x, noise)
    assert np.isfinite(loss)
    assert np.all(np.isfinite(gradient))
    gradient = np.abs(gradient).reshape(len(t), -1).max(axis=1)
    assert np.all(gradient[s == t] == 0)
    assert np.all(gradient[t - s > 0.2] > 0)


@pytest.mark.parametrize(
    ("parameterization", "schedule", "kernel"),
    [(*pair, "laplace") for pair in reference.DEFINED]
    + [("simple_edm", "cosine", name) for name in KERNELS if name != "laplace"],
)
def test_equal_times_give_exactly_zero(parameterization, schedule, kernel):
    case = Case(schedule, parameterization, KERNELS[kernel][0])
    t = np.array([0.0, 1e-7, 0.006, 0.3, 0.7, case.max_time], "float32")
    loss, gradient = losses_and_gradients(case, t, t, t, *data())
    assert loss == 0
    assert np.all(gradient == 0)


def test_rounding_between_the_passes_costs_nothing_at_equal_times():
    """A compiler may round the pass with gradient otherwise than the target's."""
    case = Case()
    x, noise = data()
    s, t = random_times("float32", 0.9)
    s[:3] = t[:3]
    particles = case.noised(x, noise, s, t, t)
    y_target = (1 + 1e-6) * case.target(particles)
    _, gradient = value_and_gradient(
        lambda g: case.loss_of_output(g, particles, y_target), case.output(particles)
    )
    assert np.all(gradient[: 3 * M] == 0)
    assert np.any(gradient[3 * M :] != 0)
    particles = particles._replace(s=particles.t)
    target = (1 + 1e-6) * particles.x_t
    assert numpy(case.objective.loss(case.network, particles, target)[0]) == 0


@pytest.mark.parametrize("kernel", ["laplace", "energy"])
def test_equal_times_give_exactly_zero_when_compiled(kernel):
    case = Case("cosine", "simple_edm", kernel)
    t = np.array([0.0, 1e-7, 0.006, 0.3, 0.7, case.max_time], "float32")
    times = [np.repeat(t, M)] * 3
    mm, network = case.objective, case.network

    def loss(x, noise, s, r, t):
        particles = mm.noised(network, x, noise, s, r, t)
        return mm.loss(network, particles, mm.target(network, particles))[0]

    compiled = backend.compile_function(loss)
    assert numpy(compiled(*map(ops.convert_to_tensor, (*data(), *times)))) == 0


# -- Special cases


@pytest.mark.parametrize("s_is_zero", [False, True])
@every_defined
def test_one_particle_and_energy_give_the_consistency_loss(
    parameterization, schedule, s_is_zero
):
    """Lemma 1: 2 w ||f_{s,t}(x_t) - f_{s,r}(x_r)||^2."""
    case = Case(schedule, parameterization, "energy", group_size=1)
    network = network_in_numpy(schedule)
    s, t = random_times("float32", 0.99)
    r = t - np.float32(0.25) * (t - s)
    if s_is_zero:
        s, r = 0 * s, np.float32(0.75) * t
    x, noise = data(batch=GROUPS)
    a_t, a_r = (reference.alpha(schedule, time)[:, None] for time in (t, r))
    b_t, b_r = (reference.sigma(schedule, time)[:, None] for time in (t, r))

    def f(x, time):
        skip = reference.c_skip(parameterization, schedule, s, time)[:, None]
        out = reference.c_out(parameterization, schedule, s, time, SIGMA_DATA)[:, None]
        return skip * x + out * network(x, time, s)

    distance = f(a_t * x + b_t * noise, t) - f(a_r * x + b_r * noise, r)
    consistency = reference.weight(schedule, t, A, B) * np.sum(distance**2, axis=-1)
    loss = case.loss(x, noise, s, r, t)
    np.testing.assert_allclose(numpy(loss), 2 * np.mean(consistency), rtol=1e-5)


@pytest.mark.parametrize("kernel", ["laplace", "rbf"])
@pytest.mark.parametrize("schedule", reference.SCHEDULES)
@pytest.mark.parametrize("parameterization", ["identity", "simple_edm"])
def test_generative_moment_matching_network(parameterization, schedule, kernel):
    """App. G.3: t = 1, r = s = 0 and w = 1 is the MMD of f(noise) and the data."""
    case = Case(
        schedule,
        parameterization,
        kernel,
        weighting=weightings.Uniform(),
        time_mapping=time_mappings.TimeDecrement(),
        max_time=1.0,
    )
    x, noise = data()
    zero, one = np.zeros(GROUPS, "float32"), np.ones(GROUPS, "float32")
    particles = case.noised(x, noise, zero, zero, one)
    y_target = case.target(particles)
    np.testing.assert_array_equal(numpy(particles.x_t), noise)
    np.testing.assert_array_equal(numpy(y_target), x)

    out = 1.0 if parameterization == "identity" else -SIGMA_DATA
    each = np.ones(GROUPS * M)
    network = network_in_numpy(schedule)
    y = out * network(reference.float64(noise), each, 0 * each)  # c_skip(0, 1) = 0
    scales = one / abs(out)
    formula = KERNELS[kernel][1]
    expected = np.mean(reference.grouped_mmd(y, x, scales, formula, M))
    loss = case.objective.loss(case.network, particles, y_target)[0]
    np.testing.assert_allclose(numpy(loss), expected, rtol=1e-5)


def test_flow_map_is_called_with_the_particles():
    """f_{s,t}(x_t) with the labels, f_{s,r}(x_r) with the target's labels."""
    case, calls = Case(), []
    names = ("x_t", "x_r", "s", "r", "t", "labels", "target_labels", "velocity")
    s, t = random_times("float32", 0.99)
    particles = case.noised(*data(), s, t, t)._replace(
        s="s", r="r", labels="labels", target_labels="target labels"
    )
    assert particles._fields == names

    class Recorded(Network):
        def flow_map(self, *args, **_):
            calls.append(args)
            return args[0]

    network = Recorded(FlowMap(FunctionNetwork(None), **case.flow_map_options))
    case.objective.target(network, particles)
    assert calls.pop() == (particles.x_r, "r", "s", "target labels")
    particles = particles._replace(s=particles.t)
    case.objective.loss(network, particles, particles.x_t)
    x_t, t, s, labels = calls.pop()
    assert x_t is particles.x_t
    assert t is s is particles.t
    assert labels == "labels"
    assert not calls


# -- A share of flow matching


def with_share(share, **options):
    return Case(flow_matching_share=share, **options)


def flow_groups(share, groups):
    """Which groups match the flow: the last of every run."""
    period = {0.25: 4, 0.5: 2, 2 / 3: 3}[share]
    return np.arange(groups) % period >= period - round(share * period)


@pytest.mark.parametrize(
    ("dtype", "rtol"),
    [
        ("float32", 1e-5),
        pytest.param(*FLOATS[1].values, 1e-11, marks=FLOATS[1].marks),
    ],
)
@pytest.mark.parametrize("share", [0.5, 2 / 3])
@every_defined
def test_loss_with_a_share_of_flow_matching(
    parameterization, schedule, share, dtype, rtol
):
    """Eq. 67 of some groups; of the others w(t, t) |e|^2 / sqrt(|e|^2 + c) / (M D)."""
    case = with_share(
        share,
        schedule=schedule,
        parameterization=parameterization,
        min_time=0.006,  # identity has no velocity at 0
    )
    max_time = MAX_TIME[schedule]
    x, noise = data(dtype)
    s, t = random_times(dtype, max_time)
    s = np.maximum(s, np.asarray(0.006, dtype))
    r = reference.r("eta_decrement", schedule, s, t, 6, 0.0, 0.006, max_time)
    r = r.astype(dtype)
    flow = flow_groups(share, GROUPS)
    s[flow] = r[flow] = t[flow]
    loss = case.loss(x, noise, s, r, t)
    assert dtype_of(loss) == dtype

    network = network_in_numpy(schedule)
    formula = KERNELS["laplace"][1]
    rows = np.repeat(flow, M)
    matched = reference.loss(
        network,
        *(x[~rows], noise[~rows], s[~flow], r[~flow], t[~flow]),
        *(parameterization, schedule, formula, M, A, B),
    )
    x, noise, times = map(reference.float64, (x[rows], noise[rows], np.repeat(t, M)))
    times = times[rows]

    def at(of):
        return of(schedule, times)[:, None]

    x_t = at(reference.alpha) * x + at(reference.sigma) * noise
    v = at(reference.alpha_derivative) * x + at(reference.sigma_derivative) * noise
    skip, out = reference.velocity_coefficients(
        parameterization, schedule, times, SIGMA_DATA
    )
    u = skip[:, None] * x_t + out[:, None] * network(x_t, times, times)
    squared = np.sum(((u - v) / SIGMA_DATA) ** 2, axis=1)
    of_rows = squared / np.sqrt(squared + 0.01) / (M * DIMENSION)
    of_rows *= reference.weight(schedule, times, A, B)
    expected = np.mean(~flow) * matched + np.mean(flow) * np.mean(of_rows)
    np.testing.assert_allclose(numpy(loss), expected, rtol=rtol)


@pytest.mark.parametrize("dtype", FLOATS[1:])
def test_flow_matching_is_the_limit_of_moment_matching(dtype):
    """The gradient at s = t is that of the Laplace kernel as r and then s go to t."""
    case = with_share(0.5, parameterization="euler_fm")
    half = (GROUPS // 2, 1, M, DIMENSION)
    # Groups 2 i and 2 i + 1 are the same, but for their times.
    x, noise = (
        np.tile(a.reshape(half), (1, 2, 1, 1)).reshape(-1, DIMENSION)
        for a in data(dtype, batch=GROUPS // 2 * M)
    )
    t = np.repeat(np.linspace(0.2, 0.8, GROUPS // 2), 2).astype(dtype)
    s, r = t - 1e-3, t - 1e-7
    flow = flow_groups(0.5, GROUPS)
    s[flow] = r[flow] = t[flow]
    particles = case.noised(x, noise, s, r, t)
    x_t, x_r = numpy(particles.x_t), numpy(particles.x_r)
    s, r, t = map(numpy, (particles.s, particles.r, particles.t))
    g = network_in_numpy("flow_matching")(x_t, t, t)
    target = ops.convert_to_tensor(x_r - (r - s)[:, None] * SIGMA_DATA * g)
    _, gradient = value_and_gradient(
        lambda g: case.loss_of_output(g, particles, target), g
    )
    below, at = gradient.reshape(-1, 2, M, DIMENSION).swapaxes(0, 1)
    assert np.linalg.norm(at) > 0
    # The constant under the root is 0.01 of squared norms near 12.
    assert np.linalg.norm(below - at) < 2e-3 * np.linalg.norm(at)


@pytest.mark.parametrize("share", [0.25, 0.5])
def test_draw_with_a_share_of_flow_matching(share):
    case = with_share(share, time_mapping=time_mappings.EtaDecrement(k=4))
    groups = 512
    rng = np.random.default_rng(0)
    x = rng.normal(size=(groups * M, 2)).astype("float32")
    seed = keras.random.SeedGenerator(0)
    draw = case.objective.draw
    p = draw(case.network, ops.convert_to_tensor(x), None, seed, None, True)
    s, r, t = (numpy(time).reshape(groups, M) for time in (p.s, p.r, p.t))
    flow = flow_groups(share, groups)
    assert np.all(s[flow] == t[flow])
    assert np.all(r[flow] == t[flow])
    assert np.all(s[~flow] < t[~flow])
    assert len(np.unique(t[:, 0])) > 500
    # alpha' x + sigma' noise = noise - x, and x_t = (1 - t) x + t noise.
    x_t, velocity, t = numpy(p.x_t), numpy(p.velocity), t.reshape(-1, 1)
    np.testing.assert_allclose(x_t - t * velocity, x, atol=1e-5)


def test_a_share_needs_whole_runs_of_groups():
    case = with_share(0.25)
    assert case.objective.rows_together == 4 * M
    seed = keras.random.SeedGenerator(0)
    with pytest.raises(ValueError, match=r"`group_size \* 4`.*batch size 24"):
        case.objective.draw(case.network, data()[0], None, seed, None, True)


def test_a_config_of_before_has_uniform_times_and_no_share():
    config = MomentMatching(group_size=2).get_config()
    del config["times"], config["flow_matching_share"]
    objective = MomentMatching.from_config(config)
    assert isinstance(objective.times, time_distributions.Uniform)
    assert objective.flow_matching_share == 0
    assert objective.rows_together == 2


# -- Draws


class Draw:
    """One large draw of particles, as NumPy."""

    def __init__(self, dtype="float32", seed=0, **options):
        options.setdefault("min_time", 0.006)
        self.case = Case(label_dropout=0.1, num_classes=10, **options)
        rng = np.random.default_rng(8)
        self.x = rng.uniform(-1, 1, (2048 * M, 2, 3)).astype(dtype)
        self.labels = (np.arange(2048 * M) % 10).astype("int32")
        self.seed = keras.random.SeedGenerator(seed)

    def __call__(self, labels=True, training=True):
        p = self.case.objective.draw(
            self.case.network,
            ops.convert_to_tensor(self.x),
            ops.convert_to_tensor(self.labels) if labels else None,
            self.seed,
            ops.zeros(()),
            training,
        )
        return Particles(*(None if field is None else numpy(field) for field in p))


@pytest.mark.parametrize("dtype", FLOATS)
def test_draw_of_shared_times(dtype):
    draw = Draw(dtype)
    p = draw()
    groups = [time.reshape(-1, M) for time in (p.s, p.r, p.t)]
    for time in groups:
        assert time.dtype == dtype
        assert np.all(time == time[:, :1])
        assert len(np.unique(time[:, 0])) > 2000
    s, r, t = (time[:, 0] for time in groups)
    mapping, schedule = draw.case.objective.time_mapping, draw.case.schedule
    mapped = numpy(mapping(schedule, s, t, 0.006, 0.994))
    np.testing.assert_array_equal(r, mapped)
    assert p.x_t.dtype == p.x_r.dtype == dtype


@pytest.mark.parametrize("min_time", [0.0, 0.2])
def test_distribution_of_times(min_time):
    """p(t) = U(epsilon, T) and p(s | t) = U(epsilon, t)."""
    p = Draw(min_time=min_time)()
    s, t = reference.float64(p.s[::M]), reference.float64(p.t[::M])
    low, high = np.float32(min_time), np.float32(0.994)
    assert np.all((low <= s) & (s <= t) & (t <= high))
    t = (t - low) / (high - low)
    fraction = (s - low) / (reference.float64(p.t[::M]) - low)
    for uniform in (t, fraction):
        assert scipy.stats.kstest(uniform, "uniform").pvalue > 1e-3
    # 2,048 groups: the standard error of a correlation is 0.022.
    assert abs(np.corrcoef(t, fraction)[0, 1]) < 0.09


@pytest.mark.parametrize("schedule", reference.SCHEDULES)
def test_noise(schedule):
    """x_t and x_r hold the same x and the same noise, N(0, sigma_d^2)."""
    draw = Draw(schedule=schedule)
    p = draw()
    shape = (-1, 1, 1)
    a_t, a_r = (reference.alpha(schedule, t).reshape(shape) for t in (p.t, p.r))
    b_t, b_r = (reference.sigma(schedule, t).reshape(shape) for t in (p.t, p.r))
    noise = (p.x_t - a_t * draw.x) / b_t
    np.testing.assert_allclose(p.x_r, a_r * draw.x + b_r * noise, atol=2e-6)
    noise = noise.ravel() / SIGMA_DATA
    assert scipy.stats.kstest(noise, "norm").pvalue > 1e-3
    # Neither shared within a group nor tied to the times.
    first, second = noise.reshape(-1, M, 6)[:, :2].reshape(-1, 2, 6).swapaxes(0, 1)
    assert abs(np.corrcoef(first.ravel(), second.ravel())[0, 1]) < 0.04
    assert abs(np.corrcoef(noise.reshape(-1, 6)[:, 0], p.t)[0, 1]) < 0.05


@pytest.mark.parametrize("drop_target_labels", [True, False])
def test_label_dropout(drop_target_labels):
    draw = Draw(drop_target_labels=drop_target_labels)
    p = draw()
    dropped = p.labels == 10
    # 8,192 labels: the standard error of the rate is 0.0033.
    assert abs(dropped.mean() - 0.1) < 0.013
    np.testing.assert_array_equal(p.labels[~dropped], draw.labels[~dropped])
    # Per particle, not per group.
    assert 0.25 < dropped.reshape(-1, M).any(axis=1).mean() < 0.45
    expected = p.labels if drop_target_labels else draw.labels
    np.testing.assert_array_equal(p.target_labels, expected)
    assert p.labels.dtype == p.target_labels.dtype == "int32"


def test_labels_stay_without_dropout():
    draw = Draw()
    p = draw(training=False)
    np.testing.assert_array_equal(p.labels, draw.labels)
    np.testing.assert_array_equal(p.target_labels, draw.labels)
    unconditional = draw(labels=False)
    assert unconditional.labels is None
    assert unconditional.target_labels is None


def test_draws_repeat_with_the_seed_and_differ_from_each_other():
    draw, again, other = (Draw(seed=seed) for seed in (3, 3, 4))
    first, second = draw(), draw()
    for a, b, c, d in zip(first, again(), second, other(), strict=True):
        if a is None:  # the velocity
            continue
        np.testing.assert_array_equal(a, b)
        assert np.any(a != c)
        assert np.any(a != d)


def test_an_integer_seed_is_refused():
    """It would give t, s and the noise the same random numbers."""
    with pytest.raises(ValueError, match="`seed` must be a SeedGenerator") as error:
        case = Case()
        case.objective.draw(case.network, data()[0], None, 0, None, True)
    assert "seed=0" in str(error.value)


# -- Arguments


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"schedule": "linear"}, "schedule='linear'"),
        ({"parameterization": "edm"}, "parameterization='edm'"),
        ({"kernel": "linear"}, "kernel='linear'"),
        ({"weighting": "snr"}, "weighting='snr'"),
        ({"time_mapping": "eta"}, "time_mapping='eta'"),
        ({"group_size": 0}, "group_size=0"),
        ({"max_time": 1.5}, "max_time=1.5"),
        ({"max_time": 1.0}, "max_time=1.0"),  # of EtaDecrement
        ({"min_time": 0.994}, "min_time=0.994"),
        ({"min_time": -0.1}, "min_time=-0.1"),
        ({"label_dropout": 1.5}, "label_dropout=1.5"),
        ({"drop_target_labels": 1}, "drop_target_labels=1"),
        ({"times": "normal"}, "times='normal'"),
        ({"flow_matching_share": 1.0}, "flow_matching_share=1.0"),
        ({"flow_matching_share": -0.25}, "flow_matching_share=-0.25"),
        ({"flow_matching_share": 0.26}, "flow_matching_share=0.26"),
        (
            {"min_time": 0, "flow_matching_share": 0.5, "parameterization": "identity"},
            "parameterization=Identity",
        ),
    ],
)
def test_arguments_are_checked(options, message):
    with pytest.raises(ValueError) as error:
        Case(**options)
    assert message in str(error.value)
    assert f"`{next(iter(options))}" in str(error.value) or "euler_fm" in str(error)


@pytest.mark.parametrize("sigma_data", [0, -1.0, float("nan"), None])
def test_sigma_data_is_checked(sigma_data):
    with pytest.raises(ValueError, match="`sigma_data` must be") as error:
        Case(sigma_data=sigma_data)
    assert f"sigma_data={sigma_data!r}" in str(error.value)


@pytest.mark.parametrize("group_size", [5, 7, 48])
def test_the_group_size_must_divide_the_batch(group_size):
    case = Case(group_size=group_size)
    seed = keras.random.SeedGenerator(0)
    with pytest.raises(ValueError, match="must be a multiple of `group_size`") as error:
        case.objective.draw(case.network, data()[0], None, seed, None, True)
    assert f"group_size={group_size}, accumulation_steps=1, batch size 24" in str(
        error.value
    )
