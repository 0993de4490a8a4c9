"""RAdam against torch.optim.RAdam, and in all that Keras does with an optimizer."""

import decimal

import keras
import numpy as np
import pytest
import torch
from backends import FLOATS
from keras import ops
from small_dit import small_dit

import keras_imm
from keras_imm.optimizers import RAdam

SHAPES = [(), (5,), (3, 4), (2, 3, 2, 2)]


def start(dtype="float32", shapes=SHAPES):
    rng = np.random.default_rng(0)
    return [0.2 * rng.standard_normal(shape).astype(dtype) for shape in shapes]


def gradients(steps, dtype="float32", shapes=SHAPES):
    """Steps of gradients; entries from 1e-10, where epsilon matters, to 10."""
    rng = np.random.default_rng(1)
    size = [10.0 ** rng.uniform(-10, 1, shape) for shape in shapes]
    return [
        [(s * rng.standard_normal(s.shape)).astype(dtype) for s in size]
        for _ in range(steps)
    ]


def numpy(tensors):
    return [np.array(ops.convert_to_numpy(getattr(x, "value", x))) for x in tensors]


def keras_steps(optimizer, steps, dtype="float32"):
    """The weights after each step."""
    weights = [keras.Variable(w, dtype=dtype) for w in start(dtype)]
    after = []
    for gradient in steps:
        optimizer.apply([ops.convert_to_tensor(g) for g in gradient], weights)
        after.append(numpy(weights))
    return after


def stateless_steps(optimizer, steps):
    """The same with `stateless_apply`, which under JAX is compiled."""
    weights = [keras.Variable(w) for w in start()]
    optimizer.build(weights)

    def step(state, values, gradient):
        return optimizer.stateless_apply(state, gradient, values)

    if keras.backend.backend() == "jax":
        import jax

        step = jax.jit(step)
    values = [ops.copy(w.value) for w in weights]
    state = [ops.copy(v.value) for v in optimizer.variables]
    after = []
    for gradient in steps:
        gradient = [ops.convert_to_tensor(g) for g in gradient]
        values, state = step(state, values, gradient)
        after.append(numpy(values))
    check_equal([numpy(weights)], [start()], atol=0)
    return after, state


def torch_steps(steps, betas=(0.9, 0.999), prepare=None, rates=None, **options):
    """The same with torch's own optimizer in float64."""
    weights = [torch.tensor(w.astype("float64")).requires_grad_() for w in start()]
    optimizer = torch.optim.RAdam(
        weights, betas=betas, decoupled_weight_decay=True, **options
    )
    after = []
    for i, gradient in enumerate(steps):
        for w, g in zip(weights, gradient, strict=True):
            w.grad = torch.tensor(g.astype("float64"))
        if prepare is not None:
            prepare(weights)
        if rates is not None:
            optimizer.param_groups[0]["lr"] = rates[i]
        optimizer.step()
        after.append([w.detach().numpy().copy() for w in weights])
    return after


def check_equal(found, expected, atol=1e-6):
    for step, (ours, theirs) in enumerate(zip(found, expected, strict=True)):
        for x, y in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(x, y, rtol=0, atol=atol, err_msg=f"step {step}")


@pytest.mark.parametrize(
    ("lr", "betas", "epsilon", "weight_decay"),
    [
        (1e-4, (0.9, 0.999), 1e-8, None),  # the recipe's
        (1e-3, (0.9, 0.999), 1e-8, 0.1),
        (1e-2, (0.95, 0.99), 1e-6, None),
        (1e-3, (0.0, 0.9999), 1e-8, 0.01),
        (1e-2, (0.9, 0.8), 1e-3, None),
        (1e-3, (0.9, 0.6), 1e-8, None),  # never rectified
        (1e-3, (0.9, 0.0), 1e-8, None),
    ],
)
def test_equals_torch_step_by_step(lr, betas, epsilon, weight_decay):
    steps = gradients(40)
    optimizer = RAdam(lr, *betas, epsilon, weight_decay=weight_decay)
    found = keras_steps(optimizer, steps)
    expected = torch_steps(
        steps, betas, lr=lr, eps=epsilon, weight_decay=weight_decay or 0.0
    )
    check_equal(found, expected)
    assert np.max(np.abs(found[-1][2] - start()[2])) > 1e-4


def test_the_defaults_are_those_of_torch():
    steps = gradients(12)
    check_equal(keras_steps(RAdam(), steps), torch_steps(steps))


