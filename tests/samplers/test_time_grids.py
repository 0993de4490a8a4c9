"""Time grids against closed forms and published ones."""

import pathlib

import numpy as np
import pytest
import reference

from keras_imm import samplers, schedules

GOLDEN = sorted((pathlib.Path(__file__).parents[1] / "data/golden").glob("dit_*.npz"))
RANGES = {"flow_matching": (0.006, 0.994), "cosine": (0.0, 0.996)}
# eta near t = 1 in float32, which is all that JAX has.
ATOL = 2e-6


def grid(identifier, num_steps, schedule="flow_matching", time_range=None):
    time_range = time_range or RANGES[schedule]
    return samplers.time_grid(
        identifier, num_steps, schedules.get(schedule), *time_range
    )


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


def test_a_grid_that_is_changed_is_the_callers_own():
    grid("uniform", 3)[:] = 7.0
    low, high = RANGES["flow_matching"]
    np.testing.assert_array_equal(grid("uniform", 3), np.linspace(high, low, 4))
