"""The objective against Eq. 67 in float64 NumPy, its limits, and its draws."""

import keras
import numpy as np
import pytest
import reference
import scipy.stats
from backends import FLOATS, dtype_of, value_and_gradient
from keras import ops
from kernel_formulas import KERNELS, every_kernel

from keras_imm import compilation, objective, time_mappings, weightings

SIGMA_DATA = 0.5
MAX_TIME = {"flow_matching": 0.994, "cosine": 0.996}
A, B = 2, 5
every_defined = pytest.mark.parametrize(
    ("parameterization", "schedule"), reference.DEFINED
)
GROUPS, M, DIMENSION = 6, 4, 12


def make(
    schedule="flow_matching",
    parameterization="simple_edm",
    kernel="laplace",
    weighting=None,
    **options,
):
    options = {
        "time_mapping": time_mappings.EtaDecrement(k=12),
        "group_size": M,
        "max_time": MAX_TIME.get(schedule),
        **options,
    }
    return objective.MomentMatching(
        schedule=schedule,
        parameterization=parameterization,
        kernel=kernel,
        weighting=weighting or weightings.ELBO(a=A, b=B),
        sigma_data=SIGMA_DATA,
        **options,
    )


# -- A network with fixed random weights: one function, in NumPy and in keras.ops

_rng = np.random.default_rng(5)
WEIGHTS = _rng.standard_normal((DIMENSION, DIMENSION)) / np.sqrt(DIMENSION)
SHIFTS = _rng.standard_normal((2, 1, DIMENSION))


def network(x, t, s, tanh=np.tanh, like=np.asarray):
    shift = t[:, None] * like(SHIFTS[0]) + s[:, None] * like(SHIFTS[1])
    return tanh(x @ like(WEIGHTS) + shift)


def with_output(mm, x, t, s, g):
    """The flow map of an objective's parameterization, with network output g."""
    skip = mm.parameterization.c_skip(mm.schedule, s, t)
    out = mm.parameterization.c_out(mm.schedule, s, t, SIGMA_DATA)
    return skip[:, None] * x + out[:, None] * g


def flow_map_of(mm):
    def flow_map(x, t, s, labels=None):
        def like(weights):
            return ops.convert_to_tensor(weights, x.dtype)

        return with_output(mm, x, t, s, network(x, t, s, ops.tanh, like))

    return flow_map


def data(dtype="float32", batch=GROUPS * M, seed=0):
    """x and noise."""
    rng = np.random.default_rng(seed)
    return (SIGMA_DATA * rng.standard_normal((2, batch, DIMENSION))).astype(dtype)


def random_times(dtype, max_time, seed=1):
    rng = np.random.default_rng(seed)
    t = rng.uniform(0.1, max_time, GROUPS)
    return (t * rng.uniform(0.0, 0.9, GROUPS)).astype(dtype), t.astype(dtype)


def noised(mm, x, noise, s, r, t):
    """Particles from arrays, with one s, r, t per group."""
    times = [
        ops.convert_to_tensor(np.repeat(time, mm.group_size)) for time in (s, r, t)
    ]
    return mm.noised(*map(ops.convert_to_tensor, (x, noise)), *times)


def loss_of(mm, x, noise, s, r, t):
    particles, flow_map = noised(mm, x, noise, s, r, t), flow_map_of(mm)
    return mm.loss(flow_map, particles, mm.target(flow_map, particles))


def numpy(x):
    return np.asarray(ops.convert_to_numpy(x))


# -- grouped_mmd

SCALES = np.array([0.3, 1.0, 3.0, 10.0, 0.5, 2.0], "float32")


def mmd(y, y_target, scales=SCALES, kernel="laplace", group_size=M):
    return numpy(objective.grouped_mmd(y, y_target, scales, kernel, group_size))


@pytest.mark.parametrize("dtype", FLOATS)
@every_kernel
def test_grouped_mmd(kernel, formula, dtype):
    y, y_target = data(dtype)
    result = objective.grouped_mmd(y, y_target, SCALES, kernel, M)
    assert dtype_of(result) == dtype
    expected = reference.grouped_mmd(y, y_target, SCALES, formula, M)
    rtol = {"float32": 2e-5, "float64": 1e-12}[dtype]
    np.testing.assert_allclose(numpy(result), expected, rtol=rtol)


