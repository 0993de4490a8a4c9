"""What examples/evaluate.py does for one number of steps and one guidance scale.

Images are numbered. The noise and the label of image i depend on the seed and i alone,
so batches, devices, processes and interruptions change none of them.
"""

import dataclasses
import json
import pathlib
import time
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from keras_imm import samplers
from keras_imm.files.atomic import atomic_file, write_text
from keras_imm.metrics import ReferenceStatistics, SampleQuality
from keras_imm.metrics.reference_statistics import named_features


@dataclasses.dataclass(frozen=True)
class Setting:
    """How images are sampled.

    Attributes:
        num_steps: Steps of the sampler.
        guidance_scale: Weight of classifier-free guidance, or None.
    """

    num_steps: int
    guidance_scale: float | None

    @property
    def name(self) -> str:
        guidance = "" if self.guidance_scale is None else f"_w{self.guidance_scale:g}"
        return f"steps{self.num_steps}{guidance}"

    def __str__(self) -> str:
        steps = f"{self.num_steps} step{'s' if self.num_steps > 1 else ''}"
        if self.guidance_scale is None:
            return steps
        return f"{steps}, guidance {self.guidance_scale:g}"


@dataclasses.dataclass(frozen=True)
class Images:
    """Images of a model, by number.

    Attributes:
        model: The `FlowMapModel`.
        to_uint8: From its samples to uint8 images (batch, H, W, C).
        seed: Of noise and labels.
        sampler: A name of `keras_imm.samplers.SAMPLERS`.
        time_grid: "uniform", "edm", or values of eta: those are used where they make
            the number of steps, and "uniform" elsewhere.
        weights: "ema" or "raw".
        guidance_interval: Pair of times outside of which guidance is off, or None.
    """

    model: Any
    to_uint8: Callable[[np.ndarray], np.ndarray]
    seed: int = 0
    sampler: str = "pushforward"
    time_grid: Any = "uniform"
    weights: str = "ema"
    guidance_interval: tuple[float, float] | None = None

    def plan(self, setting: Setting) -> samplers.SamplingPlan:
        """How the images of a setting are sampled."""
        grid, steps = self.time_grid, setting.num_steps
        if not isinstance(grid, str) and len(grid) + 1 != steps:
            grid = "uniform"
        scale = None if setting.guidance_scale == 1.0 else setting.guidance_scale
        return samplers.SamplingPlan(
            num_steps=steps,
            sampler=self.sampler,
            time_grid=grid,
            guidance_scale=scale,
            guidance_interval=None if scale is None else self.guidance_interval,
            weights=self.weights,
        )

    def draws(self, indices: Any, draws: int = 1) -> tuple[np.ndarray, np.ndarray]:
        """Labels (n,) and noise (draws, n, ...) of images."""
        model = self.model
        return samplers.numbered_draws(
            self.seed, indices, draws, model.data_shape, model.num_classes
        )

    def labels(self, indices: Any) -> np.ndarray:
        """Labels of images, int32."""
        model = self.model
        no_noise = (0,)  # labels are drawn before it
        found = samplers.numbered_draws(
            self.seed, indices, 1, no_noise, model.num_classes
        )
        return found[0]

    def generate(self, indices: Any, setting: Setting) -> np.ndarray:
        """uint8 images (len(indices), H, W, C)."""
        plan = self.plan(setting)
        labels, noise = self.draws(indices, 1 + plan.noises())
        x = self.model.generate(
            labels=labels if self.model.num_classes else None,
            noise=noise,
            batch_size=len(labels),
            verbose=0,
            **plan.arguments(),
        )
        finite = np.isfinite(x).reshape(len(x), -1).all(axis=1)
        if not finite.all():
            raise ValueError(f"Image {indices[np.argmin(finite)]} is not finite.")
        return self.to_uint8(x)


def num_devices() -> int:
    """Devices that share a batch of this process."""
    distribution = keras.distribution.distribution()
    return 1 if distribution is None else distribution.num_model_replicas


