"""Data, network and measure of benchmarks that compare small models."""

import array_batches
import numpy as np
import two_dimensions

import keras_imm


class Data:
    """Images, labels, a backbone and a measure.

    Args:
        name: "digits", "fashion_mnist", or "fashion_mnist_32": clothes of 32x32, with
            a margin of two black pixels, which is cut off before they are measured.
        num_samples: How many samples of "fashion_mnist" are measured. Those of
            "digits" are as many as there are digits.

    Attributes:
        arrays: Images of mean 0 and standard deviation 0.5, and labels.
        labels: What is asked for when the samples are measured.
        of_neighbours: Numbers of steps of which precision and recall are measured,
            or None for all: they take ten seconds for clothes.
    """

    def __init__(self, name, num_samples=10_000):
        self._to_measure = None
        if name == "digits":
            self.arrays = keras_imm.metrics.digits.load_digits()
            self._quality = keras_imm.metrics.DigitsQuality()
            self.labels = self._quality.labels()
            self._network = {"patch_size": 2, "hidden_size": 64, "depth": 3}
            self._reference = self._quality.pixels
            self.of_neighbours = None
        else:
            images, labels = keras_imm.datasets.fashion_mnist("train")
            mean, scale = float(images.mean()), float(images.std()) / 0.5
            self._margin = 2 if name == "fashion_mnist_32" else 0
            around = [(0, 0)] + 2 * [(self._margin, self._margin)]
            images = np.pad(images, around)[..., None]
            images = (images - np.float32(mean)) / np.float32(scale)
            self.arrays = images, labels
            self._quality = keras_imm.metrics.FashionMNISTQuality()
            self.labels = self._quality.labels(num_samples)
            side = images.shape[1]
            self._network = {"patch_size": side // 4, "hidden_size": 176, "depth": 4}
            self._to_measure = keras_imm.Pixels(scale=scale, offset=mean)
            self._reference = self._quality.reference
            self.of_neighbours = (1, 2)

    def _features(self, images):
        """What precision and recall look at: of digits, their pixels."""
        if self._to_measure is None:
            return images.reshape(len(images), -1)
        return self._quality.classifier.outputs_of(images)["features"]

    def batches(self, batch_size, epoch, seed):
        """Batches for epochs of so many steps."""
        return array_batches.Batches(self.arrays, batch_size, epoch, seed)

    def generate(self, model, **options):
        """Samples of the labels that are measured."""
        return model.generate(self.labels, batch_size=500, verbose=0, **options)

    def backbone(self, **arguments):
        """A new network, with some of its arguments replaced."""
        return keras_imm.backbones.DiT(
            image_shape=self.arrays[0].shape[1:],
            num_heads=4,
            num_classes=10,
            **{**self._network, **arguments},
        )

    def measure(self, samples, neighbours=True):
        """Fréchet distance and agreement; precision and recall if `neighbours`."""
        if self._to_measure is not None:
            inner = slice(self._margin, samples.shape[1] - self._margin)
            samples = self._to_measure(samples[:, inner, inner])
        quality = self._quality
        found = {
            "frechet": quality.frechet(samples),
            "agreement": float(quality.agreement(samples, self.labels)),
        }
        if neighbours:
            precision, recall = keras_imm.metrics.precision_recall(
                self._features(samples), self._reference
            )
            found |= {"precision": precision, "recall": recall}
        return found


class Checkerboard:
    """Points of the board of examples/checkerboard.py, its network, and a measure.

    Attributes:
        num_samples: How many points are measured.
        of_neighbours: No number of steps: see `Data`.
    """

    def __init__(self, num_samples=20_000):
        self.num_samples = num_samples
        self.of_neighbours = ()

    def batches(self, batch_size, epoch, seed):
        """Batches for one epoch of so many steps."""
        return two_dimensions.Batches(batch_size, epoch, seed)

    def generate(self, model, **options):
        return model.generate(
            num_samples=self.num_samples,
            batch_size=self.num_samples,
            verbose=0,
            **options,
        )

    def backbone(self, **arguments):
        return two_dimensions.build_backbone(**arguments)

    def measure(self, samples, neighbours=False):
        """Share of points off the dark squares, and total variation.

        The latter is half the sum, over 16 x 16 cells of the board and what lies
        outside it, of the differences between the share of the points and that of the
        data, which is known: 1/128 in a dark cell. 20,000 points of the data are at
        0.032.
        """
        edges = np.linspace(-1.0, 1.0, 17) * two_dimensions.SCALE
        shares = np.histogram2d(*samples.T, bins=[edges, edges])[0] / len(samples)
        dark = np.kron(np.indices((4, 4)).sum(axis=0) % 2 == 0, np.ones((4, 4)))
        outside = 1.0 - shares.sum()
        return {
            "total_variation": 0.5 * (abs(shares - dark / 128).sum() + outside),
            "off_board": float(1.0 - (shares * dark).sum()),
        }


def rows_of(model, data, step_counts, seed, of_neighbours=None, sampler=None):
    """What samples of each number of steps are like, by the model's own sampler.

    Another sampler may be given. Precision and recall are of the numbers of steps in
    `of_neighbours`, by default of those that `data` names.
    """
    if of_neighbours is None:
        of_neighbours = data.of_neighbours or step_counts
    rows = []
    for count in step_counts:
        samples = data.generate(model, num_steps=count, seed=seed, sampler=sampler)
        found = data.measure(samples, neighbours=count in of_neighbours)
        rows.append({"steps": count, **found})
    return rows


def cells(results, names=("frechet", "agreement"), digits=3):
    """Of runs of several seeds: means ± standard errors / means, by step count.

    Nothing where it was not measured.
    """
    values = np.array(
        [[[r.get(name, np.nan) for name in names] for r in rows] for rows in results]
    )
    means, count = values.mean(axis=0), len(values)
    errors = values.std(axis=0, ddof=1) / np.sqrt(count) if count > 1 else None
    return [
        ""
        if np.isnan(first)
        else f"{first:.{digits}f}"
        + ("" if errors is None else f" ± {errors[i][0]:.{digits}f}")
        + "".join(f" / {mean:.3f}" for mean in others)
        for i, (first, *others) in enumerate(means)
    ]
