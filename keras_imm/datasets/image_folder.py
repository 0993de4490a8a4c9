"""Images in a folder, by index."""

import functools
import hashlib
import os
import pathlib
from typing import Any

_SUFFIXES = frozenset(
    (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
)
_SPLITS = frozenset(("test", "train", "val", "validation"))


class ImageFolder:
    """Image files below a folder: a class in each subfolder, or no classes.

    Classes are the subfolders in sorted order, records the files in sorted order of
    their class and path. Hidden files and files that are no images by their suffix do
    not count.

    Args:
        folder: The folder. Where its subfolders are splits ("train", "val", "test"),
            or two of them are, the one named `split` is taken. Links to folders are
            followed, and each folder is read once per class.
        split: Name of the split.

    Attributes:
        class_names: Names of the subfolders, or None where there are no classes.
        num_classes: How many there are, or 0.

    Raises:
        ValueError: If there is no image, a class has none, images lie both in the
            folder and in subfolders, or there is no such split.
    """

    def __init__(self, folder: str | os.PathLike, split: str = "train"):
        self.folder = _split_folder(pathlib.Path(folder), split)
        images, subfolders = _entries(self.folder)
        if images and subfolders:
            raise ValueError(
                f"A folder must hold images or subfolders of them. Received: "
                f"{self.folder} with the image {images[0]!r} and the subfolder "
                f"{subfolders[0]!r}"
            )
        self.class_names = list(subfolders) or None
        self.num_classes = len(subfolders)
        self._files, self._labels = images, None
        if subfolders:
            found = [_images_below(self.folder, name) for name in subfolders]
            self._files = [file for files in found for file in files]
            self._labels = [label for label, files in enumerate(found) for _ in files]
        if not self._files:
            raise ValueError(f"There is no image in {self.folder}.")

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The record `index`, as `{"image": bytes of the file, "label": int}`."""
        data = (self.folder / self._files[index]).read_bytes()
        return {"image": data, "label": self._labels[index] if self._labels else -1}

    def record_name(self, index: int) -> str:
        """Path of the file."""
        return str(self.folder / self._files[index])

    @functools.cached_property
    def fingerprint(self) -> dict[str, Any]:
        """What identifies the records and their order, wherever the folder is."""
        digest = hashlib.sha256()
        for file in self._files:
            size = (self.folder / file).stat().st_size
            digest.update(f"{pathlib.PurePath(file).as_posix()}\0{size}\n".encode())
        return {
            "kind": "folder",
            "num_records": len(self),
            "sha256": digest.hexdigest(),
        }


def _split_folder(folder, split):
    _, subfolders = _entries(folder)
    splits = [name for name in subfolders if name in _SPLITS]
    if len(splits) > 1 or (splits and splits == subfolders):
        if split not in splits:
            raise ValueError(
                f"`split` must be one of the splits in {folder}: "
                f"{', '.join(map(repr, splits))}. Received: split={split!r}"
            )
        return folder / split
    if split not in ("train", folder.name):
        raise ValueError(
            f"`split` must be left out: {folder} has no subfolder of that name beside "
            f"other splits. Received: split={split!r}"
        )
    return folder


def _entries(folder):
    """Names of the images and of the subfolders of a folder, sorted."""
    images, subfolders = [], []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                subfolders.append(entry.name)
            elif _is_image(entry.name):
                images.append(entry.name)
    return sorted(images), sorted(subfolders)


def _images_below(folder, name):
    """Paths, relative to the folder, of the images below its subfolder `name`."""
    found = []
    root = folder.resolve()
    seen = {root, *root.parents}  # where a link leads back to, there is a loop
    for parent, subfolders, files in os.walk(folder / name, followlinks=True):
        real = pathlib.Path(parent).resolve()
        if real in seen:
            subfolders.clear()
            continue
        seen.add(real)
        subfolders[:] = sorted(s for s in subfolders if not s.startswith("."))
        relative = os.path.relpath(parent, folder)
        found += [
            os.path.join(relative, file)
            for file in files
            if _is_image(file) and not file.startswith(".")
        ]
    if not found:
        raise ValueError(
            f"There is no image in the class {name!r}: {folder / name}. Remove the "
            "folder if it is not a class."
        )
    return sorted(found)


def _is_image(name):
    return os.path.splitext(name)[1].lower() in _SUFFIXES