@pytest.mark.parametrize("dtype", FLOATS)
def test_the_weights_keep_their_dtype(dtype):
    steps = gradients(10, dtype)
    found = keras_steps(RAdam(1e-2), steps, dtype)
    assert found[0][1].dtype == dtype
    check_equal(found, torch_steps(steps, lr=1e-2))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_weights(dtype):
    """The count of steps and the bias corrections are not in the weights' dtype."""
    weight = keras.Variable(np.ones(3), dtype=dtype)
    optimizer = RAdam(0.01)
    for _ in range(10):
        optimizer.apply([ops.ones((3,), dtype)], [weight])
    assert keras.backend.standardize_dtype(weight.dtype) == dtype
    expected = torch.ones(3, requires_grad=True)
    reference = torch.optim.RAdam([expected], lr=0.01)
    for _ in range(10):
        expected.grad = torch.ones(3)
        reference.step()
    found = ops.convert_to_numpy(ops.cast(weight, "float32"))
    np.testing.assert_allclose(found, expected.detach().numpy(), atol=0.01)
    assert np.all(found < 0.97)


def exact_update(t, beta_1, beta_2):
    """What step t takes from a weight with gradient 1 and no past, in 60 digits."""
    decimal.getcontext().prec = 60
    b1, b2 = decimal.Decimal(beta_1), decimal.Decimal(beta_2)
    rho_inf = 2 / (1 - b2) - 1
    rho = rho_inf - 2 * t * b2**t / (1 - b2**t)
    update = (1 - b1) / (1 - b1**t)
    if rho > 5:
        r = (rho - 4) * (rho - 2) * rho_inf / ((rho_inf - 4) * (rho_inf - 2) * rho)
        update *= r.sqrt() * (1 - b2**t).sqrt() / (1 - b2).sqrt()
    return float(update)


@pytest.mark.parametrize("beta_2", [0.7, 0.9, 0.999, 0.99999])
def test_each_step_number_to_float32_accuracy(beta_2):
    """Also where beta^t is close to 1, or to 0, and around the rectification."""
    weight = keras.Variable(np.zeros(()), dtype="float32")
    optimizer = RAdam(1.0, 0.9, beta_2, epsilon=1e-30)
    optimizer.build([weight])
    states = [v for v in optimizer.variables if v.path.endswith(("um", "velocity"))]
    assert len(states) == 2
    numbers = [*range(1, 12), 50, 300, 999, 1001, 5000, 100_000, 99_999, 3_000_000]
    for t in numbers:
        for v in (weight, *states):
            v.assign(ops.zeros(()))
        optimizer.iterations.assign(t - 1)
        optimizer.apply([ops.ones(())])
        expected = exact_update(t, 0.9, beta_2)
        (found,) = numpy([weight])
        np.testing.assert_allclose(-found, expected, rtol=2e-6, err_msg=str(t))


def clip_value(weights):
    torch.nn.utils.clip_grad_value_(weights, 0.5)


def clip_all(weights):
    torch.nn.utils.clip_grad_norm_(weights, 0.5)


def clip_each(weights):
    for w in weights:
        torch.nn.utils.clip_grad_norm_([w], 0.5)


@pytest.mark.parametrize(
    ("option", "prepare"),
    [("clipvalue", clip_value), ("clipnorm", clip_each), ("global_clipnorm", clip_all)],
)
def test_clipping(option, prepare):
    steps = gradients(8)
    found = keras_steps(RAdam(1e-2, **{option: 0.5}), steps)
    check_equal(found, torch_steps(steps, lr=1e-2, prepare=prepare), atol=3e-6)


def test_learning_rate_schedule():
    schedule = keras.optimizers.schedules.PolynomialDecay(0.02, 8, 0.001)
    steps = gradients(10)
    rates = [0.02 + (0.001 - 0.02) * min(i / 8, 1) for i in range(10)]
    check_equal(keras_steps(RAdam(schedule), steps), torch_steps(steps, rates=rates))


def test_gradient_accumulation_steps_count_once():
    steps = gradients(24)
    optimizer = RAdam(1e-2, gradient_accumulation_steps=3)
    found = keras_steps(optimizer, steps)
    means = []
    for i in range(0, 24, 3):
        three = zip(*steps[i : i + 3], strict=True)
        means.append([np.mean(g, axis=0, dtype="float64") for g in three])
    check_equal(found[2::3], torch_steps(means, lr=1e-2))
    check_equal(found[3:4], found[2:3], atol=0)


