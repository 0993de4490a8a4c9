"""Fashion-MNIST, from wherever it is on this machine or can be fetched from."""

import os
import pathlib

import keras
import numpy as np

from keras_imm.datasets.idx_files import (
    check_same_count,
    find_images,
    labels_beside,
    read_idx,
)
from keras_imm.files.paths import user_path
from keras_imm.validation import check_choice

FASHION_MNIST_CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
"""Names of the labels 0 to 9 of Fashion-MNIST."""

DEBIAN_FOLDER = pathlib.Path("/usr/share/datasets/fashion-mnist")


def fashion_mnist(
    split: str = "train", data_dir: str | os.PathLike[str] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Fashion-MNIST: 60,000 and 10,000 pictures of clothes in 10 classes.

    Read from the IDX files in `data_dir`; without it, from those of Debian's package
    dataset-fashion-mnist, or else by `keras.datasets`, which downloads them once.
    `keras_imm.datasets.FASHION_MNIST_CLASSES` has the names of the labels.

    Args:
        split: "train" or "test".
        data_dir: Folder of the files as published, such as
            `train-images-idx3-ubyte.gz`, with or without `.gz`.

    Returns:
        Images, uint8 of shape (num_images, 28, 28), and labels, int32 of shape
        (num_images,).

    Raises:
        ValueError: If `data_dir` does not hold the files, or a file is damaged.
        OSError: If there are no files and they cannot be fetched; the message says
            where to get them.

    Example:

    ```python
    images, labels = keras_imm.datasets.fashion_mnist("test")  # (10000, 28, 28)
    dataset = keras_imm.datasets.load((images, labels), batch_size=128)
    ```

    Reference:
        - [Xiao, Rasul and Vollgraf, 2017](https://arxiv.org/abs/1708.07747)
    """
    check_choice("split", split, ("train", "test"))
    folder = DEBIAN_FOLDER if data_dir is None else user_path(data_dir, "data_dir")
    images_path = find_images(folder, split)
    if images_path is not None:
        return _read(images_path)
    if data_dir is not None:
        raise ValueError(
            "`data_dir` must hold Fashion-MNIST's IDX files, such as "
            f"{'train' if split == 'train' else 't10k'}-images-idx3-ubyte.gz. "
            f"Received: data_dir={os.fspath(data_dir)!r}"
        )
    return _fetch(split)


def _read(images_path):
    labels_path = labels_beside(images_path)
    if labels_path is None:
        raise ValueError(f"The labels of {images_path} must lie beside it.")
    images, labels = read_idx(images_path, (3,)), read_idx(labels_path, (1,))
    check_same_count(images_path, images, labels_path, labels)
    if images.shape[1:] != (28, 28):
        raise ValueError(
            f"Fashion-MNIST has images of 28x28. Received: {images_path} with images "
            f"of {'x'.join(map(str, images.shape[1:]))}"
        )
    if labels.max() >= len(FASHION_MNIST_CLASSES):
        raise ValueError(
            f"Fashion-MNIST has labels below {len(FASHION_MNIST_CLASSES)}. Received: "
            f"{labels_path} with the label {labels.max()}"
        )
    return np.array(images), np.array(labels, "int32")


def _fetch(split):
    try:
        train, test = keras.datasets.fashion_mnist.load_data()
    except Exception as error:  # Keras's download raises what it likes
        raise OSError(
            "Fashion-MNIST is not on this machine and cannot be fetched "
            f"({' '.join(str(error).split()) or type(error).__name__}): name a folder "
            "of its IDX files (data_dir=..., --data_dir of the example), install "
            "Debian's package (apt-get install dataset-fashion-mnist), or let Keras "
            "download it with network access."
        ) from error
    images, labels = train if split == "train" else test
    return images, labels.astype("int32")