def test_images_are_flattened():
    y, y_target = data()
    images = [x.reshape(-1, 2, 3, 2) for x in (y, y_target)]
    np.testing.assert_allclose(mmd(*images), mmd(y, y_target), rtol=1e-6)


@every_kernel
def test_order_within_a_group_does_not_matter(kernel, formula):
    y, y_target = data()
    rng = np.random.default_rng(4)

    def shuffled(x):
        return rng.permuted(x.reshape(GROUPS, M, -1), axis=1).reshape(x.shape)

    # Whole rows, each set by itself.
    order = np.concatenate([M * i + rng.permutation(M) for i in range(GROUPS)])
    expected = mmd(y, y_target, kernel=kernel)
    for pair in [(y[order], y_target), (y, y_target[order])]:
        np.testing.assert_allclose(mmd(*pair, kernel=kernel), expected, rtol=2e-5)
    # Between groups it does matter.
    assert not np.allclose(mmd(np.roll(y, 1, 0), y_target, kernel=kernel), expected)


@every_kernel
def test_groups_are_independent(kernel, formula):
    y, y_target = data()
    before = mmd(y, y_target, kernel=kernel)
    y = y.copy()
    y[2 * M : 3 * M] += 1
    after = mmd(y, y_target, kernel=kernel)
    changed = before != after
    assert changed.tolist() == [False, False, True, False, False, False]


@pytest.mark.parametrize("kernel", ["laplace", "rbf"])
def test_characteristic_kernels_are_never_negative(kernel):
    for seed, spread in enumerate([1e-6, 1e-3, 1.0, 30.0]):
        y, noise = data(seed=seed)
        values = mmd(y, y + spread * noise, kernel=kernel)
        # In exact arithmetic; here to the rounding of a mean of numbers below 1.
        assert np.all(values > -1e-7)
        assert spread < 1 or np.all(values > 1e-3)


@every_kernel
def test_identical_sets_have_no_distance(kernel, formula):
    y = data()[0]
    assert np.all(mmd(y, y, kernel=kernel) == 0)
    # In another order too.
    backwards = y.reshape(GROUPS, M, -1)[:, ::-1].reshape(y.shape)
    np.testing.assert_allclose(mmd(y, backwards, kernel=kernel), 0, atol=2e-6)


def test_float16_particles_are_computed_in_float32():
    y, y_target = data("float16")
    expected = reference.grouped_mmd(y, y_target, SCALES, reference.laplace, M)
    y, y_target = map(ops.convert_to_tensor, (y, y_target))
    result = objective.grouped_mmd(y, y_target, SCALES.astype("float16"))
    assert dtype_of(result) == "float32"
    np.testing.assert_allclose(numpy(result), expected, rtol=1e-3)  # 0.3 in float16
    result = objective.grouped_mmd(y, y_target, SCALES)
    np.testing.assert_allclose(numpy(result), expected, rtol=2e-5)


def test_inputs_of_mixed_precision():
    y, y_target = data()
    expected = mmd(y, y_target)
    mixed = mmd(y, y_target.astype("float64"), SCALES.astype("float64"))
    np.testing.assert_allclose(mixed, expected, rtol=1e-6)


def test_nan_is_not_hidden():
    y, y_target = data()
    y = y.copy()
    y[5, 3] = np.nan
    assert np.isnan(mmd(y, y_target)).tolist() == [False, True] + [False] * 4


def test_near_particles_of_many_dimensions():
    """D = 3072 and the target 0.1% away, where the Gram form of ||x - y||^2 fails."""
    rng = np.random.default_rng(6)
    y = (SIGMA_DATA * rng.standard_normal((M, 3072))).astype("float32")
    y_target = (y * (1 + 1e-3 * rng.standard_normal(y.shape))).astype("float32")
    scale = np.array([4.0], "float32")
    exact = reference.grouped_mmd(y, y_target, scale, reference.laplace, M)

    def gram(a, b):
        squared = np.sum(a * a, -1)[:, None] + np.sum(b * b, -1) - 2 * a @ b.T
        return np.expm1(-scale * np.sqrt(np.maximum(squared, 1e-16)) / 3072)

    by_gram = gram(y, y) + gram(y_target, y_target) - 2 * gram(y, y_target)
    bound = 5e-4
    assert abs(by_gram.mean() / exact.item() - 1) > 100 * bound
    np.testing.assert_allclose(mmd(y, y_target, scale), exact, rtol=bound)


