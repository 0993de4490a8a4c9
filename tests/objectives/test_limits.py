"""What holds between objectives, and of a flow map that is exact."""

import json
import pathlib

import keras
import numpy as np
import pytest
from backends import FLOATS, value_and_gradient
from closed_forms import SIGMA, batch, column, network, numpy, tensors
from function_network import FunctionNetwork
from keras import ops
from scripts import run_code

from keras_imm import kernels
from keras_imm.flow_map import FlowMap, Network
from keras_imm.objectives import (
    ContinuousConsistency,
    DifferentialMomentMatching,
    MeanFlow,
    MomentMatching,
    Shortcut,
    SoFlow,
    TerminalVelocityMatching,
)

WEIGHTS = (0.7, 0.4, -0.3, 0.1)
DATA_STD = 0.8

# -- Gaussian data N(0, DATA_STD^2), whose flow is known


def gaussian_output(second_time):
    """G of the exact flow map, whose difference of roots does not cancel."""

    def call(scaled, t, second, labels=None):
        shape = (-1, 1, 1, 1)
        t, second = (ops.reshape(v, shape) for v in (t, second))
        s = t - second if second_time == "stride" else second
        x = scaled * (SIGMA * ops.sqrt((1.0 - t) ** 2 + t**2))
        data, noise = DATA_STD**2, SIGMA**2
        n_t, n_s = ((1.0 - v) ** 2 * data + v**2 * noise for v in (t, s))
        slope = (data + noise) * (s + t) - 2.0 * data
        root = ops.sqrt(n_t)
        return x * slope / (root * (ops.sqrt(n_s) + root)) / SIGMA

    return call


def gaussian_trigonometric(scaled, t, second, labels=None):
    """F of the exact flow map to the data, on the cosine schedule."""
    tau = ops.reshape(t, (-1, 1, 1, 1)) * (np.pi / 2)
    cos, sin = ops.cos(tau), ops.sin(tau)
    x = scaled * SIGMA
    norm = ops.sqrt(cos**2 * DATA_STD**2 + sin**2 * SIGMA**2)
    return (cos - DATA_STD / norm) / (SIGMA * sin) * x


def gaussian_network(second_time="stride"):
    flow_map = FlowMap(
        FunctionNetwork(gaussian_output(second_time)),
        **{"second_time": second_time, "time_scale": 1.0, "max_time": 1.0},
        sigma_data=SIGMA,
    )
    return Network(flow_map, weights=lambda name: keras.name_scope(name))


def marginal_velocity(x_t, t):
    data, noise = DATA_STD**2, SIGMA**2
    slope = t * noise - (1 - t) * data
    return column(slope / ((1 - t) ** 2 * data + t**2 * noise)) * x_t


def residuals(dtype, second_time="stride"):
    """By objective the largest residual of the exact flow map, in units of G."""
    rng = np.random.default_rng(0)
    x_t = np.clip(0.4 * rng.standard_normal((16, 2, 2, 1)), -1, 1)
    t = rng.uniform(0.05, 1.0, 16)
    s = t * rng.uniform(0, 1, 16)
    v = marginal_velocity(x_t, t)
    net = gaussian_network(second_time)
    x_t, t, s, v = tensors(*(value.astype(dtype) for value in (x_t, t, s, v)))
    # Particles of these fields, whatever the objective calls them.
    given = {"x_t": x_t, "t": t, "s": s, "velocity": v}

    def particles(objective, **others):
        kind = type(objective).noised.__annotations__["return"]
        return kind(**given, **others)

    output = SIGMA * net.output(x_t, t, s)
    found = {}
    for improved in (False, True):
        objective = MeanFlow(improved=improved)
        target = objective.target(net, particles(objective))
        found["improved " * improved + "MeanFlow"] = output - target
    objective = DifferentialMomentMatching()
    found["moment matching"] = objective.target(net, particles(objective))

    objective = TerminalVelocityMatching()
    target = objective.target(net, particles(objective, x_v=x_t, t_v=t))
    G, in_s = net.derivative_in_s(x_t, t, s)
    gap = ops.reshape(t - s, (-1, 1, 1, 1))
    found["terminal velocity"] = SIGMA * (G - gap * in_s) - target

    step = ops.convert_to_tensor(np.tile([1.0, 0.5, 0.25, 0.125], 4).astype(dtype))
    objective = Shortcut(1.0)
    kind = type(objective).noised.__annotations__["return"]
    t = ops.maximum(ops.round(t / step), 1.0) * step
    target = objective.target(net, kind(x_t, t, step, v))
    found["shortcut"] = SIGMA * net.output(x_t, t, t - step) - target

    flow_map = FlowMap(
        FunctionNetwork(gaussian_trigonometric),
        **{"schedule": "cosine", "parameterization": "simple_edm"},
        **{"time_scale": 1.0, "max_time": 1.0, "sigma_data": SIGMA},
    )
    net, objective = Network(flow_map), ContinuousConsistency()
    t = rng.uniform(0.05, 1.0, 16)
    tau = column(np.pi * t / 2)
    cos, sin = np.cos(tau), np.sin(tau)
    slope = cos * sin * (SIGMA**2 - DATA_STD**2)
    norm = cos**2 * DATA_STD**2 + sin**2 * SIGMA**2
    velocity = slope / norm * numpy(x_t).astype("float64")
    velocity, t = tensors(velocity.astype(dtype), t.astype(dtype))
    kind = type(objective).noised.__annotations__["return"]
    sCM = kind(x_t, t, velocity, ops.ones_like(t))
    found["continuous consistency"] = SIGMA * objective.tangent(net, sCM)[1]
    return {name: np.abs(numpy(value)).max() / SIGMA for name, value in found.items()}


