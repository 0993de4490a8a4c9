"""Measures of sample quality."""

from keras_imm.metrics.frechet import frechet_distance, frechet_distance_from_moments
from keras_imm.metrics.inception import InceptionV3

__all__ = ["InceptionV3", "frechet_distance", "frechet_distance_from_moments"]
