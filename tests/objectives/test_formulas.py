"""Targets and losses against what their formulas say, in float64 NumPy."""

import math

import keras
import numpy as np
import pytest
from backends import FLOATS, value_and_gradient
from closed_forms import (
    SIGMA,
    batch,
    c_in,
    column,
    derivative,
    network,
    numpy,
    of_batch,
    output,
    raw,
    total_derivative,
)
from keras import ops

from keras_imm import kernels, objectives
from keras_imm.objectives import (
    ConsistencyTraining,
    ContinuousConsistency,
    DifferentialMomentMatching,
    MeanFlow,
    Shortcut,
    SoFlow,
    TerminalVelocityMatching,
)
from keras_imm.objectives.velocity import JumpParticles

NULL = 3
D = 4
CLIP = 0.6
TOLERANCE = {"float32": 2e-5, "float64": 1e-12}


def squared(x):
    return np.sum(np.square(x), axis=(1, 2, 3))


def elements(x):
    return np.mean(x, axis=(1, 2, 3))


def log_squared(x):
    return np.mean(np.log(squared(x)))


def of_paths(dtype, **options):
    """A batch, rounded to a dtype, and its path and velocity in float64."""
    given = batch(dtype=dtype, **options)
    x, noise, t, s = (v.astype("float64") for v in given[:4])
    x_t = column(1 - t) * x + column(t) * noise
    return given, x_t, noise - x, t, s, given[4]


def guided(x_t, t, v, labels, omega, kappa):
    null = np.full_like(labels, NULL)
    of_label, of_null = (SIGMA * output(x_t, t, t, each) for each in (labels, null))
    omega, kappa = (column(each * np.ones_like(t)) for each in (omega, kappa))
    return omega * v + kappa * of_label + (1 - omega - kappa) * of_null


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("guides", [False, True])
@pytest.mark.parametrize("improved", [False, True])
def test_mean_flow(improved, guides, power, dtype):
    given, x_t, v, t, s, labels = of_paths(dtype)
    guidance = {"omega": 0.8, "kappa": 0.5, "guided_until": 0.6} if guides else {}
    objective = MeanFlow(improved=improved, power=power, **guidance)
    _, target, loss, others = of_batch(objective, network(), *given)

    if guides:
        inside = t <= 0.6
        assert 0 < inside.sum() < len(t)
        omega, kappa = np.where(inside, 0.8, 1.0), np.where(inside, 0.5, 0.0)
        v = guided(x_t, t, v, labels, omega, kappa)
    along = SIGMA * output(x_t, t, t, labels) if improved else v
    du_dt = SIGMA * total_derivative(x_t, t, s, labels, along)
    expected = v - column(t - s) * du_dt
    error = output(x_t, t, s, labels) - expected / SIGMA
    tolerance = TOLERANCE[dtype]
    np.testing.assert_allclose(numpy(target), expected, rtol=tolerance, atol=tolerance)
    weight = (squared(error) + 0.01) ** -power
    assert loss == pytest.approx(np.mean(squared(error) * weight), rel=tolerance)
    assert others["log_residual"] == pytest.approx(log_squared(error), rel=tolerance)


def test_a_row_without_a_label_is_not_guided():
    x, noise, t, s, labels = batch(dtype="float32")
    labels[::2] = NULL
    plain, with_guidance = (
        of_batch(MeanFlow(omega=omega), network(), x, noise, t, s, labels)[1]
        for omega in (1.0, 1.5)
    )
    same = np.all(numpy(plain) == numpy(with_guidance), axis=(1, 2, 3))
    np.testing.assert_array_equal(same, np.arange(len(x)) % 2 == 0)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("guides", [False, True])
