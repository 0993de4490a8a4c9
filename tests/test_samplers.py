"""Time grids against closed forms and published ones; samplers step by step."""

import pathlib

import numpy as np
import pytest
import reference
from keras import ops

from keras_imm import samplers, schedules

GOLDEN = sorted((pathlib.Path(__file__).parent / "data/golden").glob("dit_*.npz"))
RANGES = {"flow_matching": (0.006, 0.994), "cosine": (0.0, 0.996)}
# eta near t = 1 in float32, which is all that JAX has.
ATOL = 2e-6


def grid(identifier, num_steps, schedule="flow_matching", time_range=None):
    time_range = time_range or RANGES[schedule]
    return samplers.time_grid(
        identifier, num_steps, schedules.get(schedule), *time_range
    )


# -- Grids


@pytest.mark.parametrize("num_steps", [1, 2, 5])
def test_uniform(num_steps):
    times = grid("uniform", num_steps)
    i = np.arange(num_steps, -1, -1)
    np.testing.assert_allclose(times, 0.006 + i / num_steps * 0.988, rtol=1e-12)


@pytest.mark.parametrize("num_steps", [1, 2, 5, 40])
@pytest.mark.parametrize("schedule", RANGES)
def test_edm(schedule, num_steps):
    """Eq. 118: eta_i = (eta_T^(1/7) + i/N (eta_eps^(1/7) - eta_T^(1/7)))^7."""
    min_time, max_time = RANGES[schedule]
    first = reference.eta(schedule, max_time) ** (1 / 7)
    last = reference.eta(schedule, min_time) ** (1 / 7)
    i = np.arange(num_steps + 1)
    eta = (first + i / num_steps * (last - first)) ** 7
    times = grid("edm", num_steps, schedule)
    expected = reference.inverse_eta(schedule, eta)
    np.testing.assert_allclose(times, expected, atol=ATOL)
    assert times[0] == max_time
    assert times[-1] == min_time
    assert np.all(np.diff(times) < 0)


@pytest.mark.parametrize("etas", [[1.4], [80.0, 1.4, 0.1], np.array([3, 1]), []])
@pytest.mark.parametrize("schedule", RANGES)
def test_explicit_etas(schedule, etas):
    min_time, max_time = RANGES[schedule]
    between = reference.inverse_eta(schedule, etas)
    expected = [max_time, *between, min_time]
    # A list has its own number of steps.
    np.testing.assert_allclose(grid(etas, 17, schedule), expected, rtol=1e-6)


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_published_grids(path):
    golden = np.load(path)
    schedule = "cosine" if "cosine" in path.stem else "flow_matching"
    time_range = tuple(golden["times_uniform_1"][::-1])
    grids = {f"uniform_{n}": ("uniform", n) for n in (1, 2, 4, 8)}
    grids |= {"edm_4": ("edm", 4), "eta_1.4": ([1.4], 2)}
    for name, (identifier, num_steps) in grids.items():
        actual = grid(identifier, num_steps, schedule, time_range)
        np.testing.assert_allclose(actual, golden[f"times_{name}"], atol=ATOL)
    actual = grid("uniform", 3, schedule, time_range)
    np.testing.assert_allclose(actual[:-1], golden["times_restart_uniform_3"])


def test_published_grids_are_there():
    assert len(GOLDEN) == 4


@pytest.mark.parametrize("identifier", ["karras", None, 1.4, [[1.4]], ["1.4"]])
def test_unknown_grids_list_the_known_ones(identifier):
    with pytest.raises(ValueError, match="`time_grid` must be one of") as error:
        grid(identifier, 2)
    message = str(error.value)
    assert "'uniform', 'edm' or a list" in message
    assert f"time_grid={identifier!r}" in message


@pytest.mark.parametrize(
    "etas", [[1.4, 2.0], [1.4, 1.4], [1000.0], [0.001], [-0.5], [float("nan")]]
)
def test_etas_must_fall_within_the_range(etas):
    with pytest.raises(ValueError, match="must hold falling values of eta") as error:
        grid(etas, 2)
    message = str(error.value)
    assert f"time_grid={etas}" in message
    assert "max_time=0.994, min_time=0.006" in message


@pytest.mark.parametrize("num_steps", [0, -1, 1.5, "2", None, True])
@pytest.mark.parametrize("identifier", ["uniform", "edm"])
def test_number_of_steps_is_checked(identifier, num_steps):
    with pytest.raises(ValueError, match="`num_steps` must be") as error:
        grid(identifier, num_steps)
    assert f"num_steps={num_steps!r}" in str(error.value)


