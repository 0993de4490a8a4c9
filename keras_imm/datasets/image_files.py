"""Images in files, by index: which of them count, and their classes."""

import collections
import functools
import hashlib
import re
import warnings
from typing import Any

from keras_imm.datasets.file_trees import FolderTree, ZipTree
from keras_imm.datasets.image_endings import described, ending, image_endings
from keras_imm.datasets.label_file import LABEL_FILE, read_labels
from keras_imm.datasets.split_names import (
    choose_split,
    split_of,
    split_part,
    splits_among,
)
from keras_imm.validation import shortened

_SHARD = re.compile(r"\d{5}")
_NUMBERED = re.compile(r"(?:.*/)?(?:img)?(\d{1,12})\.\w+")
_SHARD_SIZE = 1000


class ImageFiles:
    """Images of a tree of files: a class in each subfolder, or no classes.

    Classes are the subfolders in sorted order, records the files in sorted order of
    their class and path. Where there is a `dataset.json`, as the tools of StyleGAN and
    EDM write it, it has the labels, subfolders are no classes, and records are in the
    sorted order of their paths. Hidden files do not count; other files that are no
    images by their ending are named in a warning.

    Args:
        tree: A `FolderTree` or `ZipTree`.
        split: Name of the split, where the subfolders are splits, or two of them are:
            that of the subfolder, or one that stands for the same, see `split_of`. A
            part of it, "train[:90%]", is the first 90% of each class in the order of
            the records, rounded to whole images.
        labels: Whether labels are asked for. Without them `dataset.json` is not read.
        top: Folder of the tree that is taken for the whole.

    Attributes:
        class_names: Names of the subfolders, or None where they are no classes.
        num_classes: The largest label plus 1, or 0.

    Raises:
        ValueError: If there is no image, a class has none, images lie both in the
            folder and in subfolders, there is no such split, subfolders are neither
            splits nor classes, or `dataset.json` does not fit the images.
    """

    def __init__(
        self,
        tree: FolderTree | ZipTree,
        split: str = "train",
        labels: bool = True,
        top: str = "",
    ):
        self._tree = tree
        split, part = split_part(split)
        self._root = _chosen_root(tree, top, split)
        self._endings = image_endings()
        self._ignored = []
        self.class_names = self._labels = None
        files, folders = tree.listing(self._root)
        if LABEL_FILE in files:
            self._files = self._images(tree.below(self._root), but=LABEL_FILE)
            if labels and self._files:
                self._labels = self._read_labels()
        else:
            self._files = self._images(files)
            self._check_not_mixed(folders)
            if folders:
                self._read_classes(folders, labels)
        if not self._files:
            raise ValueError(f"There is no image in {self._name()}{self._only()}.")
        self.num_classes = max(self._labels) + 1 if self._labels else 0
        self._take(*part)
        if self._ignored:
            warnings.warn(
                f"Files in {self._name()} that are no images by their ending are left "
                f"out, {len(self._ignored)} in all: {described(self._ignored)}.",
                stacklevel=5,
            )
            self._ignored.clear()  # they may be many, and go to other processes

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The record `index`, as `{"image": bytes of the file, "label": int}`."""
        data = self._tree.read(_joined(self._root, self._files[index]))
        return {"image": data, "label": self._labels[index] if self._labels else -1}

    def record_name(self, index: int) -> str:
        """Path of the file."""
        return self._name(self._files[index])

    @functools.cached_property
    def fingerprint(self) -> dict[str, Any]:
        """What identifies the records and their order, wherever they are."""
        digest = hashlib.sha256()
        for index, file in enumerate(self._files):
            size = self._tree.size(_joined(self._root, file))
            # Names need not be text.
            digest.update(f"{file}\0{size}\n".encode(errors="surrogateescape"))
            if self._labels and not self.class_names:
                digest.update(f"{self._labels[index]}\n".encode())
        return {
            "kind": "folder",
            "num_records": len(self),
            "sha256": digest.hexdigest(),
        }

    def _take(self, first, last):
        """Keeps the records between two percentages of each class."""
        if (first, last) == (0, 100):
            return
        indices = collections.defaultdict(list)
        for index, label in enumerate(self._labels or [-1] * len(self._files)):
            indices[label].append(index)
        kept = sorted(
            index
            for of_class in indices.values()
            for index in of_class[_share(of_class, first) : _share(of_class, last)]
        )
        if not kept:
            raise ValueError(
                f"`split` must hold an image. Received: {first}% to {last}% of each "
                f"class of {self._name()}, whose largest has "
                f"{max(map(len, indices.values()))}."
            )
        self._files = [self._files[index] for index in kept]
        if self._labels:
            self._labels = [self._labels[index] for index in kept]

    def _name(self, path=""):
        return self._tree.name(_joined(self._root, path))

    def _images(self, paths, but=None):
        """Those of the paths that are images; the others are remembered."""
        images = []
        for path in paths:
            if ending(path) in self._endings:
                images.append(path)
            elif path != but:
                self._ignored.append(path)
        return images

    def _only(self):
        return f", only {described(self._ignored)}" if self._ignored else ""

    def _read_labels(self):
        content = self._tree.read(_joined(self._root, LABEL_FILE))
        return read_labels(content, self._files, self._name(LABEL_FILE))

    def _read_classes(self, folders, labels):
        found = {name: self._class_images(name) for name in folders}
        if labels:
            self._check_classes(found)
        self.class_names = list(folders)
        self._files = [f"{name}/{image}" for name in folders for image in found[name]]
        self._labels = [i for i, name in enumerate(folders) for _ in found[name]]

    def _class_images(self, name):
        """Paths of the images of a class, relative to its folder."""
        files, where = self._tree.below(_joined(self._root, name)), self._name(name)
        images = self._images(files)
        if LABEL_FILE in files:
            raise ValueError(
                f"{where} must be a class, but has a {LABEL_FILE} of its own. Give "
                f"source={where!r} for its labels."
            )
        if not images:
            raise ValueError(
                f"There is no image in the class {name!r}: {where}"
                f"{f' has only {described(files)}' if files else ''}. Remove the "
                "folder if it is not a class."
            )
        inside = {path.partition("/")[0] for path in images if "/" in path}
        splits = splits_among(sorted(inside))
        if len(set(splits.values())) > 1:
            raise ValueError(
                f"Splits must hold classes, not classes splits. Received: {where} with "
                f"{shortened(', '.join(map(repr, splits)))}"
            )
        return images

    def _check_not_mixed(self, folders):
        if self._files and folders:
            raise ValueError(
                f"A folder must hold images or subfolders of them. Received: "
                f"{self._name()} with the image {self._files[0]!r} and the subfolder "
                f"{folders[0]!r}"
            )

    def _check_classes(self, found):
        """Raises ValueError if the subfolders, with their images, are no classes."""
        where = self._name()
        if _is_sharded(found):
            raise ValueError(
                f"The subfolders of {where} must be classes. Received: parts of one "
                f"numbered list, {min(found)!r} and so on, as StyleGAN stores images, "
                f"without its {LABEL_FILE}. Give labels=False to read images alone."
            )
        ((name, images), *others) = found.items()
        if not others and all("/" in image for image in images):
            raise ValueError(
                f"{where} must hold the folder of each class. Received: one folder, "
                f"{name!r}, with folders of images. Give source={self._name(name)!r}, "
                "or labels=False to read images alone."
            )


def single_top_folder(tree: FolderTree | ZipTree) -> str:
    """The folder that holds all images of a tree, and is no split; or the tree."""
    top = ""
    while True:
        files, folders = tree.listing(top)
        is_data = LABEL_FILE in files or _any_image(files)
        if is_data or len(folders) != 1 or split_of(folders[0]):
            return top
        top = _joined(top, folders[0])


def _chosen_root(tree, top, split):
    """The folder of the split, or the top where there are no splits."""
    files, folders = tree.listing(top)
    splits, where = splits_among(folders), tree.name(top)
    if splits and LABEL_FILE in files:
        raise ValueError(
            f"{LABEL_FILE} must lie in the folder of a split. Received: {where} with "
            f"{LABEL_FILE} and the splits {shortened(', '.join(map(repr, splits)))}. "
            "Move it, or rename the folders if they are no splits."
        )
    if splits:
        return _joined(top, choose_split(split, splits, where))
    if LABEL_FILE not in files:
        _check_lone_splits(tree, top, folders)
    name = where.replace("\\", "/").rpartition("/")[2].removesuffix(".zip")
    is_itself = (
        split in ("train", name) or split_of(split) == split_of(name) is not None
    )
    if not is_itself:
        raise ValueError(
            f"`split` must be left out: {where} has no subfolder of that name beside "
            "other splits. To hold images out, take parts, 'train[:90%]' and "
            "'train[90%:]', or move some of each class into a folder 'validation' "
            f"beside 'train'. Received: split={split!r}"
        )
    return top


def _check_lone_splits(tree, top, folders):
    """Raises ValueError if a folder among classes is called a split and holds some."""
    for name in filter(split_of, folders):
        inside = _joined(top, name)
        files, inner = tree.listing(inside)
        if inner and not _any_image(files):
            other = next(folder for folder in folders if folder != name)
            raise ValueError(
                f"{tree.name(top)} must hold splits or classes. Received: {name!r}, a "
                f"split with subfolders, beside {other!r}. Give "
                f"source={tree.name(inside)!r}, or rename what is a class."
            )


def _share(values, percent):
    """So many percent of their number, rounded half up."""
    return (len(values) * percent + 50) // 100


def _is_sharded(found):
    """Whether folders are parts of one numbered list: 00001/img00001234.png or so."""
    return all(map(_SHARD.fullmatch, found)) and all(
        _is_of_shard(int(name), image) for name in found for image in found[name]
    )


def _is_of_shard(shard, image):
    match = _NUMBERED.fullmatch(image)
    # StyleGAN counts the parts, FFHQ names them after their first image.
    part = int(match[1]) // _SHARD_SIZE if match else None
    return match is not None and shard in (part, part * _SHARD_SIZE)


def _any_image(files):
    endings = image_endings()
    return any(ending(file) in endings for file in files)


def _joined(folder, name):
    return f"{folder}/{name}" if folder and name else folder or name