def test_average_of_the_weights():
    steps = gradients(8)
    optimizer = RAdam(1e-2, use_ema=True, ema_momentum=0.7)
    weights = [keras.Variable(w) for w in start()]
    for gradient in steps:
        optimizer.apply([ops.convert_to_tensor(g) for g in gradient], weights)
    expected, *later = torch_steps(steps, lr=1e-2)
    for after in later:
        expected = [0.7 * a + 0.3 * w for a, w in zip(expected, after, strict=True)]
    optimizer.finalize_variable_values(weights)
    check_equal([numpy(weights)], [expected])


def test_loss_scaling_skips_what_overflows(backend):
    steps = gradients(8)
    expected = torch_steps(steps, lr=1e-2)
    optimizer = keras.optimizers.LossScaleOptimizer(RAdam(1e-2), initial_scale=1024.0)
    scaled = [[1024 * g for g in gradient] for gradient in steps]
    overflow = [np.full_like(g, np.inf) for g in steps[0]]
    after = [[g / 2 for g in gradient] for gradient in scaled[4:]]  # the scale halves
    scaled = [*scaled[:4], overflow, *after]
    if backend == "jax":  # where Keras's loss scaling is stateless only
        found, _ = stateless_steps(optimizer, scaled)
    else:
        found = keras_steps(optimizer, scaled)
    check_equal(found[4:5], found[3:4], atol=0)
    check_equal(found[:4] + found[5:], expected)


@pytest.mark.skipif(
    keras.backend.backend() == "tensorflow",
    reason="Keras has no stateless_apply under TensorFlow",
)
def test_stateless_apply():
    steps = gradients(8)
    found, _ = stateless_steps(RAdam(1e-2, weight_decay=0.1), steps)
    check_equal(found, torch_steps(steps, lr=1e-2, weight_decay=0.1))


def looked_up():
    """A model whose batches look up the same row more than once."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((3,), dtype="int32")
    hidden = keras.layers.Embedding(5, 2, name="rows")(inputs)
    return keras.Model(inputs, keras.layers.Dense(1)(keras.layers.Flatten()(hidden)))


ROWS = np.random.default_rng(2).integers(0, 4, (32, 3)).astype("int32")
TARGETS = np.random.default_rng(3).standard_normal((32, 1)).astype("float32")


def torch_training(model, batches, lr=1e-2):
    """Trains a copy of `looked_up`'s weights with torch."""
    rows, kernel, bias = (
        torch.tensor(np.array(w)).requires_grad_() for w in model.get_weights()
    )
    optimizer = torch.optim.RAdam([rows, kernel, bias], lr=lr)
    for i in range(batches):
        part = slice(8 * (i % 4), 8 * (i % 4) + 8)
        hidden = rows[torch.tensor(ROWS[part]).long()].reshape(8, 6)
        loss = torch.mean((hidden @ kernel + bias - torch.tensor(TARGETS[part])) ** 2)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return [w.detach().numpy() for w in (rows, kernel, bias)]


@pytest.mark.parametrize("jit_compile", [False, True])
def test_fit(jit_compile, backend):
    if jit_compile and backend == "torch":
        pytest.skip("Keras under torch compiles by another compiler, in minutes")
    model = looked_up()
    expected = torch_training(model, 12)
    model.compile(RAdam(1e-2), loss="mse", jit_compile=jit_compile)
    model.fit(ROWS, TARGETS, batch_size=8, epochs=3, shuffle=False, verbose=0)
    check_equal([model.get_weights()], [expected])


def test_a_saved_model_trains_on_as_if_it_had_not_stopped(tmp_path):
    schedule = keras.optimizers.schedules.ExponentialDecay(0.01, 5, 0.9)
    model = looked_up()
    options = {"use_ema": True, "ema_momentum": 0.5, "weight_decay": 0.01}
    model.compile(RAdam(schedule, **options), loss="mse")

    def train(model):
        for part in (slice(0, 8), slice(8, 16), slice(16, 24), slice(24, 32)):
            model.train_on_batch(ROWS[part], TARGETS[part])

    train(model)
    train(model)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert isinstance(loaded.optimizer, RAdam)
    for one in (model, loaded):
        train(one)
    found, expected = (
        [
            ops.convert_to_numpy(v.value)
            for v in (*one.variables, *one.optimizer.variables)
        ]
        for one in (loaded, model)
    )
    assert len(expected) == 3 + 1 + 3 * 3  # iteration; average, momentum, velocity
    check_equal([found], [expected], atol=0)


