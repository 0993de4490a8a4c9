"""Batches that a killed run takes up where it was."""

import sys

import numpy as np
import pytest
from scripts import ROOT

sys.path.insert(0, str(ROOT / "examples"))

from array_batches import Batches, ResumableBatches

pytestmark = pytest.mark.one_backend("NumPy code")

ROWS = np.arange(12)


def test_only_epochs_that_have_begun_count():
    """Keras calls `on_epoch_end` once before the first."""
    batches = ResumableBatches((ROWS,), 4, steps_per_epoch=2, seed=1)
    plain = Batches((ROWS,), 4, steps_per_epoch=6, seed=1)
    batches.on_epoch_end()
    seen = []
    for _ in range(3):
        batches.on_epoch_begin()
        seen += [batches[0][0], batches[1][0]]
        batches.end_epoch()
        batches.on_epoch_end()
    np.testing.assert_array_equal(seen, [plain[i][0] for i in range(6)])


def test_another_object_goes_on_from_the_state():
    first, second = (ResumableBatches((ROWS,), 4, 2, seed=1) for _ in range(2))
    first.on_epoch_begin()
    first.on_epoch_end()
    second.set_state(first.get_state())
    np.testing.assert_array_equal(second[1][0], first[1][0])
    assert second.fingerprint == first.fingerprint
    for other in (
        ResumableBatches((ROWS + 1,), 4, 2, seed=1),
        ResumableBatches((ROWS,), 4, 2, seed=2),
        ResumableBatches((ROWS,), 3, 2, seed=1),
    ):
        assert other.fingerprint != first.fingerprint
