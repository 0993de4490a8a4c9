"""The Inception Score against golden numbers and closed forms."""

import numpy as np
import pytest

from keras_imm.metrics import InceptionScore, inception_score

pytestmark = pytest.mark.one_backend("NumPy code")


def test_equals_the_golden_numbers(golden):
    found = inception_score(golden["logits"])
    np.testing.assert_allclose(found, golden["isc"], rtol=1e-5)


def test_sure_predictions_count_the_classes():
    logits = 1000 * np.eye(7)[np.arange(70) % 7]
    np.testing.assert_allclose(inception_score(logits), (7, 0), atol=1e-9)


def test_what_a_sample_says_nothing_of_scores_one():
    assert inception_score(np.zeros((20, 5))).mean == pytest.approx(1.0)


def test_two_halves_in_any_order_give_the_same_as_one_pass(golden):
    """Parts are of samples in the order of their numbers."""
    first, second = InceptionScore(), InceptionScore()
    first.update(golden["logits"][1::2], np.arange(1, 600, 2))
    second.update(golden["logits"][::2], np.arange(0, 600, 2))
    first.merge(second)
    np.testing.assert_allclose(first.result(), golden["isc"], rtol=1e-5)


@pytest.mark.parametrize(
    ("logits", "message"),
    [
        (np.zeros((9, 2)), "`logits`.*at least 10 rows.*9"),
        (np.full((20, 2), np.inf), "`logits`.*finite"),
        (np.zeros(20), r"`logits`.*\(20,\)"),
    ],
)
def test_wrong_input_is_named(logits, message):
    with pytest.raises(ValueError, match=message):
        inception_score(logits)


def test_no_samples_are_too_few():
    with pytest.raises(ValueError, match="non-empty"):
        InceptionScore().result()
