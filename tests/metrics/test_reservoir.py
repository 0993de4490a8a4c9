"""Which rows are kept: all, or a fair sample that no split of the work changes."""

import numpy as np
import pytest

from keras_imm.metrics import FeatureReservoir

pytestmark = pytest.mark.one_backend("NumPy code")


def rows(numbers):
    return np.asarray(numbers, "float32")[:, None] * [1, 10]


def test_all_rows_come_back_in_order_while_they_fit():
    reservoir = FeatureReservoir(max_samples=10)
    reservoir.update(rows([0, 1, 2]))
    reservoir.update(rows([3, 4]))
    np.testing.assert_array_equal(reservoir.features(), rows(range(5)))


def test_the_kept_rows_do_not_depend_on_batches_order_or_processes():
    whole = FeatureReservoir(max_samples=20)
    whole.update(rows(range(200)))
    first, second = FeatureReservoir(20), FeatureReservoir(20)
    shuffled = np.random.default_rng(0).permutation(200)
    for batch in np.split(shuffled[:90], 9):
        first.update(rows(batch), batch)
    second.update(rows(shuffled[90:]), shuffled[90:])
    second.merge(first)
    np.testing.assert_array_equal(second.features(), whole.features())
    assert second.count == 200 and len(second.features()) == 20


def test_every_row_is_as_likely_to_be_kept():
    kept = np.zeros(40)
    for seed in range(2000):
        reservoir = FeatureReservoir(10, seed)
        for start in range(0, 40, 8):
            reservoir.update(rows(range(start, start + 8)))
        kept[reservoir.features()[:, 0].astype(int)] += 1
    # Binomial(2000, 1/4): five standard deviations are 97.
    assert np.abs(kept - 500).max() < 97


def test_memory_is_bounded():
    reservoir = FeatureReservoir(max_samples=5)
    for start in range(0, 100, 4):
        reservoir.update(rows(range(start, start + 4)))
        assert sum(len(part[1]) for part in reservoir._parts) < 10 + 4


def test_a_state_goes_on_elsewhere(tmp_path):
    first, whole = FeatureReservoir(20), FeatureReservoir(20)
    first.update(rows(range(30)))
    np.savez(tmp_path / "state.npz", **first.state())
    second = FeatureReservoir(20)
    second.set_state(np.load(tmp_path / "state.npz"))
    second.update(rows(range(30, 60)))
    whole.update(rows(range(60)))
    np.testing.assert_array_equal(second.features(), whole.features())


def test_rows_are_copied():
    batch = rows(range(3))
    reservoir = FeatureReservoir()
    reservoir.update(batch)
    batch[:] = 7
    np.testing.assert_array_equal(reservoir.features(), rows(range(3)))


def test_wrong_input_is_named():
    reservoir = FeatureReservoir(5)
    reservoir.update(rows([1]))
    with pytest.raises(ValueError, match=r"2 columns, as those before had.*3"):
        reservoir.update(np.zeros((2, 3)))
    with pytest.raises(ValueError, match=r"`indices`.*2 integers.*shape \(1,\)"):
        reservoir.update(np.zeros((2, 2)), [0])
    with pytest.raises(ValueError, match=r"max_samples=5.*max_samples=6"):
        reservoir.merge(FeatureReservoir(6))
    with pytest.raises(ValueError, match=r"`max_samples`.*at least 2.*1"):
        FeatureReservoir(1)
