"""Every metric of samples keeps the contract, and so does a new one."""

import numpy as np
import pytest
from contracts.metric import NUM_FEATURES, MetricContract

from keras_imm import metrics

pytestmark = pytest.mark.one_backend("NumPy code")


def reference_features(seed=9, size=NUM_FEATURES):
    rng = np.random.default_rng(seed)
    return (1.2 * rng.standard_normal((60, size)) + 0.3).astype("float32")


class TestFrechetDistance(MetricContract):
    takes_indices = False

    @staticmethod
    def make():
        features = reference_features()
        return metrics.FrechetDistance(features.mean(0), np.cov(features, rowvar=False))


class TestKernelDistance(MetricContract):
    @staticmethod
    def make():
        return metrics.KernelDistance(
            reference_features(), num_subsets=5, subset_size=20
        )


class TestPrecisionRecall(MetricContract):
    @staticmethod
    def make():
        return metrics.PrecisionRecall(reference_features(), k=3)


class TestDensityCoverage(MetricContract):
    @staticmethod
    def make():
        return metrics.DensityCoverage(reference_features(), k=3)


class TestInceptionScore(MetricContract):
    @staticmethod
    def make():
        return metrics.InceptionScore(num_splits=2)


class TestSampleQuality(MetricContract):
    @staticmethod
    def make():
        features, spatial = reference_features(), reference_features(8, 3)
        return metrics.SampleQuality(
            metrics.ReferenceStatistics(
                mean=features.mean(0),
                covariance=np.cov(features, rowvar=False),
                spatial_mean=spatial.mean(0),
                spatial_covariance=np.cov(spatial, rowvar=False),
                features=features,
            )
        )

    def draw(self, count, seed=0):
        rng = np.random.default_rng((seed, 1))
        spatial, logits = rng.standard_normal((2, count, 3)).astype("float32")
        return (*super().draw(count, seed), spatial, logits)


class NearestNeighbour(metrics.FeatureMetric):
    """Mean distance of a sample to the nearest feature of the reference."""

    def __init__(self, reference):
        super().__init__()
        self.reference = reference

    def result(self):
        features = self.reservoir.features()
        if not len(features):
            raise ValueError("There must be at least one sample. Received none.")
        gaps = np.linalg.norm(features[:, None] - self.reference[None], axis=-1)
        return float(gaps.min(axis=1).mean())


class TestNewMetric(MetricContract):
    @staticmethod
    def make():
        return NearestNeighbour(reference_features())


def test_every_metric_is_tested():
    public = [getattr(metrics, name) for name in metrics.__all__]
    kinds = {
        kind
        for kind in public
        if isinstance(kind, type)
        and hasattr(kind, "update")
        and hasattr(kind, "result")
    }
    tested = {type(contract.make()) for contract in MetricContract.__subclasses__()}
    assert kinds - {metrics.FeatureMetric} == tested - {NearestNeighbour}
