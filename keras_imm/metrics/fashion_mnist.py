"""Quality of pictures of clothes, on the features of one network, fixed once."""

import functools
import os
import pathlib
from typing import Any

import keras
import numpy as np
from keras import layers

from keras_imm.datasets.fashion_mnist import FASHION_MNIST_CLASSES, fashion_mnist
from keras_imm.files.checksum import sha256
from keras_imm.metrics.feature_network import FeatureNetwork
from keras_imm.metrics.frechet import frechet_distance
from keras_imm.metrics.kernel_distance import kernel_distance
from keras_imm.metrics.manifolds import precision_recall
from keras_imm.validation import check_choice, check_integer

MEASURE = "fashion_mnist_v1"
CHECKSUM = "3d650c5b9a07210669eb1e33665a688c5645abca62db189f6f21eb3ebe91ccc0"
NUM_FEATURES = 64
_PER_CLASS = 1000  # training images of each class that the floor is measured on
_SUBSET = 1000  # of the kernel distance, where there are so many samples
_LARGEST = 20.0  # of a sample's values, as elsewhere in the library
_BATCH = 500
_LAYERS = ("conv_1", "conv_2", "conv_3", "features", "logits")


@keras.saving.register_keras_serializable(package="keras_imm")
class FashionMNISTClassifier(FeatureNetwork):
    """A small convolutional classifier of Fashion-MNIST, whose features are compared.

    Three convolutions, a hidden layer of 64 units, whose outputs are the features, and
    the logits of the 10 classes. Each feature has a standard deviation of 1 over the
    60,000 training images, on which it was trained by
    `benchmarks/train_fashion_classifier.py`. Everything is computed in full float32,
    whatever Keras's dtype policy.

    Args:
        weights: "fashion_mnist_v1" for the weights in the package, or None for random
            ones.

    Call arguments:
        inputs: Images in [-1, 1], shape (batch, 28, 28, 1).

    Returns:
        Dictionary of float32 tensors: "features" (batch, 64), "logits" (batch, 10).

    Raises:
        ValueError: If `weights` is something else, or the file is not what it was.

    Example:

    ```python
    classifier = keras_imm.metrics.FashionMNISTClassifier()
    images = np.zeros((4, 28, 28), "uint8")
    classifier.outputs_of(images)["features"]  # (4, 64)
    ```
    """

    def __init__(self, weights: str | None = MEASURE, **kwargs: Any):
        if weights is not None:
            check_choice("weights", weights, (MEASURE,))
        initializer = "glorot_uniform" if weights is None else "zeros"
        same = {"dtype": "float32", "kernel_initializer": initializer}
        images = {"dtype": "float32", "data_format": "channels_last"}
        relu = same | images | {"activation": "relu"}
        inputs = keras.Input((28, 28, 1), dtype="float32")
        x = layers.Conv2D(32, 5, strides=2, name="conv_1", **relu)(inputs)
        x = layers.Conv2D(64, 3, name="conv_2", **relu)(x)
        x = layers.MaxPooling2D(**images)(x)
        x = layers.Conv2D(64, 3, padding="same", name="conv_3", **relu)(x)
        x = layers.Flatten(**images)(x)
        # Leaky, so that no feature is 0 for all images.
        features = layers.Dense(NUM_FEATURES, "leaky_relu", name="features", **same)(x)
        logits = layers.Dense(len(FASHION_MNIST_CLASSES), name="logits", **same)
        kwargs.setdefault("name", "fashion_mnist_classifier")
        super().__init__(
            inputs, {"features": features, "logits": logits(features)}, **kwargs
        )
        self.trainable = False
        if weights is not None:
            self._read_weights()

    def outputs_of(self, images: Any) -> dict[str, np.ndarray]:
        """Features and logits of pictures.

        Args:
            images: Shape (num_images, 28, 28) or (num_images, 28, 28, 1): uint8, or
                floats in [-1, 1], which are clipped and rounded to 8 bits, as pictures
                are stored.

        Returns:
            Dictionary of float32 arrays: "features" (num_images, 64) and "logits"
            (num_images, 10).

        Raises:
            ValueError: If the images have another shape or dtype, or are not finite.
        """
        pixels = _to_uint8(images)
        return self.in_batches(pixels / np.float32(127.5) - np.float32(1), _BATCH)

    def arrays(self) -> dict[str, np.ndarray]:
        """The weights by name."""
        return {
            f"{name}/{variable.name}": keras.ops.convert_to_numpy(variable)
            for name in _LAYERS
            for variable in self.get_layer(name).weights
        }

    def _read_weights(self):
        path = pathlib.Path(__file__).with_name(f"{MEASURE}.npz")
        if sha256(path) != CHECKSUM:
            raise ValueError(f"{path} is not the file that {MEASURE} is defined by.")
        with np.load(path, allow_pickle=False) as arrays:
            for name in _LAYERS:
                for variable in self.get_layer(name).weights:
                    variable.assign(arrays[f"{name}/{variable.name}"].astype("float32"))

    def get_config(self) -> dict[str, Any]:
        """Without the weights, which Keras keeps itself."""
        return {"weights": None, "name": self.name}

    @classmethod
    def from_config(
        cls, config: dict, custom_objects: dict | None = None
    ) -> "FashionMNISTClassifier":
        """A network of random weights."""
        return cls(**config)


