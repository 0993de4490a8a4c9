"""Averages of any length, against sums over all steps in float64."""

import tracemalloc

import keras
import numpy as np
import pytest
from keras import ops
from small_dit import small_dit

import keras_imm
from keras_imm import averages
from keras_imm.callbacks import PowerAverages, TrainingCheckpoint
from keras_imm.callbacks.steps import optimizer_step

pytestmark = pytest.mark.any_backend("files of averages, which are NumPy")

STEPS = 24


def width(gamma):
    """Standard deviation of tau^gamma on [0, 1], by quadrature."""
    tau = (np.arange(100_000) + 0.5) / 100_000
    density = tau**gamma / np.sum(tau**gamma)
    mean = np.sum(density * tau)
    return np.sqrt(np.sum(density * (tau - mean) ** 2))


@pytest.mark.one_backend("NumPy")
@pytest.mark.parametrize("length", [0.02, 0.05, 0.1, 0.25])
def test_the_exponent_gives_the_relative_width(length):
    assert width(averages.exponent(length)) == pytest.approx(length, rel=1e-3)


@pytest.mark.one_backend("NumPy")
def test_the_widest_average_is_the_mean():
    assert averages.exponent(1 / np.sqrt(12)) == pytest.approx(0, abs=1e-6)


@pytest.mark.one_backend("NumPy")
@pytest.mark.parametrize("length", [0.0, -0.1, 0.3, "0.1"])
def test_lengths_out_of_range_are_refused(length):
    with pytest.raises(ValueError, match=r"`length` must be a number in \(0, 0.288\]"):
        averages.exponent(length)


def by_definition(path, gamma):
    """sum tau^gamma theta_tau / sum tau^gamma, with the integral over each step."""
    edges = np.arange(len(path) + 1) / len(path)
    weights = np.diff(edges ** (gamma + 1))
    return np.tensordot(weights, path, axes=1)


@pytest.mark.one_backend("NumPy")
@pytest.mark.parametrize("length", [0.03, 0.08, 0.15])
def test_other_lengths_are_sums_of_snapshots(tmp_path, length):
    """Of a random walk, of which two averages were kept."""
    rng = np.random.default_rng(0)
    path = np.cumsum(rng.standard_normal((4000, 50)), axis=0)
    kept = (0.05, 0.1)
    for step in range(250, 4001, 250):
        values = [
            {"w": by_definition(path[:step], averages.exponent(each)).astype("float32")}
            for each in kept
        ]
        arrays = averages.pack(step, kept, values)
        np.savez(tmp_path / averages.FILE.format(step=step), **arrays)
    found = averages.reconstruct(tmp_path, length)["w"]
    exact = by_definition(path, averages.exponent(length))
    others = [by_definition(path, averages.exponent(each)) for each in kept]
    error = np.linalg.norm(found - exact)
    assert error < 0.05 * min(np.linalg.norm(other - exact) for other in others)
    # One that was kept is itself, at any snapshot.
    again = averages.reconstruct(tmp_path, 0.1, step=2000)["w"]
    exact = by_definition(path[:2000], averages.exponent(0.1))
    np.testing.assert_allclose(again, exact, rtol=1e-3, atol=1e-3)


def write_constants(folder, count, lengths=(0.05, 0.1), size=3):
    """Snapshots of a run in which nothing changed."""
    for step in range(1, count + 1):
        values = [{"w": np.full(size, 7.0, "float32")} for _ in lengths]
        arrays = averages.pack(100 * step, lengths, values)
        np.savez(folder / averages.FILE.format(step=100 * step), **arrays)


@pytest.mark.one_backend("NumPy")
@pytest.mark.parametrize("length", [0.01, 0.05, 0.08, 0.2, 0.28])
@pytest.mark.parametrize("count", [1, 2, 5, 12, 40])
@pytest.mark.filterwarnings("ignore:The snapshots in")
def test_what_does_not_change_is_its_average(tmp_path, count, length):
    write_constants(tmp_path, count)
    found = averages.reconstruct(tmp_path, length)["w"]
    np.testing.assert_allclose(found, 7.0, rtol=1e-6)


