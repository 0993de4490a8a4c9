"""Images and data sets that the tests write."""

import gzip
import io
import struct

import numpy as np
from PIL import Image


def pixels(seed, height=8, width=8, channels=3):
    rng = np.random.default_rng(seed)
    shape = (height, width, channels) if channels > 1 else (height, width)
    return rng.integers(0, 256, shape, "uint8")


def encoded(array, suffix="png", **options):
    file = io.BytesIO()
    image = array if isinstance(array, Image.Image) else Image.fromarray(array)
    image.save(file, suffix, **options)
    return file.getvalue()


def write_classes(folder, counts, **shape):
    """A folder with the class `class_i` for each count; image n overall has seed n."""
    number = 0
    for label, count in enumerate(counts):
        (folder / f"class_{label}").mkdir(parents=True)
        for i in range(count):
            path = folder / f"class_{label}" / f"{i:03d}.png"
            path.write_bytes(encoded(pixels(number, **shape)))
            number += 1
    return folder


def write_prepared(data_dir, splits, size=8, features=None, labels=None):
    """A data set of tfds named tiny_shapes; image n has seed n and label n % 3."""
    import tensorflow_datasets as tfds

    given = features or {
        "image": tfds.features.Image(shape=(None, None, 3)),
        "label": tfds.features.ClassLabel(names=["circle", "square", "star"]),
    }

    class TinyShapes(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(given)
            )

        def _split_generators(self, dl_manager):
            return {split: self._generate_examples(n) for split, n in splits.items()}

        def _generate_examples(self, count):
            for i in range(count):
                data = encoded(pixels(i, size, size + 2))
                label = labels[i] if labels else i % 3
                yield i, {"image": data, "label": label}

    builder = TinyShapes(data_dir=data_dir, file_format="array_record")
    tfds.disable_progress_bar()
    builder.download_and_prepare()
    # The registry would find the class rather than the files.
    tfds.core.registered._DATASET_REGISTRY.pop("tiny_shapes", None)
    return data_dir


def write_idx(path, array):
    """An IDX file of unsigned bytes, in gzip if it ends so."""
    array = np.asarray(array)
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    content = header + array.astype("uint8").tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def write_idx_split(folder, prefix, images, labels, end=""):
    """The two files of a split, whose prefix is "train" or "t10k"."""
    folder.mkdir(parents=True, exist_ok=True)
    write_idx(folder / f"{prefix}-images-idx3-ubyte{end}", images)
    write_idx(folder / f"{prefix}-labels-idx1-ubyte{end}", labels)
