"""What every metric of samples must do."""

from collections.abc import Callable

import numpy as np
import pytest

NUM_FEATURES = 4


class MetricContract:
    """`make()` returns a metric with `update`, `merge`, `state`, `set_state`, `result`.

    Attributes:
        takes_indices: Whether `update` takes the numbers of the samples.
        rtol: Of a result whose sums are in another order.
    """

    make: Callable
    takes_indices = True
    rtol = 1e-6

    def draw(self, count, seed=0):
        """Positional arguments of `update`: arrays of `count` rows."""
        rng = np.random.default_rng(seed)
        return (rng.standard_normal((count, NUM_FEATURES)).astype("float32"),)

    @pytest.fixture
    def new(self):
        return type(self).make

    def given(self, metric, rows, arrays):
        arguments = [array[rows] for array in arrays]
        kwargs = {"indices": np.asarray(rows)} if self.takes_indices else {}
        metric.update(*arguments, **kwargs)
        return metric

    def check(self, found, expected):
        found, expected = numbers(found), numbers(expected)
        assert len(found) == len(expected)
        assert np.all(np.isfinite(expected))
        np.testing.assert_allclose(found, expected, rtol=self.rtol, atol=1e-9)

    def test_the_result_is_numbers(self, new):
        metric = new()
        metric.update(*self.draw(40))
        assert all(isinstance(number, float) for number in numbers(metric.result()))
        self.check(metric.result(), metric.result())

    def test_other_samples_give_another_result(self, new):
        first, second = new(), new()
        first.update(*self.draw(40))
        second.update(*(2 * array + 1 for array in self.draw(40, seed=1)))
        assert numbers(first.result()) != numbers(second.result())

    def test_batches_change_nothing(self, new):
        arrays = self.draw(40)
        whole, parts = new(), new()
        whole.update(*arrays)
        for rows in np.split(np.arange(40), [7, 8, 30]):
            parts.update(*(array[rows] for array in arrays))
        self.check(parts.result(), whole.result())

    def test_processes_and_order_change_nothing(self, new):
        arrays = self.draw(40)
        whole, first, second = new(), new(), new()
        whole.update(*arrays)
        order = np.random.default_rng(2).permutation(40)
        for rows in np.split(order[:25], 5):
            self.given(first, rows, arrays)
        self.given(second, order[25:], arrays)
        second.merge(first)
        self.check(second.result(), whole.result())

    def test_a_state_in_a_file_goes_on(self, new, tmp_path):
        arrays = self.draw(40)
        whole, first, second = new(), new(), new()
        whole.update(*arrays)
        self.given(first, range(25), arrays)
        np.savez(tmp_path / "state.npz", **first.state())
        second.set_state(dict(np.load(tmp_path / "state.npz")))
        self.given(second, range(25, 40), arrays)
        self.check(second.result(), whole.result())

    def test_what_it_is_given_is_not_its_own(self, new):
        arrays = self.draw(40)
        kept = [array.copy() for array in arrays]
        metric = new()
        metric.update(*arrays)
        for array, before in zip(arrays, kept, strict=True):
            np.testing.assert_array_equal(array, before)
        expected = numbers(metric.result())
        for array in arrays:
            array[:] = 7.0
        assert numbers(metric.result()) == expected

    def test_too_few_samples_are_an_error(self, new):
        with pytest.raises(ValueError, match="Received"):
            new().result()

    def test_what_is_not_finite_is_an_error(self, new):
        arrays = self.draw(4)
        arrays[0][1, 2] = np.nan
        with pytest.raises(ValueError, match="finite"):
            new().update(*arrays)

    def test_other_features_are_an_error(self, new):
        metric = new()
        metric.update(*self.draw(4))
        wrong = [np.ones((4, NUM_FEATURES + 1), "float32"), *self.draw(4)[1:]]
        with pytest.raises(ValueError, match=f"{NUM_FEATURES} columns"):
            metric.update(*wrong)


def numbers(result):
    """A result's numbers: it is one, a tuple of them, or a dict."""
    if isinstance(result, dict):
        return [result[name] for name in sorted(result)]
    return list(result) if isinstance(result, tuple) else [result]
