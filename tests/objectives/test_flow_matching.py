"""Flow matching against what its equations say, in float64 NumPy."""

import keras
import numpy as np
import pytest
import reference
from backends import FLOATS, dtype_of, value_and_gradient
from contracts.objective import ObjectiveContract
from function_network import FunctionNetwork
from keras import ops
from small_dit import small_dit

import keras_imm
from keras_imm.flow_map import FlowMap, Network
from keras_imm.objectives import FlowMatching

SIGMA = 0.5
NULL = 3


class TestFlowMatchingContract(ObjectiveContract):
    @pytest.fixture(params=[0.0, 0.25])
    def instance(self, request):
        return FlowMatching(label_dropout=request.param, total_steps=7)


def numpy(x):
    return ops.convert_to_numpy(ops.stop_gradient(ops.convert_to_tensor(x)))


def network_of(function, **options):
    options = {"parameterization": "euler_fm", "max_time": 1.0} | options
    return Network(
        FlowMap(FunctionNetwork(function, NULL), sigma_data=SIGMA, **options)
    )


def column(coefficient):
    return np.reshape(coefficient, (-1, 1, 1, 1))


class Draw:
    """Draws of one large batch, as NumPy."""

    def __init__(self, seed=0, dtype="float32", schedule="flow_matching", **options):
        rng = np.random.default_rng(0)
        self.images = rng.normal(size=(4096, 2, 2, 1)).astype(dtype)
        self.labels = rng.integers(NULL, size=4096).astype("int32")
        self.objective = FlowMatching(label_dropout=0.25)
        self.seed = keras.random.SeedGenerator(seed)
        self.network = network_of(
            None, schedule=schedule, parameterization="simple_edm", **options
        )

    def __call__(self, training=True):
        particles = self.objective.draw(
            self.network,
            ops.convert_to_tensor(self.images),
            ops.convert_to_tensor(self.labels),
            self.seed,
            ops.zeros(()),
            training,
        )
        return type(particles)(*map(numpy, particles))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("schedule", reference.SCHEDULES)
def test_a_batch_is_the_path_and_its_velocity(schedule, dtype):
    draw = Draw(schedule=schedule, dtype=dtype)
    x_t, t, velocity, labels = draw()
    assert x_t.dtype == velocity.dtype == t.dtype == dtype
    # Two equations for the noise, of which one alone knows the data.
    alpha, sigma, alpha_rate, sigma_rate = (
        column(of(schedule, t))
        for of in (
            reference.alpha,
            reference.sigma,
            reference.alpha_derivative,
            reference.sigma_derivative,
        )
    )
    determinant = alpha * sigma_rate - sigma * alpha_rate
    x = (sigma_rate * x_t - sigma * velocity) / determinant
    noise = (alpha * velocity - alpha_rate * x_t) / determinant
    np.testing.assert_allclose(x, draw.images, atol=1e-5)
    assert noise.std() == pytest.approx(SIGMA, rel=0.02)
    assert noise.mean() == pytest.approx(0, abs=0.02)
    assert abs(np.corrcoef(noise.ravel(), draw.images.ravel())[0, 1]) < 0.03
    assert abs(np.corrcoef(noise[:, 0, 0, 0], t)[0, 1]) < 0.05
    assert 0 <= t.min() < 0.01 and 0.99 < t.max() < 1
    assert t.mean() == pytest.approx(0.5, abs=0.02)
    assert t.std() == pytest.approx(1 / np.sqrt(12), abs=0.01)
    dropped = labels == NULL
    assert dropped.mean() == pytest.approx(0.25, abs=0.03)
    np.testing.assert_array_equal(labels[~dropped], draw.labels[~dropped])
    assert labels.dtype == np.int32


def test_times_are_those_of_the_flow_map():
    t = Draw(min_time=0.2, max_time=0.6)().t
    assert 0.2 <= t.min() < 0.21 and 0.59 < t.max() <= 0.6


def test_an_evaluation_drops_no_label():
    draw = Draw()
    np.testing.assert_array_equal(draw(training=False).labels, draw.labels)


def test_draws_repeat_with_the_seed_and_differ_from_each_other():
    draw, again, other = (Draw(seed=seed) for seed in (3, 3, 4))
    first, second = draw(), draw()
    for a, b, c, d in zip(first, again(), second, other(), strict=True):
        np.testing.assert_array_equal(a, b)
        assert np.any(a != c)
        assert np.any(a != d)


def images(dtype="float32"):
    """x, noise and t."""
    rng = np.random.default_rng(1)
    x, noise = SIGMA * rng.standard_normal((2, 12, 2, 2, 1))
    return x.astype(dtype), noise.astype(dtype), rng.uniform(0.1, 0.9, 12).astype(dtype)


