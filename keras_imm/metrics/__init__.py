"""Measures of sample quality."""

from keras_imm.metrics.frechet import frechet_distance, frechet_distance_from_moments

__all__ = ["frechet_distance", "frechet_distance_from_moments"]
