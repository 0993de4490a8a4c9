"""Scikit-learn's handwritten digits: images, batches for `fit`, quality of samples."""

from array_batches import Batches

from keras_imm.metrics.digits import (
    NUM_CLASSES,
    NUM_IMAGES,
    SIGMA_DATA,
    digits_scaling,
)
from keras_imm.metrics.digits import DigitsQuality as Quality
from keras_imm.metrics.digits import load_digits as load

__all__ = [
    "NUM_CLASSES",
    "NUM_IMAGES",
    "SIGMA_DATA",
    "Batches",
    "Quality",
    "digits_scaling",
    "load",
]