@pytest.mark.one_backend("NumPy")
def test_snapshots_are_read_one_by_one(tmp_path):
    """Twenty have 40 MB; the sum in float64 and a file have 6."""
    size = 250_000
    write_constants(tmp_path, 20, size=size)
    tracemalloc.start()
    try:
        found = averages.reconstruct(tmp_path, 0.08)["w"]
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert found.nbytes == 4 * size and peak < 14 * 4 * size


@pytest.mark.one_backend("NumPy")
def test_the_error_is_that_of_the_profile(tmp_path):
    profiles = [(step, averages.exponent(e)) for step in (2, 4) for e in (0.05, 0.1)]
    gamma = averages.exponent(0.2)
    weights, error = averages.mixture(profiles, (4, gamma))
    tau = (np.arange(400_000) + 0.5) / 100_000
    densities = [
        np.where(tau < end, (g + 1) / end * (tau / end) ** g, 0.0)
        for end, g in [*profiles, (4, gamma)]
    ]
    missing = np.tensordot(weights, densities[:-1], axes=1) - densities[-1]
    exact = np.linalg.norm(missing) / np.linalg.norm(densities[-1])
    assert error == pytest.approx(exact, rel=1e-3)
    # Weights of the same sum next to these do worse.
    rng = np.random.default_rng(0)
    for _ in range(20):
        step = rng.standard_normal(4) * 1e-3
        other = np.tensordot(weights + step - step.mean(), densities[:-1], axes=1)
        assert np.linalg.norm(other - densities[-1]) > np.linalg.norm(missing)


@pytest.mark.one_backend("NumPy")
def test_an_average_that_the_snapshots_do_not_have_is_a_warning(tmp_path, recwarn):
    write_constants(tmp_path, 12)
    for length in (0.03, 0.05, 0.15, 0.2):
        averages.reconstruct(tmp_path, length)
    assert not recwarn
    with pytest.warns(UserWarning, match="of length 0.01 with an error of 44% of its"):
        averages.reconstruct(tmp_path, 0.01)


def make_model():
    keras.utils.set_random_seed(0)
    model = keras_imm.FlowMapModel(small_dit(num_classes=3), "flow_matching", seed=1)
    model.compile(keras.optimizers.Adam(1e-2, use_ema=True))
    return model