@pytest.mark.parametrize(("share", "power"), [(0.5, 1.0), (0.0, 0.75)])
def test_so_flow(share, power, guides, dtype):
    given, x_t, v, t, s, labels = of_paths(dtype)
    x, noise, t32, _, labels = given
    of_velocity = np.arange(len(t)) % 2 >= (1 if share else 2)
    s = np.where(of_velocity, t, s)
    middle = (t - 0.3 * (t - s)).astype(dtype)
    guidance = {"guidance_scale": 3.0, "guidance_mix": 0.25} if guides else {}
    objective = SoFlow(share, power=power, constant=0.02, **guidance)
    _, _, loss, others = of_batch(
        objective, network(), x, noise, t32, s.astype(dtype), middle, labels
    )
    middle = middle.astype("float64")
    s = s.astype(dtype).astype("float64")
    gap = np.where(of_velocity, 1, t - middle)

    if guides:
        z = np.clip((1 - t) / 0.2, 0, 1)
        fade = np.where(z < 1, 1 - np.exp(-0.025 * z / np.where(z < 1, 1 - z, 1)), 1)
        scale = 1 + 2 * fade
        assert 0 < np.sum(fade < 1) < len(t)
        v = guided(x_t, t, v, labels, 0.75 * scale, 0.25 * scale)
    out = output(x_t, t, s, labels)
    x_l = x_t - column(t - middle) * v
    f_t = x_t - column(t - s) * SIGMA * out
    f_l = x_l - column(middle - s) * SIGMA * output(x_l, middle, s, labels)
    q = (f_t - f_l) / column(gap) / SIGMA
    of_jumps = -elements(out * q) * (elements(q**2) + 0.02) ** -power
    error = output(x_t, t, t, labels) - v / SIGMA
    mean_square = elements(error**2)
    losses = np.where(
        of_velocity, mean_square * (mean_square + 0.02) ** -power, of_jumps
    )
    tolerance = 20 * TOLERANCE[dtype]  # q is a quotient of differences
    assert loss == pytest.approx(losses.mean(), rel=tolerance, abs=tolerance)
    found = others["log_residual"]
    assert found == pytest.approx(log_squared(q[~of_velocity]), rel=tolerance)
    if share:
        expected = log_squared(error[of_velocity])
        assert others["log_velocity_residual"] == pytest.approx(expected, rel=tolerance)
    else:
        assert "log_velocity_residual" not in others


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("scale", [None, 1.5])
def test_shortcut(scale, dtype):
    given, x_t, v, t, _, labels = of_paths(dtype, rows=8)
    x, noise, _, _, labels = given
    # Rows 0 and 1 of four learn jumps; t is a multiple of their step.
    step = np.tile([1 / 8, 1 / 2, 0, 0], 2)
    step[0] = 1 / 2
    t = np.array([0.5, 1.0, 0.3, 0.9, 0.25, 0.5, 0.1, 0.7], dtype).astype("float64")
    x_t = column(1 - t) * x + column(t) * noise
    averaged = (0.5, -0.2, 0.6, 0.3)
    objective = Shortcut(0.5, finest_steps=16, clip=CLIP, guidance_scale=scale)
    objective._roles.period, objective._roles.jumps = 4, 2  # two rows of one role
    _, target, loss, others = of_batch(
        objective,
        network(averaged={"target": averaged}),
        *(x, noise, t.astype(dtype), step.astype(dtype), labels),
    )

    def velocity(x, t, half):
        """u of the averaged weights; the velocity of the flow where half is finest."""
        stride = np.where(half == 1 / 16, 0, half)

        def of(labels):
            t_, stride_, labels_ = map(column, (t, stride, labels))
            return raw(c_in(t_) * x, t_, stride_, labels_, np.tanh, averaged)

        u = of(labels)
        if scale is not None:
            null = of(np.full_like(labels, NULL))
            is_finest = column(half == 1 / 16)
            u = np.where(is_finest, null + scale * (u - null), u)
        return SIGMA * u

    half = step / 2
    first = velocity(x_t, t, half)
    x_m = np.clip(x_t - column(half) * first, -CLIP * SIGMA, CLIP * SIGMA)
    second = velocity(x_m, t - half, half)
    of_halves = np.clip((first + second) / 2, -CLIP * SIGMA, CLIP * SIGMA)
    of_jumps = np.arange(8) % 4 < 2
    assert np.any(half[of_jumps] == 1 / 16)
    assert np.any(np.abs(x_t - column(half) * first)[of_jumps] > CLIP * SIGMA)
    expected = np.where(column(of_jumps), of_halves, v)
    tolerance = TOLERANCE[dtype]
    np.testing.assert_allclose(numpy(target), expected, rtol=tolerance, atol=tolerance)
    error = output(x_t, t, t - step, labels) - expected / SIGMA
    assert loss == pytest.approx(np.mean(error**2), rel=tolerance)
    found = others["log_residual"], others["log_velocity_residual"]
    wanted = log_squared(error[of_jumps]), log_squared(error[~of_jumps])
    assert found == pytest.approx(wanted, rel=tolerance)


