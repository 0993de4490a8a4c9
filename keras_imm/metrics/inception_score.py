"""The Inception Score."""

import itertools
from typing import Any

import numpy as np

from keras_imm.metrics.checks import check_count, check_features
from keras_imm.metrics.kernel_distance import MeanAndDeviation
from keras_imm.metrics.reservoir import FeatureMetric
from keras_imm.validation import check_integer


def inception_score(logits: Any, num_splits: int = 10) -> MeanAndDeviation:
    """exp(mean KL(p(class | sample) ‖ p(class))), over parts of the samples in order.

    Args:
        logits: Logits of a classifier, shape (num_samples, num_classes); of
            `InceptionV3`, the tap `"logits_unbiased"`.
        num_splits: Parts that the samples are split into, at least 1.

    Returns:
        `(mean, std)` over the parts.

    Raises:
        ValueError: If there are fewer samples than parts, or fewer than two, or logits
            that are not finite.

    Example:

    ```python
    inception_score(100 * np.eye(10), num_splits=1).mean  # 10 classes: 10.0
    ```

    Reference:
        - [Salimans et al., 2016](https://arxiv.org/abs/1606.03498)
    """
    logits = check_features(logits, "logits").astype("float64")
    check_integer("num_splits", num_splits, at_least=1)
    check_count(len(logits), "logits", at_least=max(2, num_splits))
    ends = [len(logits) * i // num_splits for i in range(num_splits + 1)]
    scores = [_score(logits[start:end]) for start, end in itertools.pairwise(ends)]
    return MeanAndDeviation(float(np.mean(scores)), float(np.std(scores)))


def _score(logits):
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    p = np.exp(log_p)
    marginal = p.mean(axis=0)
    log_marginal = np.log(np.maximum(marginal, np.finfo("float64").tiny))
    return np.exp((p * (log_p - log_marginal)).sum(axis=1).mean())


class InceptionScore(FeatureMetric):
    """`inception_score` of logits that come in batches.

    Args:
        num_splits: As in `inception_score`.
        max_samples: Samples to keep at most, at least 2; of more, a fair sample.
        seed: Integer of at least 0 that decides which.

    Raises:
        ValueError: If an argument is out of its range.

    Example:

    ```python
    score = keras_imm.metrics.InceptionScore()
    for images in batches:  # uint8
        score.update(network.features(images)["logits_unbiased"])
    score.result().mean
    ```
    """

    def __init__(self, num_splits: int = 10, max_samples: int = 50_000, seed: int = 0):
        super().__init__(max_samples, seed)
        check_integer("num_splits", num_splits, at_least=1)
        self.num_splits = num_splits

    def result(self) -> MeanAndDeviation:
        return inception_score(self.reservoir.features(), self.num_splits)