def quotients(dtype, rho, exact=True):
    """SoFlow's q of the exact flow map, or of another network."""
    rng = np.random.default_rng(0)
    x_t = 0.4 * rng.standard_normal((16, 2, 2, 1))
    t = rng.uniform(0.3, 1.0, 16)
    s = t * rng.uniform(0, 0.7, 16)
    v = marginal_velocity(x_t, t)
    fields = (value.astype(dtype) for value in (x_t, t, s, t - rho * (t - s), v))
    x_t, t, s, middle, v = tensors(*fields)
    objective, net = SoFlow(0.0), gaussian_network() if exact else network()
    kind = type(objective).noised.__annotations__["return"]
    particles = kind(x_t, t, s, middle, v)
    target = objective.target(net, particles)
    return numpy(objective.quotient(net.output(x_t, t, s), particles, target))


@pytest.mark.parametrize("second_time", ["stride", "s"])
@pytest.mark.parametrize(
    ("dtype", "bound"), [("float32", 5e-6), ("float64", 1e-12)], ids=str
)
def test_the_residuals_of_the_exact_flow_map_vanish(
    dtype, bound, second_time, monkeypatch
):
    if dtype == "float64" and keras.backend.backend() == "jax":
        # In a process of its own: JAX has no float64 unless it is asked for.
        monkeypatch.setenv("JAX_ENABLE_X64", "1")
        folder = str(pathlib.Path(__file__).parent)
        code = f"""
sys.path.insert(0, {folder!r})
import json, test_limits
found = test_limits.residuals({dtype!r}, {second_time!r})
print(json.dumps({{name: float(value) for name, value in found.items()}}))
"""
        result = run_code(code, "tests")
        assert result.returncode == 0, result.stderr
        found = json.loads(result.stdout)
    else:
        found = residuals(dtype, second_time)
    assert len(found) == 6
    for name, residual in found.items():
        # Under JAX Keras computes the cosine schedule's sines in float32.
        rounds = keras.backend.backend() == "jax" and name == "continuous consistency"
        assert residual < (5e-6 if rounds else bound), name


def test_so_flow_s_quotient_falls_with_the_gap():
    if keras.backend.backend() == "jax":
        pytest.skip("JAX has no float64 unless jax_enable_x64 is set")
    sizes = [np.abs(quotients("float64", rho)).max() for rho in (0.1, 0.01, 0.001)]
    np.testing.assert_allclose(np.divide(sizes[:-1], sizes[1:]), 10, rtol=0.1)


