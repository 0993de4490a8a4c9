"""Quality of pictures of digits, against those of scikit-learn."""

from typing import Any

import numpy as np

from keras_imm.metrics.frechet import frechet_distance

NUM_CLASSES = 10
NUM_IMAGES = 1797
SIGMA_DATA = 0.5


def load_digits() -> tuple[np.ndarray, np.ndarray]:
    """All 1,797 digits, scaled so that the pixels of the set have mean 0 and std 0.5.

    Returns:
        Images, float32 of shape (1797, 8, 8, 1), and labels, int32 of shape (1797,).

    Raises:
        ImportError: If scikit-learn, which has the digits, is not installed.
    """
    images, labels = _digits()
    mean, scale = _scaling(images)
    images = (images - mean) / scale
    return images.reshape(-1, 8, 8, 1).astype("float32"), labels.astype("int32")


def digits_scaling() -> tuple[float, float]:
    """Scale and offset that make bytes of such images again: 16 becomes 255.

    Returns:
        The arguments of `keras_imm.Pixels`.

    Raises:
        ImportError: If scikit-learn is not installed.
    """
    mean, scale = _scaling(_digits()[0])
    return float(scale * 255 / 16), float(mean * 255 / 16)


def _digits() -> tuple[np.ndarray, np.ndarray]:
    from sklearn import datasets

    return datasets.load_digits(return_X_y=True)


def _scaling(images: np.ndarray) -> tuple[float, float]:
    return images.mean(), images.std() / SIGMA_DATA


class DigitsQuality:
    """The measure "digits_v1" of samples of digits, against all real ones.

    Args:
        images: The real digits and
        labels: their labels. Default: those of `load_digits`.

    Raises:
        ImportError: If scikit-learn is not installed.

    Example:

    ```python
    quality = keras_imm.metrics.DigitsQuality()
    labels = quality.labels()
    samples = model.generate(labels, num_steps=2)  # of mean 0 and deviation 0.5
    quality.measure(samples, labels)               # {"frechet": ..., "agreement": ...}
    ```
    """

    name = "digits_v1"

    def __init__(self, images: Any = None, labels: Any = None):
        from sklearn.neural_network import MLPClassifier

        if images is None:
            images, labels = load_digits()
        images = np.asarray(images)
        if images.dtype.kind != "f" or images.ndim < 2 or len(images) == 0:
            raise ValueError(
                "`images` must be floats of shape (num_images, ...), as `load_digits` "
                f"returns them. Received: shape {images.shape}, dtype {images.dtype}"
            )
        if np.shape(labels) != (len(images),):
            raise ValueError(
                "`labels` must be integers of shape (num_images,), here "
                f"({len(images)},). Received: shape {np.shape(labels)}"
            )
        self.pixels = images.reshape(len(images), -1)
        self.classifier = MLPClassifier((128, 64), max_iter=300, random_state=0)
        self.classifier.fit(self.pixels, labels)

    @staticmethod
    def labels(count: int = 4000) -> np.ndarray:
        """Uniform labels, int32 of shape (count,): 0, 1, ..., 9, 0, 1, ..."""
        return np.arange(count, dtype="int32") % NUM_CLASSES

    def measure(self, samples: Any, labels: Any) -> dict[str, float]:
        """Both measures of samples of shape (num_samples, 8, 8, 1)."""
        return {
            "frechet": float(self.frechet(samples, labels)),
            "agreement": float(self.agreement(samples, labels)),
        }

    def frechet(self, samples: Any, labels: Any = None) -> float:
        """The Fréchet distance on the 64 pixels; the labels are not looked at."""
        samples = np.asarray(samples)
        return frechet_distance(samples.reshape(len(samples), -1), self.pixels)

    def agreement(self, samples: Any, labels: Any) -> float:
        """How often a classifier trained on the real images sees the label."""
        samples = np.asarray(samples)
        predicted = self.classifier.predict(samples.reshape(len(samples), -1))
        return np.mean(predicted == labels)
