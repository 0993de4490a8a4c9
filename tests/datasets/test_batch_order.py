"""The order of the stream."""

import numpy as np
import pytest

from keras_imm.datasets.batch_order import BatchOrder

pytestmark = pytest.mark.one_backend("NumPy code")


def passes(order, first, count):
    batches = range(
        first * order.batches_per_pass, (first + count) * order.batches_per_pass
    )
    return [order.indices(batch) for batch in batches]


@pytest.mark.parametrize("shuffle", [True, False])
def test_a_pass_holds_no_record_twice_and_full_batches_alone(shuffle):
    order = BatchOrder(23, 5, seed=1, shuffle=shuffle)
    for number in range(3):
        batches = passes(order, number, 1)
        assert [len(batch) for batch in batches] == [5] * 4
        records = np.concatenate(batches)
        assert len(set(records)) == 20
        assert set(records) <= set(range(23))
        if not shuffle:
            assert records.tolist() == list(range(20))


def test_seeds_and_passes_have_orders_of_their_own():
    orders = {
        tuple(np.concatenate(passes(BatchOrder(40, 8, seed, True), number, 1)))
        for seed in range(4)
        for number in range(4)
    }
    assert len(orders) == 16


def test_records_come_from_everywhere():
    """Each record is equally often at each place, over many passes."""
    order = BatchOrder(6, 6, seed=3, shuffle=True)
    counts = np.zeros((6, 6))
    for batch in range(3000):
        counts[np.arange(6), order.indices(batch)] += 1
    chi_squared = ((counts - 500) ** 2 / 500).sum()
    assert 8 < chi_squared < 52  # 25 degrees of freedom, one in 1,000 on either side


def test_random_numbers_belong_to_one_place():
    order = BatchOrder(10, 5, seed=0, shuffle=True)
    draws = {
        order.generator(batch, row).random() for batch in range(4) for row in range(5)
    }
    assert len(draws) == 20
    assert order.generator(3, 2).random() == order.generator(3, 2).random()
    other = BatchOrder(10, 5, seed=1, shuffle=True)
    assert order.generator(0, 0).random() != other.generator(0, 0).random()