def test_so_flow_s_quotient_in_float32():
    """Of a network that is no flow map yet: 1%; 499 times the outputs' rounding."""
    if keras.backend.backend() == "jax":
        pytest.skip("JAX has no float64 unless jax_enable_x64 is set")
    for exact in (False, True):
        wide, rounded = (
            quotients(dtype, 0.002, exact) for dtype in ("float64", "float32")
        )
        assert np.abs(rounded - wide).max() < 4e-4  # of outputs of order 1
        if not exact:
            assert np.abs(rounded - wide).max() < 0.01 * np.abs(wide).max()


# -- Gradients of two objectives


def gradient(objective, given, dtype, **options):
    """In the weights of a network in closed form."""

    def loss(weights):
        net = network([weights[i] for i in range(4)], max_time=0.994, **options)
        particles = objective.noised(net, *tensors(*given))
        target = ops.stop_gradient(objective.target(net, particles))
        return objective.loss(net, particles, target)[0]

    return value_and_gradient(loss, np.asarray(WEIGHTS, dtype))[1].astype("float64")


def of_one_pair(dtype, gap=None):
    """A batch of one s and one t, and for a gap of r between them."""
    x, noise, t, s, labels = batch(dtype=dtype)
    t, s = t * 0 + np.asarray(0.8, dtype), s * 0 + np.asarray(0.3, dtype)
    if gap is None:
        return x, noise, t, s, labels
    return x, noise, s, t - np.asarray(gap, dtype), t, labels, labels


def weight_and_gap(objective, dtype):
    net = network(max_time=0.994)
    s, t = tensors(np.asarray([0.3], dtype), np.asarray([0.8], dtype))
    r = objective.time_mapping(net.schedule, s, t, net.min_time, net.max_time)
    return (
        float(numpy(objective.weighting(net.schedule, s, t))[0]),
        0.8 - float(numpy(r)[0]),
    )


@pytest.mark.parametrize("dtype", FLOATS)
def test_mean_flow_without_a_weight_is_the_energy_kernel_s_limit(dtype):
    limit = DifferentialMomentMatching("energy", group_size=1)
    mean_flow = MeanFlow(power=0.0)
    given = of_one_pair(dtype)
    w, gap = weight_and_gap(limit, dtype)
    # 4 w (t - r) (t - s) sigma_data^2 against 2.
    factor = 2 * w * gap * 0.5 * SIGMA**2
    tolerance = 1e-4 if dtype == "float32" else 1e-11
    np.testing.assert_allclose(
        gradient(limit, given, dtype),
        factor * gradient(mean_flow, given, dtype),
        rtol=tolerance,
    )


@pytest.mark.parametrize("dtype", FLOATS)
def test_mean_flow_of_power_one_half_is_the_laplace_kernel_s_limit(dtype):
    limit = DifferentialMomentMatching("laplace", group_size=1)
    mean_flow = MeanFlow(power=0.5, constant=1e-20)
    given = of_one_pair(dtype)
    w, _ = weight_and_gap(limit, dtype)
    dimension = 4
    tolerance = 1e-4 if dtype == "float32" else 1e-11
    np.testing.assert_allclose(
        gradient(limit, given, dtype),
        w / dimension * gradient(mean_flow, given, dtype),
        rtol=tolerance,
    )


@pytest.mark.skipif(
    keras.backend.backend() == "jax",
    reason="JAX has no float64 unless jax_enable_x64 is set",
)
@pytest.mark.parametrize("parameterization", ["euler_fm", "simple_edm"])
@pytest.mark.parametrize(
    "kernel", ["laplace", "rbf", "energy", kernels.PseudoHuber(0.3)]
)
def test_moment_matching_converges_to_its_limit(kernel, parameterization):
    """At first order in the gap."""
    options = {"parameterization": parameterization}
    limit = DifferentialMomentMatching(kernel, group_size=4)
    expected = gradient(limit, of_one_pair("float64"), "float64", **options)
    _, mapped_gap = weight_and_gap(limit, "float64")
    errors = []
    for gap in (1e-3, 1e-4, 1e-5):
        finite = MomentMatching(kernel=kernel, group_size=4)
        found = gradient(finite, of_one_pair("float64", gap), "float64", **options)
        if kernel != "laplace":
            found = found * mapped_gap / gap
        errors.append(np.linalg.norm(found - expected) / np.linalg.norm(expected))
    assert errors[0] < 0.03
    np.testing.assert_allclose(np.divide(errors[:-1], errors[1:]), 10, rtol=0.15)