@pytest.mark.parametrize("group_size", [5, 7, 48])
def test_the_group_size_must_divide_the_batch(group_size):
    y, y_target = data()
    with pytest.raises(ValueError, match="must be a multiple of `group_size`") as error:
        mmd(y, y_target, group_size=group_size)
    assert f"group_size={group_size}, accumulation_steps=1, batch size 24" in str(
        error.value
    )
    with pytest.raises(ValueError, match="must be a multiple of `group_size`"):
        make(group_size=group_size).draw(y, None, keras.random.SeedGenerator(0))


@pytest.mark.parametrize("group_size", [0, -4, 1.5, None])
def test_the_group_size_must_be_a_positive_integer(group_size):
    y, y_target = data()
    with pytest.raises(ValueError, match="`group_size` must be an integer") as error:
        mmd(y, y_target, group_size=group_size)
    assert f"group_size={group_size!r}" in str(error.value)


def test_an_unknown_kernel_lists_the_known_ones():
    with pytest.raises(ValueError, match="'laplace', 'rbf', 'energy'") as error:
        mmd(*data(), kernel="linear")
    assert "kernel='linear'" in str(error.value)


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
    loss = loss_of(make(schedule, parameterization, kernel), x, noise, s, r, t)
    assert dtype_of(loss) == dtype
    expected = reference.loss(
        network, x, noise, s, r, t, parameterization, schedule, formula, M, A, B
    )
    np.testing.assert_allclose(numpy(loss), expected, rtol=rtol)


@every_kernel
def test_gradient_of_the_network_output(kernel, formula):
    """Against differences of Eq. 67 in float64, with the target held still."""
    mm = make(kernel=kernel)
    x, noise = data()
    s, t = random_times("float32", 0.9)
    r = reference.r("eta_decrement", "flow_matching", s, t, 6, 0.0, 0.0, 0.994)
    particles = noised(mm, x, noise, s, r.astype("float32"), t)
    flow_map = flow_map_of(mm)
    y_target = mm.target(flow_map, particles)

    def loss(g):
        return mm.loss(
            lambda x, t, s, labels: with_output(mm, x, t, s, g), particles, y_target
        )

    g = network(*map(numpy, (particles.x_t, particles.t, particles.s)))
    _, gradient = value_and_gradient(loss, g.astype("float32"))

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
        step = np.zeros_like(g)
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


def losses_and_gradients(mm, s, r, t, x, noise):
    """Of the whole batch, with respect to the network's output."""
    particles, flow_map = noised(mm, x, noise, s, r, t), flow_map_of(mm)
    y_target = mm.target(flow_map, particles)
    g = network(*map(numpy, (particles.x_t, particles.t, particles.s)))

    def loss(g):
        return mm.loss(
            lambda x, t, s, labels: with_output(mm, x, t, s, g), particles, y_target
        )

    return value_and_gradient(loss, g.astype("float32"))


@pytest.mark.parametrize(
    ("parameterization", "schedule", "kernel"),
    [(*pair, "laplace") for pair in reference.DEFINED]
    + [("identity", "flow_matching", name) for name in KERNELS if name != "laplace"]
    + [("simple_edm", "cosine", name) for name in KERNELS if name != "laplace"],
)
def test_finite_over_the_whole_range(parameterization, schedule, kernel):
    mm = make(schedule, parameterization, KERNELS[kernel][0])
    times = []
    for min_time in (0.0, 0.006):
        s, t = edge_times(min_time, mm.max_time)
        r = mm.time_mapping(mm.schedule, s, t, min_time, mm.max_time)
        times.append([s, numpy(r), t])
    s, r, t = np.concatenate(times, axis=1)
    x, noise = data(batch=len(t) * M)
    # Two of the particles of every group are the same.
    for each in (x, noise):
        each[1::M] = each[0::M]
    loss, gradient = losses_and_gradients(mm, s, r, t, x, noise)
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
    mm = make(schedule, parameterization, KERNELS[kernel][0])
    t = np.array([0.0, 1e-7, 0.006, 0.3, 0.7, mm.max_time], "float32")
    loss, gradient = losses_and_gradients(mm, t, t, t, *data())
    assert loss == 0
    assert np.all(gradient == 0)