def for_any_batch(function: Callable) -> Callable:
    """A function of batches that the devices share, for batches of any size."""

    def of_batch(batch):
        missing = -len(batch) % num_devices()
        padding = [(0, missing)] + [(0, 0)] * (batch.ndim - 1)
        found = function(np.pad(batch, padding, "edge"))
        return keras.tree.map_structure(lambda array: array[: len(batch)], found)

    return of_batch


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Generates and measures images, and goes on where it was killed.

    Attributes:
        images: What to generate.
        network: From uint8 images to features, as `named_features` takes it.
        reference: What the images are compared with.
        folder: Where the state of each setting is kept.
        num_images: How many images.
        batch_size: Images in one pass.
        process: (index, count): this process, and how many share the batches.
        max_features: Images to keep features of.
        save_every: Seconds between states.
        keep_images: Whether to keep the images.
    """

    images: Images
    network: Any
    reference: ReferenceStatistics
    folder: pathlib.Path
    num_images: int
    batch_size: int
    process: tuple[int, int] = (0, 1)
    max_features: int = 50_000
    save_every: float = 300.0
    keep_images: bool = False

    @property
    def is_chief(self) -> bool:
        return self.process[0] == 0

    def run(self, setting: Setting) -> dict[str, float] | None:
        """The metrics of one setting; None in a process that is not the first."""
        folder = self.folder / setting.name
        folder.mkdir(parents=True, exist_ok=True)
        result = folder / "result.json"
        if not result.exists():
            self._measure_share(setting, folder)
            if self.is_chief:
                quality, seconds = self._merged(folder)
                found = quality.result()
                found["seconds_per_1000_images"] = 1000 * seconds / self.num_images
                write_text(result, json.dumps(found))
                for state in folder.glob("process_*.npz"):
                    state.unlink()
        return json.loads(result.read_text()) if self.is_chief else None

    def kept_images(self, setting: Setting) -> np.ndarray:
        """The images of a setting that has run, read from the disk."""
        return np.load(self.folder / setting.name / "images.npy", mmap_mode="r")

    def forget_images(self, setting: Setting) -> None:
        """Frees the disk of the images of a setting."""
        (self.folder / setting.name / "images.npy").unlink()

    # -- One process's share

    def _measure_share(self, setting, folder):
        index, count = self.process
        starts = range(0, self.num_images, self.batch_size)[index::count]
        path = self._state_path(folder, index)
        quality, done, seconds = self._load(path)
        remaining = starts[done:]
        ends = [min(start + self.batch_size, self.num_images) for start in remaining]
        target = sum(ends) - sum(remaining)
        progress = keras.utils.Progbar(
            max(1, target), verbose=int(self.is_chief and target > 0), unit_name="image"
        )
        start_time = last = time.monotonic()
        for start, end in zip(remaining, ends, strict=True):
            self._measure(setting, folder, quality, np.arange(start, end))
            done += 1
            now = time.monotonic()
            if now - last >= self.save_every and done < len(starts):
                self._save(path, quality, done, seconds + now - start_time)
                last = now
            progress.add(end - start)
        if target or not path.exists():
            seconds += time.monotonic() - start_time
            self._save(path, quality, len(starts), seconds)

    def _measure(self, setting, folder, quality, indices):
        # A short batch is filled, so that nothing is compiled for it.
        missing = self.batch_size - len(indices)
        images = self.images.generate(np.pad(indices, (0, missing), "edge"), setting)
        found = named_features(self.network, images)
        quality.update(
            **{name: array[: len(indices)] for name, array in found.items()},
            indices=indices,
        )
        if self.keep_images:
            stored = self._stored(folder, images.shape[1:])
            stored[indices[0] : indices[-1] + 1] = images[: len(indices)]
            stored.flush()

    def _stored(self, folder, shape):
        """The file of all images, which the first process makes."""
        path = folder / "images.npy"
        if self.is_chief and not path.exists():
            shape = (self.num_images, *shape)
            with atomic_file(path) as unfinished:
                np.lib.format.open_memmap(unfinished, "w+", "uint8", shape).flush()
        wait_for(path.exists, "the first process's images")
        return np.lib.format.open_memmap(path, "r+")

    # -- States

    def _state_path(self, folder, index):
        return folder / f"process_{index}_of_{self.process[1]}.npz"

    def _load(self, path):
        quality = SampleQuality(self.reference, self.max_features, self.images.seed)
        if not path.exists():
            return quality, 0, 0.0
        with np.load(path) as file:
            state = dict(file)
        quality.set_state(state)
        return quality, int(state["done"]), float(state["seconds"])

    def _save(self, path, quality, done, seconds):
        state = {"done": np.array(done), "seconds": np.array(seconds)}
        with atomic_file(path) as unfinished:
            np.savez(unfinished, **state, **quality.state())

    def _merged(self, folder):
        """The quality of all processes' images, and the seconds of all."""
        whole = SampleQuality(self.reference, self.max_features, self.images.seed)
        seconds, count = 0.0, self.process[1]
        batches = -(-self.num_images // self.batch_size)
        for index in range(count):
            path, share = (
                self._state_path(folder, index),
                len(range(batches)[index::count]),
            )
            wait_for(lambda p=path, s=share: _done(p) == s, f"process {index}")
            part, _, part_seconds = self._load(path)
            whole.merge(part)
            seconds += part_seconds
        return whole, seconds


def _done(path):
    if not path.exists():
        return -1
    with np.load(path) as file:
        return int(file["done"])


def wait_for(condition: Callable[[], bool], what: str) -> None:
    """Waits for another process, and says so once."""
    told = False
    while not condition():
        if not told:
            print(f"Waiting for {what}.", flush=True)
            told = True
        time.sleep(0.5)
