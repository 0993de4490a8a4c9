"""What samples are compared with: statistics of the features of data."""

import dataclasses
import os
import zipfile
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from keras_imm.files.atomic import atomic_file
from keras_imm.files.paths import user_path
from keras_imm.files.pickled_arrays import load_pickle, load_torch
from keras_imm.metrics.checks import check_count, check_features, check_real
from keras_imm.metrics.moments import Moments
from keras_imm.metrics.reservoir import FeatureReservoir
from keras_imm.validation import shortened

# As EDM and ADM call them in their files.
_NAMES = {
    "mean": "mu",
    "covariance": "sigma",
    "spatial_mean": "mu_s",
    "spatial_covariance": "sigma_s",
    "features": "features",
}


@dataclasses.dataclass(frozen=True)
class ReferenceStatistics:
    """Statistics of the features of data, which samples are compared with.

    Args:
        mean: Mean of the features, shape (num_features,).
        covariance: Their covariance, shape (num_features, num_features).
        spatial_mean: The same of the spatial features, for the sFID; or None.
        spatial_covariance: The same of the spatial features, for the sFID; or None.
        features: Features of some or all of the data, shape (num_images,
            num_features), for the metrics that need them; or None.

    Raises:
        ValueError: If a shape does not fit the others, or an entry is not finite.

    Example:

    ```python
    dataset = keras_imm.datasets.load("cifar10", batch_size=250, shuffle=False)
    network = keras_imm.metrics.InceptionV3()
    reference = keras_imm.metrics.ReferenceStatistics.from_dataset(dataset, network)
    reference.save("cifar10.npz")
    ```
    """

    mean: np.ndarray
    covariance: np.ndarray
    spatial_mean: np.ndarray | None = None
    spatial_covariance: np.ndarray | None = None
    features: np.ndarray | None = None

    def __post_init__(self) -> None:
        self._check_moments("mean", "covariance")
        if (self.spatial_mean is None) != (self.spatial_covariance is None):
            raise ValueError(
                "`spatial_mean` and `spatial_covariance` come together. Received one."
            )
        if self.spatial_mean is not None:
            self._check_moments("spatial_mean", "spatial_covariance")
        if self.features is not None:
            features = check_features(self.features, "features")
            self._set("features", features)
            if features.shape[1] != self.mean.size:
                raise ValueError(
                    f"`features` must have {self.mean.size} columns, as `mean` has "
                    f"entries. Received {features.shape[1]}."
                )

    def _check_moments(self, mean, covariance):
        for name, ndim in ((mean, 1), (covariance, 2)):
            array = check_real(getattr(self, name), name, ndim)
            self._set(name, array.astype(np.float64))
        size = getattr(self, mean).size
        if getattr(self, covariance).shape != (size, size):
            raise ValueError(
                f"`{covariance}` must have shape {(size, size)}, as `{mean}` has "
                f"{size} entries. Received {getattr(self, covariance).shape}."
            )

    def _set(self, name, value):
        object.__setattr__(self, name, value)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "ReferenceStatistics":
        """Reads a file in any of the formats in use.

        - `.npz` with `mu` and `sigma`, as EDM and others have it; with `mu_s` and
          `sigma_s` too, as the `VIRTUAL_*.npz` of ADM, whose images are left alone;
          with `features` too, as `save` writes it;
        - `.pkl` with `mu` and `sigma`, or those under `fid`, as EDM2 has it;
        - `.pt` of torch-fidelity's cache: its `stat-fid` or its `features`.

        Nothing in a pickle is run, and PyTorch need not be installed.

        Args:
            path: The file.

        Returns:
            `ReferenceStatistics`.

        Raises:
            ValueError: If there is no such file, or it is of another kind.
        """
        path = user_path(path)
        if not path.is_file():
            raise ValueError(
                "`path` must be a file of statistics (.npz, .pkl or .pt). "
                f"Received: {str(path)!r}"
            )
        try:
            return cls._from_saved(_read(path))
        except (ValueError, KeyError, OSError, zipfile.BadZipFile) as error:
            raise ValueError(f"{path} cannot be read as statistics: {error}") from error

    @classmethod
    def _from_saved(cls, saved: Any) -> "ReferenceStatistics":
        if isinstance(saved, np.ndarray):
            features = check_features(saved)
            return cls(*_moments(features), features=features)
        if "mu" not in saved and isinstance(saved.get("fid"), dict):
            saved = saved["fid"]
        for name in ("mu", "sigma"):
            if name not in saved:
                found = shortened(", ".join(sorted(map(str, saved))))
                raise ValueError(f"it has {found}, but no {name}")
        return cls(
            **{field: saved[name] for field, name in _NAMES.items() if name in saved}
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes an `.npz` that EDM's and ADM's evaluators read as well.

        Args:
            path: The file, replaced if it is there.
        """
        arrays = {
            name: getattr(self, field)
            for field, name in _NAMES.items()
            if getattr(self, field) is not None
        }
        with atomic_file(user_path(path)) as unfinished, open(unfinished, "wb") as file:
            np.savez(file, **arrays)

    @classmethod
    def from_dataset(
        cls,
        dataset: Any,
        network: Any,
        to_uint8: Callable[[np.ndarray], np.ndarray] | None = None,
        max_features: int = 50_000,
        seed: int = 0,
        verbose: int = 0,
    ) -> "ReferenceStatistics":
        """Computes the statistics of a data set.

        Args:
            dataset: What `keras_imm.datasets.load` returns, of which all records are
                taken, or another sequence of batches of images, or of (images, labels).
            network: An `InceptionV3`, or a function from uint8 images to features of
                shape (batch, num_features).
            to_uint8: From the data set's batches to uint8 images (batch, H, W, C).
                Default: uint8 as it is, floats from [-1, 1].
            max_features: Features to keep at most, a fair sample of all; at least 2.
            seed: Integer of at least 0 that decides which.
            verbose: 1 for a progress bar, 0 for silence.

        Returns:
            `ReferenceStatistics`.

        Raises:
            ValueError: If an epoch of the data set leaves records out or takes some
                twice, also in the place of corrupt ones, or the images are not in the
                range [-1, 1].
        """
        _check_whole(dataset)
        to_uint8 = to_uint8 or _from_model_range
        moments, spatial = Moments(), Moments()
        kept = FeatureReservoir(max_features, seed)
        progress = keras.utils.Progbar(len(dataset), verbose=verbose)
        for i in range(len(dataset)):
            batch = dataset[i]
            images = batch[0] if isinstance(batch, tuple | list) else batch
            found = named_features(network, to_uint8(np.asarray(images)))
            moments.update(found["features"])
            kept.update(found["features"])
            if "spatial" in found:
                spatial.update(found["spatial"])
            progress.add(1)
        _check_no_record_was_skipped(dataset)
        return cls(
            moments.mean,
            moments.covariance(),
            spatial.mean,
            spatial.covariance() if spatial.count else None,
            kept.features(),
        )


def named_features(network: Any, images: np.ndarray) -> dict[str, np.ndarray]:
    """What a network makes of images: "features", and "spatial" and "logits" if any.

    Args:
        network: An `InceptionV3`, or a function from uint8 images to features, or to a
            dictionary of those names.
        images: uint8 (batch, H, W, C).

    Returns:
        Arrays by name.

    Raises:
        ValueError: If there are no features.
    """
    if hasattr(network, "taps"):
        found = network.features(images)
        names = {"2048": "features", "logits_unbiased": "logits", "spatial": "spatial"}
        found = {names[tap]: found[tap] for tap in network.taps if tap in names}
    else:
        found = network(images)
        found = found if isinstance(found, dict) else {"features": found}
    if "features" not in found:
        raise ValueError(
            '`network` must have the tap "2048", or make "features". '
            f"Received: {', '.join(found)}"
        )
    return found


def _read(path):
    suffix = path.suffix.lower()
    if suffix == ".npz":
        with np.load(path, allow_pickle=False) as file:
            wanted = (name for name in _NAMES.values() if name in file.files)
            saved = {name: file[name] for name in wanted}
            return saved or dict.fromkeys(file.files)
    if suffix in (".pt", ".pth"):
        saved = load_torch(path)
    elif suffix == ".pkl":
        saved = load_pickle(path)
    else:
        raise ValueError("its name must end in .npz, .pkl or .pt")
    if not isinstance(saved, dict | np.ndarray):
        raise ValueError(f"it holds a {type(saved).__name__}")
    return saved


def _moments(features):
    moments = Moments()
    moments.update(features)
    return moments.mean, moments.covariance()


def _check_whole(dataset):
    records = getattr(dataset, "num_records", None)
    if records is None:
        check_count(len(dataset), "dataset", at_least=1)
        return
    read = len(dataset) * dataset.batch_size
    if read != records:
        raise ValueError(
            f"An epoch of `dataset` must be its {records} records, each once: load it "
            "with a `batch_size` that divides them and without `steps_per_epoch`. "
            f"Received: {len(dataset)} batches of {dataset.batch_size}"
        )


def _check_no_record_was_skipped(dataset):
    if corrupt := getattr(dataset, "corrupt", None):
        raise ValueError(
            f"{len(corrupt)} records of `dataset` cannot be read and others took their "
            "place, so that those count twice: leave them out, beginning with "
            f"{next(iter(corrupt))!r}"
        )


def _from_model_range(images):
    if images.dtype == np.uint8:
        return images
    check_real(images, "images", images.ndim)
    lowest, highest = float(images.min()), float(images.max())
    if lowest < -1.001 or highest > 1.001:
        raise ValueError(
            "Images must be uint8, or floats in [-1, 1]; give `to_uint8` for others. "
            f"Received: {images.dtype} from {lowest:g} to {highest:g}"
        )
    return np.clip(np.rint(127.5 * images + 127.5), 0, 255).astype("uint8")