def test_rounding_between_the_passes_costs_nothing_at_equal_times():
    """A compiler may round the pass with gradient otherwise than the target's."""
    mm = make()
    x, noise = data()
    s, t = random_times("float32", 0.9)
    s[:3] = t[:3]
    particles, flow_map = noised(mm, x, noise, s, t, t), flow_map_of(mm)
    y_target = (1 + 1e-6) * mm.target(flow_map, particles)
    g = network(*map(numpy, (particles.x_t, particles.t, particles.s)))

    def loss(g):
        return mm.loss(
            lambda x, t, s, labels: with_output(mm, x, t, s, g), particles, y_target
        )

    _, gradient = value_and_gradient(loss, g.astype("float32"))
    assert np.all(gradient[: 3 * M] == 0)
    assert np.any(gradient[3 * M :] != 0)
    particles = particles._replace(s=particles.t)
    assert numpy(mm.loss(flow_map, particles, (1 + 1e-6) * particles.x_t)) == 0


@pytest.mark.parametrize("kernel", ["laplace", "energy"])
def test_equal_times_give_exactly_zero_when_compiled(kernel):
    mm = make("cosine", "simple_edm", kernel)
    t = np.array([0.0, 1e-7, 0.006, 0.3, 0.7, mm.max_time], "float32")
    times = [np.repeat(t, M)] * 3
    flow_map = flow_map_of(mm)

    def loss(x, noise, s, r, t):
        particles = mm.noised(x, noise, s, r, t)
        return mm.loss(flow_map, particles, mm.target(flow_map, particles))

    compiled = compilation.compile_function(loss)
    assert numpy(compiled(*map(ops.convert_to_tensor, (*data(), *times)))) == 0


# -- Special cases


@pytest.mark.parametrize("s_is_zero", [False, True])
@every_defined
def test_one_particle_and_energy_give_the_consistency_loss(
    parameterization, schedule, s_is_zero
):
    """Lemma 1: 2 w ||f_{s,t}(x_t) - f_{s,r}(x_r)||^2."""
    mm = make(schedule, parameterization, "energy", group_size=1)
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
    loss = loss_of(mm, x, noise, s, r, t)
    np.testing.assert_allclose(numpy(loss), 2 * np.mean(consistency), rtol=1e-5)


@pytest.mark.parametrize("kernel", ["laplace", "rbf"])
@pytest.mark.parametrize("schedule", reference.SCHEDULES)
@pytest.mark.parametrize("parameterization", ["identity", "simple_edm"])
def test_generative_moment_matching_network(parameterization, schedule, kernel):
    """App. G.3: t = 1, r = s = 0 and w = 1 is the MMD of f(noise) and the data."""
    mm = make(
        schedule,
        parameterization,
        kernel,
        weighting=weightings.Uniform(),
        time_mapping=time_mappings.TimeDecrement(),
        max_time=1.0,
    )
    x, noise = data()
    zero, one = np.zeros(GROUPS, "float32"), np.ones(GROUPS, "float32")
    particles, flow_map = noised(mm, x, noise, zero, zero, one), flow_map_of(mm)
    y_target = mm.target(flow_map, particles)
    np.testing.assert_array_equal(numpy(particles.x_t), noise)
    np.testing.assert_array_equal(numpy(y_target), x)

    out = 1.0 if parameterization == "identity" else -SIGMA_DATA
    each = np.ones(GROUPS * M)
    y = out * network(reference.float64(noise), each, 0 * each)  # c_skip(0, 1) = 0
    scales = one / abs(out)
    formula = KERNELS[kernel][1]
    expected = np.mean(reference.grouped_mmd(y, x, scales, formula, M))
    loss = mm.loss(flow_map, particles, y_target)
    np.testing.assert_allclose(numpy(loss), expected, rtol=1e-5)