@pytest.fixture
def mixed_float16():
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_float16")
    yield
    keras.config.set_dtype_policy(before)


def test_mixed_float16_training(mixed_float16):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    model.compile(RAdam(1e-2), loss="mse")
    assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    x = ROWS.astype("float32")
    before = model.get_weights()
    losses = [model.train_on_batch(x, x[:, :1] + 1) for _ in range(40)]
    assert losses[-1] < losses[0]
    steps = int(ops.convert_to_numpy(model.optimizer.iterations))
    assert 30 < steps <= 40
    for b, a in zip(before, model.get_weights(), strict=True):
        assert np.all(np.isfinite(a)) and np.all(a != b)


@pytest.mark.slow("trains or builds for seconds")
def test_trains_imm_and_loads_with_it(tmp_path, images, labels):
    def step(model):
        return model.train_on_batch(images, labels)

    model = keras_imm.IMM(small_dit(), seed=0)
    model.compile(RAdam(1e-2, use_ema=True, ema_momentum=0.9))
    before = [np.array(w) for w in model.get_weights()]
    history = model.fit(images, labels, batch_size=16, epochs=4, verbose=0)
    assert np.all(np.isfinite(history.history["loss"]))
    assert int(ops.convert_to_numpy(model.optimizer.iterations)) == 8
    moved = [np.any(a != b) for a, b in zip(model.get_weights(), before, strict=True)]
    assert sum(moved) > len(moved) // 2
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    for one in (model, loaded):
        step(one)
    found, expected = (numpy(one.optimizer.variables) for one in (loaded, model))
    check_equal([found], [expected], atol=0)


def test_config():
    options = {
        "learning_rate": 0.01,
        "beta_1": 0.8,
        "beta_2": 0.95,
        "epsilon": 1e-5,
        "weight_decay": 0.1,
        "clipnorm": 1.5,
        "clipvalue": None,
        "global_clipnorm": None,
        "use_ema": True,
        "ema_momentum": 0.75,
        "ema_overwrite_frequency": 5,
        "loss_scale_factor": 2.0,
        "gradient_accumulation_steps": 4,
        "name": "rectified",
    }
    optimizer = RAdam(**options)
    config = optimizer.get_config()
    assert config == options | {"learning_rate": pytest.approx(0.01)}
    again = RAdam.from_config(config)
    assert again.get_config() == optimizer.get_config()


def test_serialization_with_a_schedule():
    schedule = keras.optimizers.schedules.CosineDecay(0.01, 10)
    optimizer = RAdam(schedule, epsilon=1e-6)
    serialized = keras.optimizers.serialize(optimizer)
    assert serialized["registered_name"] == "keras_imm>RAdam"
    again = keras.optimizers.deserialize(serialized)
    assert type(again) is RAdam
    assert again.get_config() == optimizer.get_config()
    assert RAdam(lambda: 0.5).learning_rate == 0.5


def test_a_learning_rate_of_zero_and_whole_numbers():
    """A schedule may have ended at 0 when a model is saved."""
    for rate in (0.0, 1, np.float32(0.5)):
        optimizer = RAdam(rate)
        assert RAdam.from_config(optimizer.get_config()).learning_rate == rate


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("learning_rate", -1e-3, "at least 0, a schedule or a callable"),
        ("learning_rate", float("nan"), "at least 0, a schedule or a callable"),
        ("learning_rate", "fast", "at least 0, a schedule or a callable"),
        ("beta_1", 1.0, r"a number in \[0, 1\)"),
        ("beta_1", -0.1, r"a number in \[0, 1\)"),
        ("beta_2", 1, r"a number in \[0, 1\)"),
        ("beta_2", None, r"a number in \[0, 1\)"),
        ("epsilon", 0.0, "a finite number above 0"),
        ("epsilon", -1e-8, "a finite number above 0"),
    ],
)
def test_wrong_arguments(name, value, allowed):
    with pytest.raises(ValueError, match=f"`{name}` must be .*{allowed}.*{value}"):
        RAdam(**{name: value})


def test_unknown_arguments():
    with pytest.raises(ValueError, match="momentum"):
        RAdam(momentum=0.9)
