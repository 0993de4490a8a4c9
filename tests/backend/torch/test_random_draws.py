"""Draws that graphs hold: their distribution, and networks that train with them."""

import contextlib
import warnings

import keras
import numpy as np
import pytest
from keras import ops
from long_tests import long
from scipy import stats

import keras_imm
from keras_imm.backend import keras_private
from keras_imm.objectives import FlowMatching

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "torch",
    reason="the other backends' own draws are traced",
)
COUNT = 100_000


def draws():
    from keras_imm.backend.torch import random_draws

    return random_draws


def seed_tensor(*words):
    import torch

    return torch.tensor(words, dtype=torch.int32)


@pytest.fixture
def counting(monkeypatch):
    """Draws as on a GPU: no generator, which is an error."""

    def fail(seed):
        raise AssertionError("a generator is made")

    monkeypatch.setattr(draws(), "_has_generator", lambda seed: False)
    monkeypatch.setattr(draws(), "_generator", fail)


# -- Philox


@pytest.mark.parametrize(
    "counter, key, expected",
    [
        ((0, 0), 0, (0xFF1DAE59, 0x6CD10DF2)),
        ((0xFFFFFFFF, 0xFFFFFFFF), 0xFFFFFFFF, (0x2C3F628B, 0xAB4FD7AD)),
        ((0x243F6A88, 0x85A308D3), 0x13198A2E, (0xDD7CE038, 0xF62A4C12)),
    ],
)
def test_philox_gives_the_known_answers(counter, key, expected):
    """Of philox2x32-10 in kat_vectors of Random123, by the authors of the paper."""
    import torch

    found = draws().philox(tuple(map(torch.tensor, counter)), torch.tensor(key))
    assert tuple(map(int, found)) == expected


def test_places_are_words_and_no_index_in_compiled_code(counting):
    """Triton refuses to multiply an index, of 32 bits, with Philox's constant."""
    import torch
    from torch._inductor.utils import run_and_get_code

    compiled = torch.compile(lambda seed: draws().uniform(seed, (5, 7), torch.float32))
    _, code = run_and_get_code(compiled, seed_tensor(3, 4))
    lines = [line for text in code for line in text.splitlines()]
    constant = [line for line in lines if str(0xD256D193) in line]
    assert constant
    assert not [line for line in constant if "*" in line or "arange" in line]


def test_each_seed_count_and_place_has_its_own_words(counting):
    import torch

    seeds = [(0, 0), (0, 1), (1, 0), (-1, 0), (2**31 - 1, 1)]
    numbers = [draws().uniform(seed_tensor(*s), (1000,), torch.float64) for s in seeds]
    everything = torch.cat(numbers)
    assert len(everything.unique()) == len(everything)
    correlations = np.corrcoef([ops.convert_to_numpy(n) for n in numbers]) - np.eye(
        len(seeds)
    )
    assert np.abs(correlations).max() < 5 / np.sqrt(1000)