def data():
    rng = np.random.default_rng(0)
    x = 0.5 * rng.standard_normal((8 * STEPS // 3, 4, 4, 1)).astype("float32")
    return x, (np.arange(len(x)) % 3).astype("int32")


class Weights(keras.callbacks.Callback):
    """The weights after every step."""

    def __init__(self):
        super().__init__()
        self.path = {}

    def _keep(self):
        step = optimizer_step(self.model)
        self.path[step] = {
            name: ops.convert_to_numpy(value).astype("float64")
            for name, value in self.model.named_weights().items()
        }

    def on_train_batch_begin(self, batch, logs=None):
        self._keep()

    def on_epoch_end(self, epoch, logs=None):
        self._keep()


def fit(model, callbacks, epochs=3):
    model.fit(*data(), 8, epochs, verbose=0, callbacks=callbacks, shuffle=False)


@pytest.mark.every_backend
def test_the_callback_averages_every_step(tmp_path):
    weights = Weights()
    callback = PowerAverages(tmp_path, (0.1, 0.2), every_n_steps=1)
    fit(make_model(), [weights, callback])
    assert list(averages.snapshots(tmp_path)) == [8, 16, 24]
    _, _, found = averages.unpack(averages.snapshots(tmp_path)[STEPS])
    for length, values in zip((0.1, 0.2), found, strict=True):
        gamma = averages.exponent(length)
        for name, value in values.items():
            path = np.array([weights.path[step][name] for step in range(1, STEPS + 1)])
            expected = by_definition(path, gamma)
            np.testing.assert_allclose(value, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("freq", "steps"), [(2, [16, 24]), (3, [24]), (10, [24])])
def test_the_end_of_training_has_a_snapshot(tmp_path, freq, steps):
    fit(make_model(), [PowerAverages(tmp_path, freq=freq)])
    assert list(averages.snapshots(tmp_path)) == steps
    # A model that goes on does so from it.
    again = make_model()
    fit(again, [], epochs=3)
    fit(again, [PowerAverages(tmp_path, freq=freq)], epochs=1)
    assert list(averages.snapshots(tmp_path)) == [*steps, 32]


def test_samples_of_reconstructed_weights(tmp_path):
    model = make_model()
    fit(model, [PowerAverages(tmp_path, every_n_steps=2)])
    samples = {
        length: model.generate([0, 1, 2], num_steps=2, seed=0, weights=weights)
        for length in (0.05, 0.1)
        for weights in [averages.reconstruct(tmp_path, length)]
    }
    assert np.abs(samples[0.05] - samples[0.1]).max() > 1e-5
    # A model that has these weights for its own samples the same.
    other = make_model()
    for name, value in averages.reconstruct(tmp_path, 0.1).items():
        (weight,) = (w for w in other.backbone.weights if w.path.endswith(f"/{name}"))
        weight.assign(value)
    raw = other.generate([0, 1, 2], num_steps=2, seed=0, weights="raw")
    np.testing.assert_allclose(samples[0.1], raw, atol=1e-5)
    x = np.ones((2, 4, 4, 1), "float32")
    given = averages.reconstruct(tmp_path, 0.1)
    np.testing.assert_allclose(
        ops.convert_to_numpy(model.flow_map(x, 0.9, 0.2, [0, 1], weights=given)),
        ops.convert_to_numpy(other.flow_map(x, 0.9, 0.2, [0, 1], weights="raw")),
        atol=1e-5,
    )


def test_a_run_that_continues_has_the_same_averages(tmp_path):
    def run(folder, epochs):
        model = make_model()
        callbacks = [
            PowerAverages(folder / "averages", every_n_steps=3),
            TrainingCheckpoint(folder / "checkpoints"),
        ]
        fit(model, callbacks, epochs)

    run(tmp_path / "cut", 2)
    # One that was written before the process was killed, without its checkpoint.
    folder = tmp_path / "cut" / "averages"
    last = averages.snapshots(folder)[2 * STEPS // 3]
    (folder / averages.FILE.format(step=100)).write_bytes(last.read_bytes())
    run(tmp_path / "cut", 3)
    assert list(averages.snapshots(folder)) == [8, 16, 24]
    run(tmp_path / "whole", 3)
    cut, whole = (
        averages.unpack(averages.snapshots(tmp_path / each / "averages")[STEPS])[2]
        for each in ("cut", "whole")
    )
    for one, other in zip(cut, whole, strict=True):
        for name in one:
            np.testing.assert_allclose(one[name], other[name], rtol=1e-6, atol=1e-7)


def test_what_does_not_fit_is_refused(tmp_path):
    with pytest.raises(ValueError, match="There are no snapshots of averages in"):
        averages.reconstruct(tmp_path / "nowhere", 0.1)
    with pytest.raises(ValueError, match="two numbers or more that differ"):
        PowerAverages(tmp_path, (0.1, 0.1))
    model = make_model()
    fit(model, [PowerAverages(tmp_path)])
    with pytest.raises(ValueError, match=r"`step` must be one of .*8, 16, 24.*step=5"):
        averages.reconstruct(tmp_path, 0.1, step=5)
    other = make_model()
    with pytest.raises(ValueError, match="are of other steps than 0"):
        fit(other, [PowerAverages(tmp_path)])
    weights = averages.reconstruct(tmp_path, 0.1)
    name = next(iter(weights))
    with pytest.raises(ValueError, match=r"must have the names and shapes"):
        model.generate([0], weights={**weights, "unknown": np.zeros(1)})
    with pytest.raises(ValueError, match=name):
        model.generate([0], weights={k: v for k, v in weights.items() if k != name})
    (tmp_path / averages.FILE.format(step=99)).write_bytes(b"nothing")
    with pytest.raises(ValueError, match="is no snapshot of averages"):
        averages.reconstruct(tmp_path, 0.1)
