"""One way in for every source of training data."""

import os
import warnings
import zipfile
from typing import Any

from keras_imm.datasets.idx_files import IdxFiles, holds_idx_files, is_idx_file
from keras_imm.datasets.image_arrays import (
    ImageArrays,
    ImageArraysFile,
    holds_arrays,
)
from keras_imm.datasets.image_dataset import ImageDataset
from keras_imm.datasets.image_folder import ImageFolder, ImageZip
from keras_imm.datasets.latent_shards import LatentShards
from keras_imm.datasets.prepared_dataset import PreparedDataset
from keras_imm.datasets.records import ImageRecords, LatentRecords
from keras_imm.files.paths import user_path
from keras_imm.validation import (
    check_boolean,
    check_integer,
    check_positive_number,
    shortened,
)


def load(
    source: Any,
    batch_size: int,
    *,
    split: str = "train",
    data_dir: str | os.PathLike[str] | None = None,
    image_size: int | None = None,
    channels: int | None = None,
    flip: bool = False,
    seed: int = 0,
    shuffle: bool = True,
    steps_per_epoch: int | None = None,
    num_workers: int = 0,
    on_corrupt: str = "raise",
    process_index: int = 0,
    process_count: int = 1,
    labels: bool = True,
    sigma_data: float = 0.5,
) -> ImageDataset:
    """Batches of images or latents for `fit`, from wherever they are.

    Args:
        source: One of

            - the name of a data set of tensorflow-datasets (tfds), such as "cifar10",
              "imagenet2012" or "imagenet_resized/64x64", prepared as array_record;
            - a folder of images, or a zip file of such a folder: with a subfolder for
              each class, without classes, or with a `dataset.json` that has the labels,
              as the tools of StyleGAN and EDM write it;
            - a `.npz` file of images (`images`, `x` or `arr_0`) and labels (`labels`,
              `y` or `arr_1`), or a `.npy` file of images;
            - an IDX file of images, as MNIST's `train-images-idx3-ubyte` or
              `train-images-idx3-ubyte.gz`, with its labels, if any, beside it in
              `train-labels-idx1-ubyte` or that with `.gz`; or a folder of such files;
            - a folder of latents, as `examples/encode_latents.py` writes it;
            - an array of images, or a tuple (images, labels).

            Images in files and arrays are uint8 of shape (num_records, H, W, C) or
            (num_records, H, W), or floats in the model's range, which are taken as they
            are: about [-1, 1], or of standard deviation `sigma_data` of the model, 0.5
            by default. They are refused above 20 in absolute value; floats that look
            unscaled otherwise, such as those in [0, 1] or [0, 16], are a warning. Files
            count as images by the endings that Pillow knows, in any case; how many do
            not is a warning.
        batch_size: Images per batch, of all processes together. Batches are always
            full.
        split: Split of a data set of tfds, or part of one such as "train[:90%]"; the
            subfolder to take of a folder, or zip file, whose subfolders are splits,
            whatever else lies beside two of these; "train" or "test" of a folder of IDX
            files, where the files of the second begin with "t10k". Subfolders are
            splits by names such as "train", "training", "val", "valid", "validation",
            "dev", "test", "testing" and "eval", in any case, also "val2017", and
            "seg_train" beside "seg_test"; where all others are splits, "extra",
            "unlabeled" and "holdout" are, too. The names of one split stand for each
            other, so that "validation" takes "valid". Of a folder, or zip file,
            "train[:90%]" is the first 90% of each class by the names of the files, and
            "train[90%:]" the rest, in whole percent; where there are no splits, all is
            "train". Other sources are read whole.
        data_dir: Folder of prepared data sets of tfds. Default: tfds's own. With it,
            `source` is always such a name, even where there is a folder so called.
        image_size: Side in pixels of the square to resize and crop images to, above 0,
            as the diffusion papers do it for ImageNet: see
            `keras_imm.datasets.center_crop`. Default: the sizes that they have, which
            must be the same for all.
        channels: 3 to read images in colour, 1 in grey. Default: as a data set of tfds
            or an array has it; 3 for files.
        flip: Whether to mirror images left to right with probability 1/2. Latents come
            mirrored from their folder: each pass then sees both.
        seed: Integer in [0, 2^32) that decides order, flips and the latents' noise.
        shuffle: Whether each pass over the data is a fresh permutation of all of it.
        steps_per_epoch: Batches per epoch of `fit`. Default: as many as fill one pass.
        num_workers: Processes that read, or 0 to read in threads of this process. They
            do not change what is read: settings of Pillow such as `MAX_IMAGE_PIXELS`
            are passed on as they are when reading starts. Each starts Python anew and
            runs the main script up to its `if __name__ == "__main__":`, which it must
            have.
        on_corrupt: What to do about an image that cannot be decoded, a link to a file
            that is not there, or floats that are not finite: "raise" a ValueError that
            names it, or "skip" it with a warning that names it, put the next good
            record in its place, and keep it in `dataset.corrupt`.
        process_index: Which of the processes that share each batch this is.
        process_count: How many processes share each batch; it must divide `batch_size`.
        labels: Whether to read the labels, where there are any.
        sigma_data: Standard deviation to scale latents to, above 0.

    Returns:
        A `keras.utils.PyDataset` of float32 images (batch, H, W, C) and int32 labels
        (batch,), or of the images alone. 8-bit images are scaled to [-1, 1] by
        x / 127.5 - 1; latents are sampled from their moments and normalized.

    Raises:
        ImportError: If a library that the source takes is not installed:
            `pip install "keras_imm[data]"` brings all.
        ValueError: If an argument is out of its range, or the source is not there, is
            empty or is not prepared; the message says how to prepare it.

    Example:

    ```python
    dataset = keras_imm.datasets.load("cifar10", batch_size=256, data_dir="data")
    model.fit(dataset, epochs=10)

    images = np.random.default_rng(0).integers(0, 256, (100, 8, 8, 1), "uint8")
    labels = np.arange(100) % 10
    dataset = keras_imm.datasets.load((images, labels), batch_size=32)
    x, y = dataset[0]  # (32, 8, 8, 1), (32,)
    ```
    """
    check_boolean("flip", flip)
    check_positive_number("sigma_data", sigma_data)
    if image_size is not None:
        check_integer("image_size", image_size, at_least=1)
        image_size = int(image_size)
    if channels not in (None, 1, 3):
        raise ValueError(f"`channels` must be 1, 3 or None. Received: {channels!r}")
    if not isinstance(split, str):
        raise ValueError(f"`split` must be a string. Received: split={split!r}")
    opened = _open(source, split, data_dir, flip, labels)
    if isinstance(opened, LatentShards):
        _check_latents(opened, image_size, channels)
        records = LatentRecords(opened, float(sigma_data))
    else:
        if isinstance(opened, ImageArrays):
            for problem in opened.problems():
                warnings.warn(problem, stacklevel=2)
        records = ImageRecords(opened, image_size, channels, flip, labels)
    return ImageDataset(
        records,
        batch_size,
        seed=seed,
        shuffle=shuffle,
        steps_per_epoch=steps_per_epoch,
        num_workers=num_workers,
        on_corrupt=on_corrupt,
        process_index=process_index,
        process_count=process_count,
        labels=labels,
    )