class FashionMNISTQuality:
    """The measure "fashion_mnist_v1" of samples of Fashion-MNIST's classes.

    On the 64 features of `FashionMNISTClassifier`, against the 10,000 test images.
    Meant for 10,000 samples with uniform labels, which `labels()` gives: the Fréchet
    distance of fewer is larger. As training images are no better than the test images
    can be told from them, `floor()` measures 10,000 of them, the first 1,000 of each
    class.

    Args:
        data_dir: Folder of Fashion-MNIST, as for `keras_imm.datasets.fashion_mnist`.
        test: Test images, to be used in place of Fashion-MNIST's, as
            `FashionMNISTClassifier.outputs_of` takes them.
        train: Training images and labels for the floor, likewise.

    Raises:
        ValueError: If images have another shape or dtype, or a file is damaged.
        OSError: If there are no data; the message says where to get them.

    Example:

    ```python
    quality = keras_imm.metrics.FashionMNISTQuality()
    labels = quality.labels()
    samples = model.generate(labels, num_steps=2)  # in [-1, 1]
    quality.measure(samples, labels)  # {"frechet": ..., "frechet_ratio": ..., ...}
    ```
    """

    name = MEASURE

    def __init__(
        self,
        data_dir: str | os.PathLike[str] | None = None,
        test: Any = None,
        train: tuple[Any, Any] | None = None,
    ):
        if data_dir is not None and not isinstance(data_dir, str | os.PathLike):
            raise ValueError(
                "`data_dir` must be the path of a folder or None. "
                f"Received: data_dir={data_dir!r}"
            )
        self._data_dir, self._train = data_dir, train
        self.classifier = FashionMNISTClassifier()
        if test is None:
            test, _ = fashion_mnist("test", data_dir)
        self.reference = self.classifier.outputs_of(test)["features"]

    @staticmethod
    def labels(count: int = 10_000) -> np.ndarray:
        """Uniform labels, int32 of shape (count,): 0, 1, ..., 9, 0, 1, ..."""
        check_integer("count", count, at_least=1)
        return np.arange(count, dtype="int32") % len(FASHION_MNIST_CLASSES)

    def measure(self, samples: Any, labels: Any) -> dict[str, float]:
        """All measures of samples.

        Args:
            samples: Images as `FashionMNISTClassifier.outputs_of` takes them.
            labels: Integers of shape (num_samples,): what was asked for.

        Returns:
            - `frechet`, and `frechet_ratio`, its ratio to that of `floor()`;
            - `kernel_distance` and `kernel_distance_std`;
            - `precision` and `recall`, with the 3rd neighbour;
            - `agreement`: the share of samples in which the classifier sees the label.

        Raises:
            ValueError: If there are fewer than four samples or not as many labels, or
                the samples have another shape or dtype or are not finite.
        """
        found = self._measure(samples, labels)
        return {
            "frechet": found["frechet"],
            "frechet_ratio": found["frechet"] / self.floor()["frechet"],
            **found,
        }

    def frechet(self, samples: Any, labels: Any = None) -> float:
        """The Fréchet distance alone; the labels are not looked at."""
        features = self.classifier.outputs_of(samples)["features"]
        return frechet_distance(features, self.reference)

    def agreement(self, samples: Any, labels: Any) -> float:
        """The share of samples in which the classifier sees the label, alone."""
        return _agreement(self.classifier.outputs_of(samples)["logits"], labels)

    def floor(self) -> dict[str, float]:
        """The same measures, but for the ratio, of the training images."""
        return dict(self._floor)

    @functools.cached_property
    def _floor(self):
        if self._train is None:
            self._train = fashion_mnist("train", self._data_dir)
        images, labels = map(np.asarray, self._train)
        classes = range(len(FASHION_MNIST_CLASSES))
        first = [np.flatnonzero(labels == c)[:_PER_CLASS] for c in classes]
        chosen = np.concatenate(first)
        return self._measure(images[chosen], labels[chosen])

    def _measure(self, samples, labels):
        outputs = self.classifier.outputs_of(samples)
        features, size = outputs["features"], len(outputs["features"])
        size = min(_SUBSET, size, len(self.reference))
        distance = kernel_distance(features, self.reference, subset_size=size)
        return {
            "frechet": frechet_distance(features, self.reference),
            "kernel_distance": distance.mean,
            "kernel_distance_std": distance.std,
            **precision_recall(features, self.reference)._asdict(),
            "agreement": _agreement(outputs["logits"], labels),
        }


def _agreement(logits, labels):
    labels = np.asarray(labels)
    if labels.shape != (len(logits),) or labels.dtype.kind not in "iu":
        raise ValueError(
            f"`labels` must be integers of shape ({len(logits)},), one a sample. "
            f"Received: dtype {labels.dtype} and shape {labels.shape}"
        )
    return float(np.mean(logits.argmax(axis=1) == labels))


def _to_uint8(images):
    """Pictures of shape (num_images, 28, 28, 1), as they are stored."""
    images = np.asarray(images)
    if images.shape[1:] not in ((28, 28), (28, 28, 1)) or not len(images):
        raise ValueError(
            "Images must have the shape (num_images, 28, 28) or (num_images, 28, 28, "
            f"1). Received: shape {images.shape}"
        )
    if images.dtype != np.uint8:
        images = _rounded(images)
    return images.reshape(-1, 28, 28, 1)


def _rounded(images):
    if images.dtype.kind != "f" or not np.isfinite(images).all():
        raise ValueError(
            "Images must be uint8 in [0, 255] or finite floats in [-1, 1]. Received: "
            f"dtype {images.dtype}"
            + (", with values that are not finite" * (images.dtype.kind == "f"))
        )
    if np.abs(images).max() > _LARGEST:
        raise ValueError(
            "Images as floats must be in [-1, 1]; values a little beyond are clipped. "
            f"Received: values in [{images.min():.6g}, {images.max():.6g}]"
        )
    pixels = np.rint(127.5 * images.astype("float32") + 127.5)
    return np.clip(pixels, 0, 255).astype("uint8")