def test_edm_needs_a_finite_eta():
    with pytest.raises(ValueError, match="needs `max_time` < 1") as error:
        grid("edm", 4, time_range=(0.0, 1.0))
    assert "max_time=1.0" in str(error.value)
    assert grid("uniform", 1, time_range=(0.0, 1.0)).tolist() == [1.0, 0.0]


# -- Samplers

TIMES = np.array([0.9, 0.6, 0.3, 0.1])


class Recorded:
    """The flow map x -> 2 x + t - s; remembers its times and what it was given."""

    def __init__(self):
        self.steps, self.inputs = [], []

    def __call__(self, x, t, s):
        self.steps.append((float(t), float(s)))
        self.inputs.append(ops.convert_to_numpy(x).copy())
        return 2.0 * x + (t - s)


def noise(seed=0):
    return np.random.default_rng(seed).standard_normal((5, 3)).astype("float32")


def test_pushforward():
    """Algorithm 4: each step starts where, and when, the last one ended."""
    flow_map, x = Recorded(), noise()
    samples = samplers.pushforward(flow_map, ops.convert_to_tensor(x), TIMES)
    assert flow_map.steps == [(0.9, 0.6), (0.6, 0.3), (0.3, 0.1)]
    for step, (t, s) in enumerate(flow_map.steps):
        np.testing.assert_array_equal(flow_map.inputs[step], x)
        x = 2 * x + np.float32(t - s)
    np.testing.assert_allclose(ops.convert_to_numpy(samples), x, rtol=1e-6)


@pytest.mark.parametrize("schedule", RANGES)
def test_restart(schedule):
    """Algorithm 5: every step goes to epsilon; all but the last are re-noised."""
    flow_map, x, asked = Recorded(), noise(), []

    def renoise(i):
        asked.append(i)
        return ops.convert_to_tensor(noise(10 + i))

    samples = samplers.restart(
        flow_map, ops.convert_to_tensor(x), TIMES, schedules.get(schedule), renoise
    )
    assert flow_map.steps == [(0.9, 0.1), (0.6, 0.1), (0.3, 0.1)]
    assert asked == [0, 1]
    for i, t in enumerate(TIMES[:-1]):
        np.testing.assert_allclose(flow_map.inputs[i], x, rtol=1e-5, atol=1e-6)
        x = 2 * x + (t - 0.1)
        if i < 2:
            next_time = TIMES[i + 1]
            a, b = (f(schedule, next_time) for f in (reference.alpha, reference.sigma))
            x = a * x + b * noise(10 + i)
    np.testing.assert_allclose(ops.convert_to_numpy(samples), x, rtol=1e-5, atol=1e-6)


def test_one_step_of_either_is_one_flow_map():
    x = ops.convert_to_tensor(noise())
    schedule = schedules.get("cosine")
    times = np.array([0.9, 0.1])
    for sample in (
        lambda f: samplers.pushforward(f, x, times),
        lambda f: samplers.restart(f, x, times, schedule, renoise=None),
    ):
        flow_map = Recorded()
        sample(flow_map)
        assert flow_map.steps == [(0.9, 0.1)]


@pytest.mark.parametrize("name", RANGES)
def test_gaussian_data(name):
    """With the exact flow map of Gaussian data both samplers give that data."""

    def std(t):
        return 0.5 * np.hypot(reference.alpha(name, t), reference.sigma(name, t))

    def flow_map(x, t, s):
        return x * float(std(s) / std(t))

    rng = np.random.default_rng(3)
    times = np.array([1.0, 0.7, 0.4, 0.0])

    def draw(_=None):
        return 0.5 * rng.standard_normal(40_000).astype("float32")

    x = ops.convert_to_tensor(draw())
    once = ops.convert_to_numpy(flow_map(x, 1.0, 0.0))
    pushed = samplers.pushforward(flow_map, x, times)
    np.testing.assert_allclose(ops.convert_to_numpy(pushed), once, rtol=1e-6)
    restarted = samplers.restart(
        flow_map, x, times, schedules.get(name), lambda i: ops.convert_to_tensor(draw())
    )
    assert abs(np.std(ops.convert_to_numpy(restarted)) - 0.5) < 0.01