def _open(source, split, data_dir, flip, labels):
    if not isinstance(source, str | os.PathLike):
        if data_dir is not None:
            raise ValueError(
                "`data_dir` must be left out unless `source` is the name of a data set "
                f"in it. Received: data_dir={os.fspath(data_dir)!r} and a source of "
                f"type {type(source).__name__}"
            )
        _check_no_split(split, "an array")
        return _arrays(source, labels)
    if not os.fspath(source):
        raise ValueError(f"`source` must not be empty. Received: source={source!r}")
    if data_dir is not None:
        return PreparedDataset(os.fspath(source), split, user_path(data_dir))
    path = user_path(source)
    if path.is_dir():
        if (path / "manifest.json").exists() or (path / "settings.json").exists():
            _check_no_split(split, "a folder of latents")
            return LatentShards(path, flip)
        if holds_idx_files(path):
            return IdxFiles(path, split, labels)
        return ImageFolder(path, split, labels)
    if is_idx_file(path):
        _check_no_split(split, "one IDX file")
        return IdxFiles(path, labels=labels)
    if path.suffix.lower() in (".npy", ".npz"):
        _check_no_split(split, "a file of arrays")
        return ImageArraysFile(path, labels)
    if path.is_file():
        return _open_zip(path, split, labels)
    is_path = isinstance(source, os.PathLike) or path.is_absolute()
    if is_path or source[:1] in ".~" or path.suffix.lower() == ".zip":
        raise ValueError(f"`source` must be there. Received: source={str(source)!r}")
    return PreparedDataset(source, split, data_dir)


def _check_no_split(split, kind):
    if split != "train":
        raise ValueError(
            f"`split` must be left out: `source` is {kind}, which is read whole. "
            f"Received: split={split!r}"
        )


def _open_zip(path, split, labels):
    if not zipfile.is_zipfile(path):
        raise ValueError(
            "`source` must be a folder or zip file of images, or an .npz, .npy or IDX "
            f"file. Received: source={str(path)!r}, a file of another kind; unpack an "
            "archive, and give the folder of single images"
        )
    if holds_arrays(path):
        _check_no_split(split, "a file of arrays")
        return ImageArraysFile(path, labels)
    return ImageZip(path, split, labels)


def _arrays(source, labels):
    if isinstance(source, tuple | list):
        if len(source) != 2:
            raise ValueError(
                "`source` must be an array of images, or a tuple (images, labels). "
                f"Received: {type(source).__name__} of {len(source)} elements"
            )
        if isinstance(source[0], tuple):
            raise ValueError(
                "`source` must be one split, as the first of Keras's `load_data()` is. "
                f"Received: {type(source).__name__} of tuples"
            )
        return ImageArrays(source[0], source[1] if labels else None)
    if not hasattr(source, "shape"):
        raise ValueError(
            "`source` must be a name, a path, an array or a tuple of arrays. Received: "
            f"source={shortened(repr(source))}"
        )
    return ImageArrays(source)


def _check_latents(shards, image_size, channels):
    height, width, _ = shards.image_shape
    if image_size not in (None, height) or image_size not in (None, width):
        raise ValueError(
            f"`image_size` must be left out for latents, which are {height}x{width}. "
            f"Received: image_size={image_size!r}"
        )
    if channels is not None:
        raise ValueError(
            f"`channels` must be left out for latents. Received: channels={channels!r}"
        )
