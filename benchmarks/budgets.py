"""Data, network and measure of benchmarks that compare small models."""

import numpy as np

import keras_imm


class Data:
    """Images, labels, a backbone and a measure.

    Args:
        name: "digits" or "fashion_mnist".

    Attributes:
        arrays: Images of mean 0 and standard deviation 0.5, and labels.
        labels: What is asked for when the samples are measured.
    """

    def __init__(self, name):
        self._to_measure = None
        if name == "digits":
            self.arrays = keras_imm.metrics.digits.load_digits()
            self._quality = keras_imm.metrics.DigitsQuality()
            self.labels = self._quality.labels()
            self._network = {"patch_size": 2, "hidden_size": 64, "depth": 3}
        else:
            images, labels = keras_imm.datasets.fashion_mnist("train")
            mean, scale = float(images.mean()), float(images.std()) / 0.5
            images = (images[..., None] - np.float32(mean)) / np.float32(scale)
            self.arrays = images, labels
            self._quality = keras_imm.metrics.FashionMNISTQuality()
            self.labels = self._quality.labels(10_000)
            self._network = {"patch_size": 7, "hidden_size": 176, "depth": 4}
            self._to_measure = keras_imm.Pixels(scale=scale, offset=mean)

    def backbone(self, **arguments):
        """A new network, with some of its arguments replaced."""
        return keras_imm.backbones.DiT(
            image_shape=self.arrays[0].shape[1:],
            num_heads=4,
            num_classes=10,
            **{**self._network, **arguments},
        )

    def measure(self, samples):
        """Fréchet distance, agreement, and what else the measure knows."""
        if self._to_measure is not None:
            samples = self._to_measure(samples)
        return self._quality.measure(samples, self.labels)


def rows_of(model, data, step_counts, seed):
    """What samples of each number of steps are like, by the model's own sampler."""
    rows = []
    for count in step_counts:
        samples = model.generate(
            data.labels, num_steps=count, seed=seed, batch_size=500, verbose=0
        )
        rows.append({"steps": count, **data.measure(samples)})
    return rows


def cells(results):
    """Of runs of several seeds: means ± standard errors / agreement, by step count."""
    values = np.array(
        [[(r["frechet"], r["agreement"]) for r in rows] for rows in results]
    )
    means, count = values.mean(axis=0), len(values)
    errors = values.std(axis=0, ddof=1) / np.sqrt(count) if count > 1 else None
    return [
        f"{mean[0]:.3f}"
        + ("" if errors is None else f" ± {errors[i][0]:.3f}")
        + f" / {mean[1]:.3f}"
        for i, mean in enumerate(means)
    ]
