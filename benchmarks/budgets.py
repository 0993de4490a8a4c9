"""Data, network and measure of benchmarks that compare small models."""

import numpy as np

import keras_imm


class Data:
    """Images, labels, a backbone and a measure.

    Args:
        name: "digits" or "fashion_mnist".
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
            images = (images[..., None] - np.float32(mean)) / np.float32(scale)
            self.arrays = images, labels
            self._quality = keras_imm.metrics.FashionMNISTQuality()
            self.labels = self._quality.labels(num_samples)
            self._network = {"patch_size": 7, "hidden_size": 176, "depth": 4}
            self._to_measure = keras_imm.Pixels(scale=scale, offset=mean)
            self._reference = self._quality.reference
            self.of_neighbours = (1, 2)

    def _features(self, images):
        """What precision and recall look at: of digits, their pixels."""
        if self._to_measure is None:
            return images.reshape(len(images), -1)
        return self._quality.classifier.outputs_of(images)["features"]

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
            samples = self._to_measure(samples)
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


def rows_of(model, data, step_counts, seed, of_neighbours=None, sampler=None):
    """What samples of each number of steps are like, by the model's own sampler.

    Another sampler may be given. Precision and recall are of the numbers of steps in
    `of_neighbours`, by default of those that `data` names.
    """
    if of_neighbours is None:
        of_neighbours = data.of_neighbours or step_counts
    rows = []
    for count in step_counts:
        samples = model.generate(
            *(data.labels,),
            **{"num_steps": count, "seed": seed, "sampler": sampler},
            **{"batch_size": 500, "verbose": 0},
        )
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
