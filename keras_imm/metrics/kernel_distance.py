"""The kernel distance, KID with Inception's features."""

from typing import Any, NamedTuple

import numpy as np

from keras_imm.metrics.checks import check_features, check_pair
from keras_imm.metrics.reservoir import FeatureMetric
from keras_imm.validation import check_integer


class MeanAndDeviation(NamedTuple):
    """A mean over parts of the samples, and the parts' standard deviation."""

    mean: float
    std: float


def kernel_distance(
    features: Any,
    reference: Any,
    num_subsets: int = 100,
    subset_size: int = 1000,
    seed: int = 2020,
) -> MeanAndDeviation:
    """Squared MMD of the kernel (x·y / num_features + 1)^3: the KID.

    The unbiased estimate, averaged over random subsets without replacement. Unlike the
    Fréchet distance it has no bias where samples are few.

    Args:
        features: Features of samples, shape (num_samples, num_features).
        reference: Features of data, shape (num_images, num_features).
        num_subsets: How many subsets, at least 1.
        subset_size: Rows of each, at least 2 and at most those that there are.
        seed: Integer in [0, 2^32) of the subsets. Results of one seed share the subsets
            of the data, whose error is then not in their scatter: give repeated
            measurements seeds of their own.

    Returns:
        `(mean, std)` over the subsets. They overlap: std is not the error of the mean.

    Raises:
        ValueError: If an argument is out of its range, or the features are not finite
            or of different sizes.

    Example:

    ```python
    rng = np.random.default_rng(0)
    real, samples = rng.normal(size=(2, 300, 8))
    kernel_distance(samples, real, subset_size=200).mean  # about 0
    ```

    Reference:
        - [Bińkowski et al., 2018](https://arxiv.org/abs/1801.01401)
    """
    features, reference = check_pair(features, reference)
    check_integer("num_subsets", num_subsets, at_least=1)
    check_integer("subset_size", subset_size, at_least=2)
    check_integer("seed", seed, at_least=0)
    fewest = min(len(features), len(reference))
    if subset_size > fewest:
        raise ValueError(
            f"`subset_size` must be at most {fewest}, the fewest rows that there are. "
            f"Received: subset_size={subset_size}"
        )
    # The generator and the order of draws that published values come from.
    rng = np.random.RandomState(seed)
    distances = []
    for _ in range(num_subsets):
        x = features[rng.choice(len(features), subset_size, replace=False)]
        y = reference[rng.choice(len(reference), subset_size, replace=False)]
        distances.append(_squared_mmd(x.astype("float64"), y.astype("float64")))
    return MeanAndDeviation(float(np.mean(distances)), float(np.std(distances)))


def _squared_mmd(x, y):
    def total(a, b, diagonal=True):
        k = (a @ b.T / a.shape[1] + 1) ** 3
        return k.sum() - (0 if diagonal else np.trace(k))

    m = len(x)
    within = total(x, x, diagonal=False) + total(y, y, diagonal=False)
    return within / (m * (m - 1)) - 2 * total(x, y) / m**2


class KernelDistance(FeatureMetric):
    """`kernel_distance` of features that come in batches.

    Args:
        reference: Features of data, shape (num_images, num_features).
        num_subsets: As in `kernel_distance`.
        subset_size: As in `kernel_distance`.
        max_samples: Samples to keep at most, at least 2; of more, a fair sample.
        seed: Integer of at least 0 that decides which.

    Raises:
        ValueError: If an argument is out of its range.

    Example:

    ```python
    kid = keras_imm.metrics.KernelDistance(reference.features)
    for images in batches:  # uint8
        kid.update(network.features(images)["2048"])
    kid.result().mean
    ```
    """

    def __init__(
        self,
        reference: Any,
        num_subsets: int = 100,
        subset_size: int = 1000,
        max_samples: int = 50_000,
        seed: int = 0,
    ):
        super().__init__(max_samples, seed)
        self.reference = check_features(reference, "reference")
        check_integer("num_subsets", num_subsets, at_least=1)
        check_integer("subset_size", subset_size, at_least=2)
        self.num_subsets = num_subsets
        self.subset_size = subset_size

    def result(self) -> MeanAndDeviation:
        features = self.reservoir.features()
        return kernel_distance(
            features, self.reference, self.num_subsets, self.subset_size
        )
