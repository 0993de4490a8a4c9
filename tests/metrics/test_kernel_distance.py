"""The kernel distance against golden numbers and a sum over all pairs."""

import numpy as np
import pytest

from keras_imm.metrics import KernelDistance, kernel_distance

pytestmark = pytest.mark.one_backend("NumPy code")


def test_equals_the_golden_numbers(golden):
    found = kernel_distance(golden["f1"], golden["f2"], 50, 200)
    np.testing.assert_allclose(found, golden["kid"], rtol=1e-5)


def test_whole_sets_give_the_unbiased_estimate():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(6, 3)), rng.normal(1, 1, size=(6, 3))

    def kernel(a, b):
        return (a @ b / 3 + 1) ** 3

    pairs = [(i, j) for i in range(6) for j in range(6)]
    within = sum(kernel(z[i], z[j]) for z in (x, y) for i, j in pairs if i != j) / 30
    between = sum(kernel(x[i], y[j]) for i, j in pairs) / 36
    found = kernel_distance(x, y, num_subsets=2, subset_size=6)
    assert found.mean == pytest.approx(within - 2 * between, rel=1e-12)
    assert found.std == pytest.approx(0, abs=1e-12)


def test_batches_give_the_same(golden):
    metric = KernelDistance(golden["f2"], 50, 200)
    for batch in np.split(golden["f1"], [7, 300]):
        metric.update(batch)
    np.testing.assert_allclose(metric.result(), golden["kid"], rtol=1e-5)


@pytest.mark.parametrize(
    ("features", "reference", "size", "message"),
    [
        (np.zeros((4, 2)), np.zeros((4, 3)), 2, "`features`.*3 columns.*Received 2"),
        (np.zeros((4, 2)), np.zeros((3, 2)), 4, "`subset_size`.*at most 3.*4"),
        (np.zeros((4, 2)), np.zeros((3, 2)), 1, "`subset_size`.*at least 2"),
        (np.zeros((1, 2)), np.zeros((3, 2)), 2, "`features`.*two rows.*1"),
        (np.zeros((4, 2)), np.full((4, 2), np.nan), 2, "`reference`.*finite"),
    ],
)
def test_wrong_input_is_named(features, reference, size, message):
    with pytest.raises(ValueError, match=message):
        kernel_distance(features, reference, subset_size=size)