def to_the_data(x, t, labels, schedule):
    """f_{0,t}(x) of simple_edm, whose second time is s = 0."""
    angle = np.pi * t / 2
    a, b = (1 - t, t) if schedule == "flow_matching" else (np.cos(angle), np.sin(angle))
    n = a**2 + b**2
    out = output(x, t, np.zeros_like(t), labels, "s", schedule)
    return column(a / n) * x - column(b * SIGMA / np.sqrt(n)) * out


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("huber", [0.0, 0.2])
@pytest.mark.parametrize("progress", [0.0, 0.3, 1.0])
def test_consistency_training(progress, huber, dtype):
    (x, noise, t32, _, labels), x_t, _, t, _, _ = of_paths(dtype)
    objective = ConsistencyTraining(stages=4, q=2.0, k=8.0, b=1.0, huber=huber)
    net = network(second_time="s", parameterization="simple_edm", max_time=0.994)
    r = objective.target_times(net, *map(ops.convert_to_tensor, (t32, progress)))

    stage = min(math.floor(4 * progress), 3)
    sigma_t = SIGMA * t / (1 - t)
    n = 1 + 8 / (1 + np.exp(sigma_t))
    sigma_r = sigma_t * np.maximum(0, 1 - n / 2 ** (stage + 1))
    assert np.any(sigma_r == 0) == (progress < 0.5)
    expected = sigma_r / (sigma_r + SIGMA)
    tolerance = TOLERANCE[dtype]
    np.testing.assert_allclose(numpy(r), expected, rtol=10 * tolerance, atol=tolerance)

    r = numpy(r)
    _, target, loss, others = of_batch(objective, net, x, noise, t32, r, labels)
    r = r.astype("float64")
    x_r = column(1 - r) * x + column(r) * noise
    y, y_target = (
        to_the_data(z, times, labels, "flow_matching")
        for z, times in ((x_t, t), (x_r, r))
    )
    np.testing.assert_allclose(numpy(target), y_target, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(numpy(target)[r == 0], x[r == 0], atol=tolerance)
    gap = SIGMA * (t / (1 - t) - r / (1 - r))
    distance = np.sqrt(squared(y - y_target) + huber**2) - huber
    tolerance *= 50  # of small differences
    assert loss == pytest.approx(np.mean(distance / gap), rel=tolerance)
    error = (y - y_target) / column(gap)
    assert others["log_residual"] == pytest.approx(log_squared(error), rel=tolerance)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("ramp", [0.0, 0.4, 1.0])
def test_continuous_consistency(ramp, dtype):
    (x, noise, t32, _, labels), _, _, t, _, _ = of_paths(dtype)
    objective = ContinuousConsistency(constant=0.15)
    options = {"schedule": "cosine", "parameterization": "simple_edm"}
    net = network(second_time="s", **options)
    _, target, loss, others = of_batch(
        objective, net, x, noise, t32, np.full_like(t32, ramp), labels
    )

    tau = np.pi * t / 2
    cos, sin = column(np.cos(tau)), column(np.sin(tau))
    x_t, velocity = cos * x + sin * noise, cos * noise - sin * x
    start = np.zeros_like(t)

    def of_angle(x, tau):
        return output(x, 2 * tau / np.pi, start, labels, "s", "cosine")

    F = of_angle(x_t, tau)
    slope = derivative(of_angle, (x_t, tau), (velocity, np.ones_like(tau)))
    g = -(cos**2) * (SIGMA * F - velocity)
    g = (g - ramp * cos * sin * (x_t + SIGMA * slope)) / SIGMA
    tolerance = 10 * TOLERANCE[dtype]
    np.testing.assert_allclose(numpy(target[1]), g, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(numpy(target[0]), F, rtol=tolerance, atol=tolerance)
    step = g / (np.sqrt(column(elements(g**2))) + 0.15)
    assert loss == pytest.approx(np.mean(step**2), rel=tolerance)
    assert others["log_residual"] == pytest.approx(log_squared(g), rel=tolerance)


KERNELS = {
    "laplace": kernels.Laplace(),
    "rbf": kernels.RBF(),
    "energy": kernels.Energy(),
    "huber": kernels.PseudoHuber(0.3),
}


def mixed_derivative(name, y, d, w):
    """sum_k K(y_j, y_k) d_k of one group, K the mixed second derivative."""
    difference = y[:, None] - y[None]
    inner = np.sum(difference * d[None], axis=-1, keepdims=True)
    distance2 = np.sum(difference**2, axis=-1, keepdims=True)
    if name == "rbf":
        a = w**2 / D
        terms = np.exp(-a * distance2 / 2) * (a * d[None] - a**2 * difference * inner)
    elif name == "energy":
        terms = 2 * d[None] + 0 * difference
    else:
        q = np.sqrt(distance2 + 0.3**2)
        terms = d[None] / q - difference * inner / q**3
    return terms.sum(axis=1)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("kernel", KERNELS)
def test_differential_moment_matching(kernel, dtype):
    M = 4
    (x, noise, t32, s32, labels), *_ = of_paths(dtype)
    t32, s32 = (np.repeat(times[:2], M) for times in (t32, s32))
    t, s = (times.astype("float64") for times in (t32, s32))
    objective = DifferentialMomentMatching(KERNELS[kernel], group_size=M)
    net = network(max_time=0.994)
    _, target, loss, others = of_batch(objective, net, x, noise, t32, s32, labels)

    x_t, v = column(1 - t) * x + column(t) * noise, noise.astype("float64") - x

    def flow_map(x, t):
        return x - column(t - s) * SIGMA * output(x, t, s, labels)

    d = derivative(flow_map, (x_t, t), (v, np.ones_like(t)))
    tolerance = TOLERANCE[dtype]
    np.testing.assert_allclose(numpy(target), d, rtol=tolerance, atol=tolerance)
    weight = numpy(
        objective.weighting(net.schedule, *map(ops.convert_to_tensor, (s, t)))
    )
    r = numpy(
        objective.time_mapping(
            net.schedule,
            *map(ops.convert_to_tensor, (s, t)),
            net.min_time,
            net.max_time,
        )
    )
    losses = []
    for group in (slice(0, M), slice(M, 2 * M)):
        y, d_ = (v[group].reshape(M, D) for v in (flow_map(x_t, t), d))
        w = 1 / ((t - s)[group][0] * SIGMA)
        if kernel == "laplace":
            unit = d_ / np.linalg.norm(d_, axis=1, keepdims=True)
            total, factor = w / D * np.sum(y * unit), 1.0
        else:
            total = np.sum(y * mixed_derivative(kernel, y, d_, w))
            factor = (t - r)[group][0]
        losses.append(weight[group][0] * factor * 2 / M**2 * total)
    assert others["log_residual"] == pytest.approx(
        log_squared(d / SIGMA), rel=tolerance
    )
    if kernel == "laplace":
        assert loss == pytest.approx(np.mean(losses), rel=10 * tolerance)
        return
    # The value is that of the kernel's derivative, whose gradient the formula gives.
    gradients = gradients_of(objective, net, x_t, t, s, d, labels, dtype)
    for i, group in enumerate((slice(0, M), slice(M, 2 * M))):
        y, d_ = (v[group].reshape(M, D) for v in (flow_map(x_t, t), d))
        w = 1 / ((t - s)[group][0] * SIGMA)
        factor = weight[group][0] * (t - r)[group][0] * 2 / M**2 / 2
        expected = factor * mixed_derivative(kernel, y, d_, w)
        found = gradients[group].reshape(M, D)
        scale = np.abs(expected).max()
        np.testing.assert_allclose(
            found, expected, rtol=50 * tolerance, atol=50 * tolerance * scale, err_msg=i
        )


def gradients_of(objective, net, x_t, t, s, d, labels, dtype):
    """The loss's gradient in the flow map's results."""
    given = (v.astype(dtype) for v in (x_t, t, s, d))
    x_t, t, s, d = map(ops.convert_to_tensor, given)
    start = numpy(net.flow_map(x_t, t, s, ops.convert_to_tensor(labels)))

    class Constant:
        """A network whose flow map is what is differentiated."""

        schedule, min_time, max_time = net.schedule, net.min_time, net.max_time
        sigma_data, coefficients = net.sigma_data, net.coefficients

        def __init__(self, y):
            self.y = y

        def flow_map(self, *args, **kwargs):
            return self.y

    particles = JumpParticles(x_t, t, s, d, None)
    return value_and_gradient(
        lambda y: objective.loss(Constant(y), particles, d)[0], start
    )[1]


@pytest.mark.parametrize("dtype", FLOATS)
def test_terminal_velocity_matching(dtype):
    (x, noise, t32, s32, labels), x_t, _, t, s, _ = of_paths(dtype)
    t_v = np.linspace(0.1, 0.9, len(t)).astype(dtype)
    s32[3], s[3] = t32[3], t[3]  # which the terminal term leaves out
    averaged = (0.5, -0.2, 0.6, 0.3)
    net = network(averaged={"target": averaged})
    _, target, loss, others = of_batch(
        TerminalVelocityMatching(), net, x, noise, t32, s32, t_v, labels
    )
    t_v = t_v.astype("float64")
    x_v = column(1 - t_v) * x + column(t_v) * noise

    def flow_map(s):
        return x_t - column(t - s) * SIGMA * output(x_t, t, s, labels)

    in_s = derivative(flow_map, (s,), (np.ones_like(s),))
    arrival = flow_map(s)
    s_, labels_ = column(s), column(labels)
    u = SIGMA * raw(c_in(s_) * arrival, s_, 0 * s_, labels_, np.tanh, averaged)
    tolerance = 10 * TOLERANCE[dtype]
    np.testing.assert_allclose(numpy(target), u, rtol=tolerance, atol=tolerance)
    terminal = np.where(column(s < t), in_s - u, 0) / SIGMA
    error = output(x_v, t_v, t_v, labels) - (noise.astype("float64") - x) / SIGMA
    expected = np.mean(terminal**2) + np.mean(error**2)
    assert loss == pytest.approx(expected, rel=tolerance)
    assert others["log_velocity_residual"] == pytest.approx(
        log_squared(error), rel=tolerance
    )


def test_all_are_known_by_name():
    names = {
        "moment_matching": objectives.MomentMatching,
        "flow_matching": objectives.FlowMatching,
        "mean_flow": MeanFlow,
        "so_flow": SoFlow,
        "shortcut": Shortcut,
        "consistency_training": ConsistencyTraining,
        "continuous_consistency": ContinuousConsistency,
        "differential_moment_matching": DifferentialMomentMatching,
        "terminal_velocity_matching": TerminalVelocityMatching,
    }
    for name, kind in names.items():
        assert type(objectives.get(name)) is kind
        assert keras.saving.get_registered_name(kind) == (
            f"keras_imm.objectives>{kind.__name__}"
        )