def tanh_network(x, c_t, c_s, labels, tanh=ops.tanh, reshape=ops.reshape):
    return tanh(
        x * reshape(0.5 + c_t / 3000, (-1, 1, 1, 1))
        + 1e-4 * reshape(c_s, (-1, 1, 1, 1))
    )


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(("parameterization", "schedule"), reference.DEFINED)
def test_the_loss_is_the_squared_error_of_the_velocity(
    parameterization, schedule, dtype
):
    x, noise, t = images(dtype)
    objective = FlowMatching()
    network = network_of(
        tanh_network, parameterization=parameterization, schedule=schedule
    )
    particles = objective.noised(network, *map(ops.convert_to_tensor, (x, noise, t)))
    loss = objective.loss(network, particles, None)[0]
    assert dtype_of(loss) == dtype

    x, noise, t = map(reference.float64, (x, noise, t))
    alpha, sigma = (
        column(of(schedule, t)) for of in (reference.alpha, reference.sigma)
    )
    rates = reference.alpha_derivative, reference.sigma_derivative
    alpha_rate, sigma_rate = (column(of(schedule, t)) for of in rates)
    x_t = alpha * x + sigma * noise
    scaled = x_t / (SIGMA * np.sqrt(alpha**2 + sigma**2))
    g = tanh_network(scaled, 1000 * t, 1000 * t, None, np.tanh, np.reshape)
    skip, out = reference.velocity_coefficients(parameterization, schedule, t, SIGMA)
    velocity = column(skip) * x_t + column(out) * g
    error = (velocity - (alpha_rate * x + sigma_rate * noise)) / SIGMA
    rtol = {"float32": 2e-5, "float64": 1e-11}[dtype]
    np.testing.assert_allclose(numpy(loss), np.mean(error**2), rtol=rtol)


def test_the_gradient_is_that_of_a_mean_of_squares():
    """With Euler-FM the velocity is sigma_data times the network's output."""
    x, noise, t = images()
    objective = FlowMatching()
    g = np.random.default_rng(2).standard_normal(x.shape).astype("float32")

    def loss(g):
        network = network_of(lambda *_: g)
        arrays = map(ops.convert_to_tensor, (x, noise, t))
        return objective.loss(network, objective.noised(network, *arrays), None)[0]

    _, gradient = value_and_gradient(loss, g)
    expected = 2 * (g - (noise - x) / SIGMA) / g.size
    np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-7)


def test_the_network_is_told_t_twice_and_the_labels():
    seen = []

    def function(x, c_t, c_s, labels):
        seen.append((c_t, c_s, labels))
        return x

    x, noise, t = images()
    objective = FlowMatching()
    labels = np.arange(12, dtype="int32") % 3
    network = network_of(function)
    arrays = map(ops.convert_to_tensor, (x, noise, t, labels))
    objective.loss(network, objective.noised(network, *arrays), None)
    ((c_t, c_s, told),) = seen
    np.testing.assert_allclose(numpy(c_t), 1000 * t, rtol=1e-6)
    np.testing.assert_array_equal(numpy(c_t), numpy(c_s))
    np.testing.assert_array_equal(numpy(told), labels)


def test_there_is_no_target():
    network = network_of(tanh_network)
    arrays = map(ops.convert_to_tensor, images())
    objective = FlowMatching()
    assert objective.target(network, objective.noised(network, *arrays)) is None


def test_what_it_wants_of_a_model(make_model):
    backbone = FunctionNetwork(tanh_network)
    model = keras_imm.FlowMapModel(backbone, objective="flow_matching")
    assert isinstance(model.objective, FlowMatching)
    assert model.max_time == 1.0
    with pytest.warns(UserWarning, match=r"max_time=1.0.*max_time=0.9"):
        model = keras_imm.FlowMapModel(
            backbone, objective="flow_matching", max_time=0.9
        )
    assert model.max_time == 0.9


def test_it_learns_the_velocity_of_one_point():
    """Data that are all alike: v(x_t, t) = (x_t - x) / t, so samples are that point."""
    inputs = keras.Input((1,)), keras.Input(()), keras.Input(())
    x, c_t, _ = inputs
    time = keras.layers.Reshape((1,))(c_t)
    hidden = keras.layers.Dense(64, "silu")(keras.layers.concatenate([x, time]))
    hidden = keras.layers.Dense(64, "silu")(hidden)
    keras.utils.set_random_seed(0)
    backbone = keras.Model(inputs, keras.layers.Dense(1)(hidden))
    model = keras_imm.FlowMapModel(
        backbone, objective="flow_matching", time_scale=1.0, max_time=1.0
    )
    model.compile(keras.optimizers.Adam(1e-2))
    data = np.full((4096, 1), 0.8, "float32")
    model.fit(data, batch_size=256, epochs=8, verbose=0)
    samples = model.generate(num_samples=256, seed=0)
    assert samples.mean() == pytest.approx(0.8, abs=0.1)
    assert samples.std() < 0.12  # the noise has 0.5


def test_a_velocity_that_is_infinite_at_the_data_is_refused():
    arguments = {"objective": "flow_matching", "parameterization": "identity"}
    with pytest.raises(ValueError, match=r"Identity.*no velocity.*min_time=0\.0"):
        keras_imm.FlowMapModel(small_dit(), **arguments)
    model = keras_imm.FlowMapModel(small_dit(), **arguments, min_time=0.01)
    assert model.min_time == 0.01
