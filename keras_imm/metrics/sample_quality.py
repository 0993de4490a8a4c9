"""All metrics of samples, in one pass over them."""

from typing import Any

import numpy as np

from keras_imm.metrics.frechet import FrechetDistance
from keras_imm.metrics.inception_score import inception_score
from keras_imm.metrics.kernel_distance import kernel_distance
from keras_imm.metrics.manifolds import density_coverage, precision_recall
from keras_imm.metrics.reference_statistics import ReferenceStatistics
from keras_imm.metrics.reservoir import FeatureReservoir
from keras_imm.validation import check_instance

_SUBSET = 1000  # of the kernel distance, where there are so many samples
_SPLITS = 10  # of the Inception Score
_PRECISION_K, _DENSITY_K = 3, 5


class SampleQuality:
    """Every metric that a reference and the features allow, with the usual settings.

    Args:
        reference: What the samples are compared with. Kernel distance, precision,
            recall, density and coverage need its `features`; the spatial Fréchet
            distance its `spatial_mean`.
        max_samples: Samples to keep features and logits of, at least 2; of more, a fair
            sample. The Fréchet distances take all.
        seed: Integer of at least 0 that decides which.

    Raises:
        ValueError: If an argument is out of its range.

    Example:

    ```python
    quality = keras_imm.metrics.SampleQuality(reference)
    for images in batches:  # uint8
        found = network.features(images)
        quality.update(found["2048"], found["spatial"], found["logits_unbiased"])
    quality.result()  # {"frechet": ..., "precision": ..., ...}
    ```
    """

    def __init__(
        self, reference: ReferenceStatistics, max_samples: int = 50_000, seed: int = 0
    ):
        check_instance("reference", reference, ReferenceStatistics)
        self.reference = reference
        self._parts: dict[str, Any] = {
            "frechet": FrechetDistance(reference.mean, reference.covariance),
            "features": FeatureReservoir(max_samples, seed),
            "logits": FeatureReservoir(max_samples, seed),
        }
        if reference.spatial_mean is not None:
            self._parts["spatial"] = FrechetDistance(
                reference.spatial_mean, reference.spatial_covariance
            )

    @property
    def count(self) -> int:
        """Samples so far."""
        return self._parts["frechet"].moments.count

    def update(
        self,
        features: Any,
        spatial: Any = None,
        logits: Any = None,
        indices: Any = None,
    ) -> None:
        """Adds samples.

        Args:
            features: Array of shape (num_samples, num_features).
            spatial: Spatial features, or None where there are none.
            logits: Logits for the Inception Score, or None.
            indices: Integers, the number of each sample among all. Give them where
                several processes share the samples. Default: in the order given.

        Raises:
            ValueError: If something is not finite, or of another size than before or
                than the reference.
        """
        self._parts["frechet"].update(features)
        if self.reference.features is not None:
            self._parts["features"].update(features, indices)
        if spatial is not None and "spatial" in self._parts:
            self._parts["spatial"].update(spatial)
        if logits is not None:
            self._parts["logits"].update(logits, indices)

    def merge(self, other: "SampleQuality") -> None:
        """Adds what another one, in another process, was given."""
        for name, part in self._parts.items():
            part.merge(other._parts[name])

    def state(self) -> dict[str, np.ndarray]:
        """Arrays from which `set_state` makes the same again, elsewhere."""
        return {
            f"{name}/{key}": array
            for name, part in self._parts.items()
            for key, array in part.state().items()
        }

    def set_state(self, state: dict[str, np.ndarray]) -> None:
        """Takes over what `state` returned."""
        for name, part in self._parts.items():
            keys = (key for key in state if key.startswith(f"{name}/"))
            part.set_state({key.partition("/")[2]: state[key] for key in keys})

    def result(self) -> dict[str, float]:
        """The metrics by name.

        Returns:
            `frechet`; `spatial_frechet` if there are spatial features;
            `inception_score` and `inception_score_std` if there are logits; and if the
            reference has features `kernel_distance`, `kernel_distance_std`,
            `precision`, `recall`, `density` and `coverage`.

        Raises:
            ValueError: If there are fewer than two samples, or fewer than a metric
                needs.
        """
        found = {"frechet": self._parts["frechet"].result()}
        if "spatial" in self._parts and self._parts["spatial"].moments.count:
            found["spatial_frechet"] = self._parts["spatial"].result()
        if self._parts["logits"].count:
            logits = self._parts["logits"].features()
            score = inception_score(logits, min(_SPLITS, len(logits)))
            found["inception_score"], found["inception_score_std"] = score
        if self.reference.features is not None:
            found |= _of_features(
                self._parts["features"].features(), self.reference.features
            )
        return found


def _of_features(features, reference):
    size = min(_SUBSET, len(features), len(reference))
    distance = kernel_distance(features, reference, subset_size=size)
    return {
        "kernel_distance": distance.mean,
        "kernel_distance_std": distance.std,
        **precision_recall(features, reference, _PRECISION_K)._asdict(),
        **density_coverage(features, reference, _DENSITY_K)._asdict(),
    }
