"""Scikit-learn's handwritten digits: images, batches for `fit`, quality of samples."""

import numpy as np
from array_batches import Batches
from sklearn.datasets import load_digits
from sklearn.neural_network import MLPClassifier

import keras_imm

__all__ = ["NUM_CLASSES", "NUM_IMAGES", "SIGMA_DATA", "Batches", "Quality", "load"]
NUM_CLASSES = 10
NUM_IMAGES = 1797
SIGMA_DATA = 0.5


def load() -> tuple[np.ndarray, np.ndarray]:
    """All 1,797 digits, scaled so that the pixels of the set have mean 0 and std 0.5.

    Returns:
        Images, float32 of shape (1797, 8, 8, 1), and labels, int32 of shape (1797,).
    """
    images, labels = load_digits(return_X_y=True)
    images = (images - images.mean()) / images.std() * SIGMA_DATA
    return images.reshape(-1, 8, 8, 1).astype("float32"), labels.astype("int32")


class Quality:
    """Two measures of samples, both against all real digits.

    `frechet` is the Fréchet distance on the 64 pixels. `agreement` is how often a
    classifier trained on the real images sees in a sample the label it was drawn for.
    """

    def __init__(self, images, labels):
        self.pixels = images.reshape(len(images), -1)
        self.classifier = MLPClassifier((128, 64), max_iter=300, random_state=0)
        self.classifier.fit(self.pixels, labels)

    def frechet(self, samples, labels):
        samples = samples.reshape(len(samples), -1)
        return keras_imm.metrics.frechet_distance(samples, self.pixels)

    def agreement(self, samples, labels):
        predicted = self.classifier.predict(samples.reshape(len(samples), -1))
        return np.mean(predicted == labels)
