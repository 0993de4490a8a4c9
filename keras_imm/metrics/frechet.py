"""The Fréchet distance between two sets of features."""

from typing import Any

import numpy as np

from keras_imm.metrics.checks import check_columns, check_count, check_real
from keras_imm.metrics.moments import Moments


def frechet_distance(features_a: Any, features_b: Any) -> float:
    """Fréchet distance between Gaussians fitted to two sets of features.

    `‖μ_a − μ_b‖² + tr(Σ_a + Σ_b − 2 (Σ_a Σ_b)^½)`, with unbiased covariances. It is
    symmetric, and 0 for two sets with equal means and covariances. With Inception
    features it is the FID; with flattened pixels it is what the digits example reports.

    With centred features `X = QR`, `Σ = RᵀR/(n − 1)`, and the trace of `(Σ_a Σ_b)^½` is
    the sum of the singular values of `R_a R_bᵀ/√((n_a − 1)(n_b − 1))`. No covariance is
    formed and no matrix square root taken, so singular covariances (fewer samples than
    features, or constant features) cost no accuracy.

    Args:
        features_a: Array of shape `(num_samples_a, num_features)`, at least two rows.
        features_b: Array of shape `(num_samples_b, num_features)`, at least two rows.

    Returns:
        The distance, a non-negative Python float computed in float64.

    Raises:
        ValueError: If an argument is not a finite real matrix of two or more rows, or
            if the two differ in their number of features.

    Example:

    ```python
    rng = np.random.default_rng(0)
    real = rng.normal(size=(1000, 64))
    frechet_distance(real, real + 0.5)  # 64 · 0.5² = 16.0
    ```

    Reference:
        - [Heusel et al., 2017](https://arxiv.org/abs/1706.08500), Eq. 6
    """
    mean_a, factor_a = _mean_and_factor(features_a, "features_a")
    mean_b, factor_b = _mean_and_factor(features_b, "features_b")
    if mean_a.shape != mean_b.shape:
        raise ValueError(
            "`features_a` and `features_b` must have the same number of columns. "
            f"Received {mean_a.size} and {mean_b.size}."
        )
    return _distance(mean_a, factor_a, mean_b, factor_b)


def frechet_distance_from_moments(
    mean_a: Any, covariance_a: Any, mean_b: Any, covariance_b: Any
) -> float:
    """Fréchet distance between two Gaussians, given their means and covariances.

    For reference statistics that were published or stored. Where the features
    themselves are at hand, `frechet_distance` is the more accurate.

    Args:
        mean_a: Array of shape `(num_features,)`.
        covariance_a: Array of shape `(num_features, num_features)`, symmetric.
        mean_b: Array of shape `(num_features,)`.
        covariance_b: Array of shape `(num_features, num_features)`, symmetric.

    Returns:
        The distance, a non-negative Python float computed in float64.

    Raises:
        ValueError: If a shape does not fit the others, a value is not finite, or a
            covariance is not symmetric and positive semi-definite (to rounding).

    Example:

    ```python
    frechet_distance_from_moments([0.0], [[1.0]], [1.0], [[4.0]])  # 1 + (1 − 2)² = 2
    ```
    """
    mean_a = _real(mean_a, "mean_a", 1)
    mean_b = _real(mean_b, "mean_b", 1)
    if mean_a.shape != mean_b.shape:
        raise ValueError(
            "`mean_a` and `mean_b` must have the same length. "
            f"Received {mean_a.size} and {mean_b.size}."
        )
    factor_a = _covariance_factor(covariance_a, "covariance_a", mean_a.size)
    factor_b = _covariance_factor(covariance_b, "covariance_b", mean_b.size)
    return _distance(mean_a, factor_a, mean_b, factor_b)


class FrechetDistance:
    """Fréchet distance of features that come in batches, to reference statistics.

    With the `"2048"` features of `InceptionV3` it is the FID, with the `"spatial"` ones
    the sFID. Means and covariances are kept in float64, in memory that does not grow.

    Args:
        mean: Mean of the reference, shape (num_features,).
        covariance: Covariance of the reference, shape (num_features, num_features).

    Raises:
        ValueError: If the shapes do not fit each other, or the covariance is not
            symmetric, positive semi-definite and finite.

    Example:

    ```python
    reference = keras_imm.metrics.ReferenceStatistics.load("cifar10-32x32.npz")
    fid = keras_imm.metrics.FrechetDistance(reference.mean, reference.covariance)
    network = keras_imm.metrics.InceptionV3()
    for images in batches:  # uint8
        fid.update(network.features(images)["2048"])
    fid.result()
    ```

    Reference:
        - [Heusel et al., 2017](https://arxiv.org/abs/1706.08500), Eq. 6
    """

    def __init__(self, mean: Any, covariance: Any):
        self.mean = _real(mean, "mean", 1)
        self._factor = _covariance_factor(covariance, "covariance", self.mean.size)
        self.moments = Moments()

    def update(self, features: Any) -> None:
        """Adds samples.

        Args:
            features: Array of shape (num_samples, num_features).

        Raises:
            ValueError: If they are not finite, or not as many as the reference has.
        """
        features = check_real(features, "features", 2)
        check_columns(features, self.mean.size, "features", "the reference has")
        self.moments.update(features)

    def merge(self, other: "FrechetDistance") -> None:
        """Adds what another one, in another process, was given."""
        self.moments.merge(other.moments)

    def state(self) -> dict[str, np.ndarray]:
        """Arrays from which `set_state` makes the same again, elsewhere."""
        return self.moments.state()

    def set_state(self, state: dict[str, np.ndarray]) -> None:
        """Takes over what `state` returned."""
        self.moments.set_state(state)

    def result(self) -> float:
        """The distance.

        Raises:
            ValueError: If there are fewer than two samples.
        """
        covariance = self.moments.covariance()
        factor = _covariance_factor(covariance, "covariance", self.mean.size)
        return _distance(self.moments.mean, factor, self.mean, self._factor)


def _distance(mean_a, factor_a, mean_b, factor_b) -> float:
    """The distance from factors F of the covariances, Σ = FᵀF."""
    cross = np.linalg.svd(factor_a @ factor_b.T, compute_uv=False).sum()
    spread = np.sum(factor_a**2) + np.sum(factor_b**2) - 2 * cross
    return float(np.sum((mean_a - mean_b) ** 2) + max(spread, 0.0))


def _mean_and_factor(features, name):
    features = _real(features, name, 2)
    count = features.shape[0]
    check_count(count, name)
    mean = features.mean(axis=0)
    return mean, np.linalg.qr(features - mean, mode="r") / np.sqrt(count - 1)


def _covariance_factor(covariance, name, size):
    covariance = _real(covariance, name, 2)
    if covariance.shape != (size, size):
        raise ValueError(
            f"`{name}` must have shape {(size, size)}, as its mean has {size} entries. "
            f"Received {covariance.shape}."
        )
    scale = np.abs(covariance).max()
    asymmetry = np.abs(covariance - covariance.T).max()
    values, vectors = np.linalg.eigh((covariance + covariance.T) / 2)
    # Statistics stored in float32 carry its rounding.
    if max(asymmetry, -values[0]) > 1e-5 * scale:
        raise ValueError(
            f"`{name}` must be symmetric and positive semi-definite. Received an "
            f"asymmetry of {asymmetry:.3g} and a least eigenvalue of {values[0]:.3g}, "
            f"with entries up to {scale:.3g}."
        )
    return np.sqrt(np.maximum(values, 0.0))[:, None] * vectors.T


def _real(array, name, ndim):
    return check_real(array, name, ndim).astype(np.float64)