@pytest.mark.parametrize("counted", [False, True])
def test_draws_have_their_distributions(counted, request):
    import torch

    if counted:
        request.getfixturevalue("counting")
    seed = seed_tensor(123, 4)
    for dtype in (torch.float32, torch.float64):
        numbers = draws().uniform(seed, (COUNT,), dtype)
        assert numbers.dtype == dtype
        assert numbers.min() >= 0
        assert numbers.max() < 1
        assert stats.kstest(ops.convert_to_numpy(numbers), "uniform").pvalue > 1e-3
        numbers = draws().normal(seed, (COUNT,), 2.0, 0.5, dtype)
        assert numbers.dtype == dtype
        numbers = ops.convert_to_numpy(numbers)
        assert stats.kstest(numbers, "norm", (2.0, 0.5)).pvalue > 1e-3
    for keep in (0.1, 0.5, 0.8, 0.999):
        kept = draws().bernoulli(seed, (10, COUNT // 10), keep)
        assert kept.shape == (10, COUNT // 10)
        assert kept.dtype == torch.bool
        assert stats.binomtest(int(kept.sum()), COUNT, keep).pvalue > 1e-3
        runs = int((kept[:, 1:] & kept[:, :-1]).sum())  # neighbours do not depend
        assert stats.binomtest(runs, COUNT - 10, keep**2).pvalue > 1e-6


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_uniform_numbers_of_half_precision_are_below_one(counting, dtype):
    import torch

    dtype = getattr(torch, dtype)
    numbers = draws().uniform(seed_tensor(1, 2), (COUNT,), dtype)
    assert numbers.dtype == dtype
    assert 0 <= numbers.min() < 0.01
    assert 0.99 < numbers.max() < 1
    assert draws().normal(seed_tensor(1, 2), (3,), 0.0, 1.0, dtype).dtype == dtype


# -- Keras's functions


def test_a_cpu_draws_what_keras_draws():
    x = ops.ones((6, 5))
    calls = (
        lambda seed: keras.random.dropout(x, 0.3, seed=seed),
        lambda seed: keras.random.dropout(x, 0.3, noise_shape=(None, 1), seed=seed),
        lambda seed: keras.random.dropout(x, 0.0, seed=seed),
        lambda seed: keras.random.dropout(x, 1.0, seed=seed),
        lambda seed: keras.random.normal((4, 5), 1.0, 2.0, seed=seed),
        lambda seed: keras.random.truncated_normal((4, 5), seed=seed),
        lambda seed: keras.random.uniform((4, 5), -1.0, 2.0, "float64", seed=seed),
    )
    for call in calls:
        results = []
        for context in (contextlib.nullcontext, draws().traceable_draws):
            stream = keras.random.SeedGenerator(2**31 - 2)
            with context():
                results.append(
                    [call(stream), call(stream), call(7), stream.state.value]
                )
        for own, found in zip(*results, strict=True):
            assert own.dtype == found.dtype
            np.testing.assert_array_equal(*map(ops.convert_to_numpy, (own, found)))


def test_a_layer_without_a_seed_draws_from_its_own_stream():
    layer = keras.layers.Dropout(0.5)
    x = ops.ones((100,))

    def call():
        layer.seed_generator.state.assign([3, 0])
        return ops.convert_to_numpy(layer(x, training=True))

    with draws().traceable_draws():
        np.testing.assert_array_equal(call(), call())
        assert layer.seed_generator.state.value.tolist() == [3, 1]
    assert np.any(call() != call())  # Keras's own way, outside


# -- Networks that train


class Noisy(keras.layers.Layer):
    """A user's network, with Keras's layers that draw."""

    image_shape = (4, 4, 1)

    def __init__(self, *layers, size=8):
        super().__init__()
        self.first, self.last = keras.layers.Dense(size), keras.layers.Dense(1)
        self.noise = list(layers)

    def build(self, _):
        self.first.build((None, 4, 4, 1))
        self.last.build((None, 4, 4, self.first.units))

    def call(self, inputs, training=False):
        x = ops.tanh(self.first(inputs[0]))
        for layer in self.noise:
            x = layer(x, training=training)
        return self.last(x)


class Twice(FlowMatching):
    """The output as target and loss: equal where both passes have the same masks."""

    def target(self, network, particles):
        p = particles
        return network.output(p.x_t, p.t, p.t, p.labels)

    def loss(self, network, particles, target):
        output = self.target(network, particles)
        difference = ops.mean(ops.abs(output - target))
        return ops.mean(ops.square(output)), {
            "difference": difference,
            "zeros": ops.mean(ops.cast(output == 0, "float32")),
        }


def with_noise(*names):
    def make():
        keras.utils.set_random_seed(0)
        layers = {
            "Dropout": lambda: keras.layers.Dropout(0.4),
            "seeded": lambda: keras.layers.Dropout(0.4, seed=3),
            "SpatialDropout2D": lambda: keras.layers.SpatialDropout2D(0.4),
            "GaussianNoise": lambda: keras.layers.GaussianNoise(0.4),
            "GaussianDropout": lambda: keras.layers.GaussianDropout(0.4),
            "AlphaDropout": lambda: keras.layers.AlphaDropout(0.4),
        }
        return Noisy(*(layers[name]() for name in names))

    return make


def dit(**options):
    def make():
        defaults = {"hidden_size": 16, "depth": 2, "num_heads": 2, "dropout": 0.2}
        return keras_imm.backbones.DiT((4, 4, 1), 2, **defaults | options)

    return make


def unet():
    options = {"model_channels": 8, "channel_mult": (1,), "num_blocks": 1}
    return keras_imm.backbones.UNet(
        (4, 4, 1), **options, attention_resolutions=(), dropout=0.2
    )


def model_of(backbone, objective=None, run_eagerly=False, seed=1, **options):
    network = backbone()
    model = keras_imm.FlowMapModel(
        network, objective or "moment_matching", seed=seed, **options
    )
    model.build((None, 4, 4, 1))
    rng = np.random.default_rng(7)
    for v in model.trainable_variables:
        v.assign(0.3 * rng.standard_normal(v.shape).astype("float32"))
    optimizer = keras.optimizers.SGD(0.02, use_ema=True, ema_momentum=0.9)
    model.compile(optimizer, run_eagerly=run_eagerly)
    return model


def fit(model, images, epochs=2):
    options = {"batch_size": 8, "epochs": epochs, "verbose": 0, "shuffle": False}
    return model.fit(images, **options).history


def state_of(model):
    variables = (*model.variables, *model.optimizer.variables)
    return [ops.convert_to_numpy(v).copy() for v in variables]


def fit_traced(model, images, **options):
    """Trains, and fails where layers are called more often than traces are made."""
    calls, call = [], model.backbone.call

    def counted(*args, **kwargs):
        calls.append(0)
        return call(*args, **kwargs)

    model.backbone.call = counted
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*PyTorch")
        history = fit(model, images, **options)
    model.backbone.call = call
    assert len(calls) <= 2  # the target and the loss
    return history


ALIKE = {
    "dit": (dit(), {}),
    "accumulated": (dit(), {"accumulation_steps": 2}),
    "remat": (dit(remat=True), {}),
    "unet": (unet, {}),
    "layers": (with_noise("Dropout", "SpatialDropout2D", "seeded"), {}),
    "noise": (with_noise("GaussianNoise", "GaussianDropout", "AlphaDropout"), {}),
}


@pytest.mark.slow("trains or builds for seconds")
@pytest.mark.parametrize("case", ALIKE)
@pytest.mark.parametrize("counted", [False, True])
def test_traced_and_called_layer_by_layer_networks_train_alike(
    case, counted, images, request
):
    if counted:
        request.getfixturevalue("counting")
    backbone, options = ALIKE[case]
    traced, eager = (
        model_of(backbone, run_eagerly=eager, **options) for eager in (False, True)
    )
    before = state_of(traced)
    losses = fit_traced(traced, images)["loss"], fit(eager, images)["loss"]
    np.testing.assert_allclose(*losses, rtol=1e-6)
    after = state_of(traced)
    for a, b in zip(after, state_of(eager), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    moved = [np.abs(a - b).max() for a, b in zip(before, after, strict=True)]
    assert max(moved) > 1e-3


@pytest.mark.slow("trains or builds for seconds")
@pytest.mark.parametrize("run_eagerly", [False, True])
@pytest.mark.parametrize("backbone", [dit(), with_noise("Dropout", "GaussianNoise")])
def test_both_passes_of_a_step_draw_the_same(backbone, run_eagerly, images):
    model = model_of(backbone, Twice(), run_eagerly)
    history = fit(model, images)
    assert history["difference"] == [0.0, 0.0]
    assert history["loss"][0] > 1e-2


class OnlyDropout(keras.layers.Layer):
    """Zero where it drops, the weight elsewhere."""

    image_shape = (4, 4, 1)

    def __init__(self, seed):
        super().__init__()
        self.drop = keras.layers.Dropout(0.3, seed=seed)

    def build(self, _):
        self.scale = self.add_weight(shape=(), initializer="ones")

    def call(self, inputs, training=False):
        return self.drop(self.scale + 0.0 * inputs[0], training=training)


def zeros_of_steps(seed, rows=256, steps=4):
    """Elements that each of a few steps dropped."""
    model = model_of(lambda: OnlyDropout(seed), Twice())
    images = np.ones((rows, 4, 4, 1), "float32")
    shares = [
        model.fit(images, batch_size=rows, verbose=0).history["zeros"][0]
        for _ in range(steps)
    ]
    return [round(share * images.size) for share in shares], images.size


def test_elements_are_dropped_at_the_rate():
    zeros, size = zeros_of_steps(seed=5)
    assert len(set(zeros)) > 1  # each step has its own mask
    assert stats.binomtest(sum(zeros), len(zeros) * size, 0.3).pvalue > 1e-3


def test_the_seed_decides_the_masks():
    first, again, other = (zeros_of_steps(seed)[0] for seed in (5, 5, 6))
    assert first == again
    assert first != other


@pytest.mark.slow("trains or builds for seconds")
def test_a_run_that_is_saved_continues_bit_for_bit(images, tmp_path):
    model = model_of(dit())
    fit_traced(model, images, epochs=1)
    model.save(tmp_path / "model.keras")
    streams = [v for v in model.variables if v.name.startswith("seed_generator_state")]
    assert all(int(v.value[1]) > 0 for v in streams)  # states have moved on
    fit_traced(model, images, epochs=1)
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    fit_traced(loaded, images, epochs=1)
    for a, b in zip(state_of(model), state_of(loaded), strict=True):
        np.testing.assert_array_equal(a, b)


class Untracked(OnlyDropout):
    """Draws from a stream that Keras cannot see, or from none of its own."""

    def __init__(self, stream):
        super().__init__(seed=0)
        self._hide = lambda: stream

    def call(self, inputs, training=False):
        x = self.scale + 0.0 * inputs[0]
        return keras.random.dropout(x, 0.3, seed=self._hide()) if training else x


@pytest.mark.parametrize("own", [False, True])
def test_streams_that_no_graph_can_move_run_layer_by_layer(own):
    stream = keras.random.SeedGenerator(1) if own else None
    model = model_of(lambda: Untracked(stream), Twice())
    images = np.ones((256, 4, 4, 1), "float32")
    options = {"batch_size": 64, "verbose": 0}
    with pytest.warns(UserWarning, match="attributes of its layers"):
        history = model.fit(images, epochs=3, **options).history
    assert len(set(history["zeros"])) == 3  # masks change


@pytest.mark.slow("trains or builds for seconds")
def test_what_both_passes_draw_is_drawn_once(images):
    """But for blocks that are computed again, whose masks would be kept until then."""
    import torch

    counts = {}
    for remat in (False, True):
        model = model_of(dit(remat=remat))
        fit(model, images, epochs=1)
        with torch.profiler.profile() as profile:
            fit(model, images[:8], epochs=1)
        counts[remat] = {e.key: e.count for e in profile.key_averages()}
    layers = 2 * 3  # of dropout
    assert counts[False]["aten::bernoulli"] == layers
    assert counts[True]["aten::bernoulli"] == 3 * layers


@pytest.mark.slow("compiles C++")
@pytest.mark.parametrize("counted", [*long("one is tested", False), True])
def test_compiled_networks_train_alike(counted, images, request):
    if counted:
        request.getfixturevalue("counting")
    compiled, eager = (model_of(dit(depth=1), run_eagerly=e) for e in (False, True))
    compiled.compile(compiled.optimizer, jit_compile=True)
    losses = fit_traced(compiled, images)["loss"], fit(eager, images)["loss"]
    np.testing.assert_allclose(*losses, rtol=1e-5)


def test_only_this_thread_draws_otherwise():
    import threading

    def work():
        results.append(keras.random.uniform((3,), seed=1))

    results = []
    with keras_private.replaced_draws({"uniform": lambda *a, **k: "replaced"}):
        assert keras.random.uniform((3,), seed=1) == "replaced"
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    results.append(keras.random.uniform((3,), seed=1))
    np.testing.assert_array_equal(*map(ops.convert_to_numpy, results))