def test_flow_map_is_called_with_the_particles():
    """f_{s,t}(x_t) with the labels, f_{s,r}(x_r) with the target's labels."""
    mm, calls = make(), []
    names = ("x_t", "x_r", "s", "r", "t", "labels", "target_labels")
    s, t = random_times("float32", 0.99)
    particles = noised(mm, *data(), s, t, t)._replace(
        s="s", r="r", labels="labels", target_labels="target labels"
    )
    assert particles._fields == (*names, "augmentation_labels")

    def flow_map(*args):
        calls.append(args)
        return args[0]

    mm.target(flow_map, particles)
    assert calls.pop() == (particles.x_r, "r", "s", "target labels")
    particles = particles._replace(s=particles.t)
    mm.loss(flow_map, particles, particles.x_t)
    x_t, t, s, labels = calls.pop()
    assert x_t is particles.x_t
    assert t is s is particles.t
    assert labels == "labels"


# -- Draws


class Draw:
    """One large draw of particles, as NumPy."""

    def __init__(self, dtype="float32", seed=0, **options):
        min_time = options.setdefault("min_time", 0.006)
        self.mm = make(label_dropout=0.1, null_label=10, **options)
        rng = np.random.default_rng(8)
        self.x = rng.uniform(-1, 1, (2048 * M, 2, 3)).astype(dtype)
        self.labels = (np.arange(2048 * M) % 10).astype("int32")
        self.seed = keras.random.SeedGenerator(seed)
        self.min_time, self.max_time = min_time, self.mm.max_time

    def __call__(self, **options):
        p = self.mm.draw(self.x, self.labels, self.seed, **options)
        assert p.augmentation_labels is None  # the model's to set
        return objective.Particles(*map(numpy, p[:-1]))


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
    mapped = numpy(draw.mm.time_mapping(draw.mm.schedule, s, t, 0.006, 0.994))
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
    p = draw(dropout=False)
    np.testing.assert_array_equal(p.labels, draw.labels)
    np.testing.assert_array_equal(p.target_labels, draw.labels)
    unconditional = draw.mm.draw(draw.x, None, draw.seed)
    assert unconditional.labels is None
    assert unconditional.target_labels is None


def test_draws_repeat_with_the_seed_and_differ_from_each_other():
    draw, again, other = (Draw(seed=seed) for seed in (3, 3, 4))
    first, second = draw(), draw()
    draws = (draw[:-1] for draw in (first, again(), second, other()))
    for a, b, c, d in zip(*draws, strict=True):
        np.testing.assert_array_equal(a, b)
        assert np.any(a != c)
        assert np.any(a != d)


def test_an_integer_seed_is_refused():
    """It would give t, s and the noise the same random numbers."""
    with pytest.raises(ValueError, match="`seed` must be a SeedGenerator") as error:
        make().draw(data()[0], None, 0)
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
        ({"label_dropout": 1.5, "null_label": 1}, "label_dropout=1.5"),
        ({"label_dropout": 0.1}, "null_label=None"),
        ({"schedule": "cosine", "parameterization": "euler_fm"}, "schedule=<"),
    ],
)
def test_arguments_are_checked(options, message):
    with pytest.raises(ValueError) as error:
        make(**options)
    assert message in str(error.value)
    assert f"`{next(iter(options))}" in str(error.value) or "euler_fm" in str(error)


@pytest.mark.parametrize("sigma_data", [0, -1.0, float("nan"), None])
def test_sigma_data_is_checked(sigma_data):
    with pytest.raises(ValueError, match="`sigma_data` must be") as error:
        objective.MomentMatching(
            "cosine",
            "simple_edm",
            "eta_decrement",
            "laplace",
            "elbo",
            sigma_data=sigma_data,
        )
    assert f"sigma_data={sigma_data!r}" in str(error.value)
