"""Measures of sample quality."""

from keras_imm.metrics.digits import DigitsQuality
from keras_imm.metrics.fashion_mnist import FashionMNISTClassifier, FashionMNISTQuality
from keras_imm.metrics.frechet import (
    FrechetDistance,
    frechet_distance,
    frechet_distance_from_moments,
)
from keras_imm.metrics.inception import InceptionV3
from keras_imm.metrics.inception_score import InceptionScore, inception_score
from keras_imm.metrics.kernel_distance import KernelDistance, kernel_distance
from keras_imm.metrics.manifolds import (
    DensityCoverage,
    PrecisionRecall,
    density_coverage,
    precision_recall,
)
from keras_imm.metrics.moments import Moments
from keras_imm.metrics.reference_statistics import ReferenceStatistics
from keras_imm.metrics.reservoir import FeatureMetric, FeatureReservoir
from keras_imm.metrics.sample_quality import SampleQuality

__all__ = [
    "DensityCoverage",
    "DigitsQuality",
    "FashionMNISTClassifier",
    "FashionMNISTQuality",
    "FeatureMetric",
    "FeatureReservoir",
    "FrechetDistance",
    "InceptionScore",
    "InceptionV3",
    "KernelDistance",
    "Moments",
    "PrecisionRecall",
    "ReferenceStatistics",
    "SampleQuality",
    "density_coverage",
    "frechet_distance",
    "frechet_distance_from_moments",
    "inception_score",
    "kernel_distance",
    "precision_recall",
]
