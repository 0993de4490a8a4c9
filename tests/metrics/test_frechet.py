"""Fréchet distance against scipy's matrix square root and closed forms."""

import numpy as np
import pytest
import scipy.linalg

from keras_imm.metrics import frechet_distance, frechet_distance_from_moments


def textbook(a, b):
    """Heusel et al. (2017), Eq. 6, written with a general matrix square root."""
    cov_a, cov_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = scipy.linalg.sqrtm(cov_a @ cov_b).real
    difference = a.mean(axis=0) - b.mean(axis=0)
    return difference @ difference + np.trace(cov_a + cov_b - 2 * root)


def correlated(rng, count, size):
    return rng.normal(size=(count, size)) @ rng.normal(size=(size, size))


@pytest.mark.parametrize(("size", "counts"), [(2, (50, 70)), (64, (400, 179))])
def test_equals_the_matrix_square_root(size, counts):
    rng = np.random.default_rng(size)
    a = correlated(rng, counts[0], size)
    b = correlated(rng, counts[1], size) + rng.normal(size=size)
    expected = textbook(a, b)
    np.testing.assert_allclose(frechet_distance(a, b), expected, rtol=1e-6)
    np.testing.assert_allclose(
        frechet_distance_from_moments(
            a.mean(0), np.cov(a, rowvar=False), b.mean(0), np.cov(b, rowvar=False)
        ),
        expected,
        rtol=1e-6,
    )


def test_one_dimension_has_a_closed_form():
    rng = np.random.default_rng(0)
    a, b = rng.normal(1, 2, size=(30, 1)), rng.normal(-1, 0.5, size=(20, 1))
    expected = (a.mean() - b.mean()) ** 2 + (a.std(ddof=1) - b.std(ddof=1)) ** 2
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-12)


def test_commuting_covariances_have_a_closed_form():
    rng = np.random.default_rng(0)
    basis, _ = np.linalg.qr(rng.normal(size=(5, 5)))
    values_a, values_b = np.array([4, 1, 9, 0, 2.25]), np.array([1, 1, 4, 16, 0])
    expected = 3.0**2 + np.sum((np.sqrt(values_a) - np.sqrt(values_b)) ** 2)
    distance = frechet_distance_from_moments(
        np.zeros(5),
        (basis * values_a) @ basis.T,
        np.array([0, 3, 0, 0, 0]),
        (basis * values_b) @ basis.T,
    )
    assert distance == pytest.approx(expected, rel=1e-6)


def test_a_shift_is_its_squared_length():
    rng = np.random.default_rng(0)
    features = correlated(rng, 100, 8)
    shift = rng.normal(size=8)
    distance = frechet_distance(features, features + shift)
    assert distance == pytest.approx(shift @ shift, rel=1e-9)


@pytest.mark.parametrize("count", [2, 10, 63])
def test_fewer_samples_than_features(count):
    """Σ_a Σ_b has the eigenvalues of a small Gram product: no large root needed."""
    rng = np.random.default_rng(count)
    a, b = rng.normal(size=(2, count, 64))
    centred_a, centred_b = a - a.mean(0), b - b.mean(0)
    gram = centred_a @ centred_b.T / (count - 1)
    cross = np.linalg.svd(gram, compute_uv=False).sum()
    expected = (
        np.sum((a.mean(0) - b.mean(0)) ** 2)
        + (np.sum(centred_a**2) + np.sum(centred_b**2)) / (count - 1)
        - 2 * cross
    )
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-10)
    moments = (a.mean(0), np.cov(a, rowvar=False), b.mean(0), np.cov(b, rowvar=False))
    assert frechet_distance_from_moments(*moments) == pytest.approx(expected, rel=1e-6)


def test_equal_sets_are_at_distance_zero_and_order_does_not_matter():
    rng = np.random.default_rng(0)
    a, b = correlated(rng, 20, 64), correlated(rng, 90, 64)
    scale = a.var(axis=0).sum()
    assert 0 <= frechet_distance(a, a[::-1]) < 1e-12 * scale
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-12)


def test_constant_features_and_integers():
    a = np.array([[0, 7], [2, 7], [4, 7]])
    b = np.array([[0, 5], [0, 5], [0, 5]])
    assert frechet_distance(a, b) == pytest.approx(2**2 + 2**2 + 4)


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (np.zeros((4, 2)), np.zeros((4, 3)), "same number of columns.*2 and 3"),
        (np.zeros((1, 2)), np.zeros((4, 2)), "`features_a`.*two rows.*1"),
        (np.zeros((4, 2)), np.zeros((4, 2, 1)), r"`features_b`.*\(4, 2, 1\)"),
        (np.zeros((4, 0)), np.zeros((4, 0)), r"`features_a`.*\(4, 0\)"),
        (np.full((4, 2), np.nan), np.zeros((4, 2)), "`features_a`.*finite"),
        (np.zeros((4, 2)), np.full((4, 2), np.inf), "`features_b`.*finite"),
        (np.zeros((4, 2), "complex64"), np.zeros((4, 2)), "`features_a`.*complex64"),
    ],
)
def test_bad_features_are_named(a, b, message):
    with pytest.raises(ValueError, match=message):
        frechet_distance(a, b)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([0, 0], np.eye(2), [0], np.eye(1)), "`mean_a` and `mean_b`.*2 and 1"),
        (([0, 0], np.eye(3), [0, 0], np.eye(2)), r"`covariance_a`.*\(2, 2\).*\(3, 3\)"),
        (([0, 0], np.eye(2), [0, 0], [[1, 2], [0, 1]]), "`covariance_b`.*symmetric"),
        (([0, 0], np.eye(2), [0, 0], [[1, 2], [2, 1]]), "`covariance_b`.*eigenvalue"),
        (([0, np.nan], np.eye(2), [0, 0], np.eye(2)), "`mean_a`.*finite"),
    ],
)
def test_bad_moments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        frechet_distance_from_moments(*arguments)
