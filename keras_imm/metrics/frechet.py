"""The Fréchet distance between two sets of feature vectors."""

from typing import Any

import numpy as np


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
    mean_a = _finite(mean_a, "mean_a", 1)
    mean_b = _finite(mean_b, "mean_b", 1)
    if mean_a.shape != mean_b.shape:
        raise ValueError(
            "`mean_a` and `mean_b` must have the same length. "
            f"Received {mean_a.size} and {mean_b.size}."
        )
    factor_a = _covariance_factor(covariance_a, "covariance_a", mean_a.size)
    factor_b = _covariance_factor(covariance_b, "covariance_b", mean_b.size)
    return _distance(mean_a, factor_a, mean_b, factor_b)


def _distance(mean_a, factor_a, mean_b, factor_b) -> float:
    """The distance from factors F of the covariances, Σ = FᵀF."""
    cross = np.linalg.svd(factor_a @ factor_b.T, compute_uv=False).sum()
    spread = np.sum(factor_a**2) + np.sum(factor_b**2) - 2 * cross
    return float(np.sum((mean_a - mean_b) ** 2) + max(spread, 0.0))


def _mean_and_factor(features, name):
    features = _finite(features, name, 2)
    count = features.shape[0]
    if count < 2:
        raise ValueError(f"`{name}` must have at least two rows. Received {count}.")
    mean = features.mean(axis=0)
    return mean, np.linalg.qr(features - mean, mode="r") / np.sqrt(count - 1)


def _covariance_factor(covariance, name, size):
    covariance = _finite(covariance, name, 2)
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


def _finite(array, name, ndim):
    array = np.asarray(array)
    if array.dtype.kind not in "biuf":
        raise ValueError(f"`{name}` must be real numbers. Received {array.dtype}.")
    if array.ndim != ndim or array.size == 0:
        raise ValueError(
            f"`{name}` must be a non-empty array of {ndim} dimension(s). "
            f"Received shape {array.shape}."
        )
    array = array.astype(np.float64)
    if not np.isfinite(array).all():
        raise ValueError(f"`{name}` must be finite. Received NaN or infinite entries.")
    return array
