"""Images of a data set that tensorflow-datasets has prepared, by index."""

import contextlib
import os
from typing import Any

from keras_imm.datasets.decoding import CorruptRecordError
from keras_imm.datasets.extras import extra


class PreparedDataset:
    """Images and labels of a prepared data set of tensorflow-datasets (tfds).

    Reading one takes no TensorFlow; preparing one does.

    Args:
        name: Name in tfds's catalog, with configuration and version where wanted:
            "cifar10", "imagenet_resized/64x64", "mnist:3.0.1".
        split: Split, or part of one such as "train[:90%]".
        data_dir: Folder of prepared data sets. Default: tfds's own.

    Attributes:
        image_shape: Height, width and channels of the images, None where they differ.
        num_classes: How many classes there are, or 0.
        class_names: Their names, or None.

    Raises:
        ImportError: If tensorflow-datasets is not installed.
        ValueError: If tfds has no such data set or split, if it is not prepared as
            array_record, or if it holds no images.
    """

    def __init__(
        self, name: str, split: str, data_dir: str | os.PathLike[str] | None = None
    ):
        builder = _builder(name, data_dir)
        self._name = f"{builder.info.full_name} {split}"
        self._key, self._label = _features(builder)
        self._source = _source(builder, name, split, data_dir, self._key)
        self._identity = {"name": builder.info.full_name, "split": split}
        features = builder.info.features
        self.image_shape = features[self._key].shape
        self.num_classes = features[self._label].num_classes if self._label else 0
        self.class_names = features[self._label].names if self._label else None

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The record `index`, as `{"image": encoded bytes, "label": int}`."""
        try:
            record = self._source[index]
            label = int(record[self._label]) if self._label else -1
            return {"image": bytes(record[self._key]), "label": label}
        except OSError:
            raise
        except Exception as error:  # a damaged file, in the words of its reader
            raise CorruptRecordError(str(error) or type(error).__name__) from error

    def record_name(self, index: int) -> str:
        """Name of the data set, its split and the index in it."""
        return f"{self._name}[{index}]"

    @property
    def fingerprint(self) -> dict[str, Any]:
        """What identifies the records and their order, wherever they are."""
        return {"kind": "tfds", "num_records": len(self), **self._identity}


def _tfds():
    return extra("tensorflow_datasets", "Reading a data set by its name")


def _builder(name, data_dir):
    tfds = _tfds()
    try:
        return tfds.builder(name, data_dir=data_dir)
    except tfds.core.registered.DatasetNotFoundError:
        raise ValueError(
            f"`source` must be a file, a folder or the name of a data set of tfds, "
            f"prepared in {data_dir or 'its own folder'}. Received: source={name!r}"
        ) from None
    except (ValueError, AssertionError) as error:
        message = str(error).splitlines()[0]
        raise ValueError(f"tfds cannot find {name!r}: {message}") from error


def _features(builder):
    """Names of the features that are the image and the label."""
    features = builder.info.features
    images = _keys(features, _tfds().features.Image)
    labels = _keys(features, _tfds().features.ClassLabel)
    if len(images) != 1:
        raise ValueError(
            "A data set must hold one image per record. Received: "
            f"{builder.info.full_name} with the images {images}"
        )
    label = "label" if "label" in labels else labels[0] if len(labels) == 1 else None
    return images[0], label


def _keys(features, kind):
    with contextlib.suppress(AttributeError, TypeError):
        return [key for key, feature in features.items() if isinstance(feature, kind)]
    return []


def _source(builder, name, split, data_dir, image_key):
    if not builder.info.splits:
        raise ValueError(_not_prepared(builder, name, data_dir))
    part = _part(builder, split)
    decoders = {image_key: _tfds().decode.SkipDecoding()}
    try:
        source = builder.as_data_source(split=split, decoders=decoders)
    except NotImplementedError:
        found = builder.info.file_format.value
        raise ValueError(_not_prepared(builder, name, data_dir, found)) from None
    _check_files(builder, sorted(set(part.filepaths)))
    return source


def _part(builder, split):
    try:
        part = builder.info.splits[split]
    except (ValueError, KeyError, NotImplementedError) as error:
        message = str(error).splitlines()[0]
        raise ValueError(
            f"`split` must be one of {', '.join(map(repr, builder.info.splits))}, or a "
            f"part of one. Received: split={split!r} ({message})"
        ) from error
    if part.num_examples < 1:
        raise ValueError(
            f"`split` must hold a record. Received: split={split!r} of "
            f"{builder.info.full_name}, which is empty"
        )
    return part


def _check_files(builder, files):
    missing = [os.fspath(path) for path in files if not path.exists()]
    if missing:
        raise ValueError(
            f"{builder.info.full_name} must be whole. Received: {len(missing)} of "
            f"{len(files)} files are missing, the first is {missing[0]}"
        )


def _not_prepared(builder, name, data_dir, file_format=None):
    """Says how to prepare it; in another folder, if it has another format in this."""
    if file_format:
        data_dir, state = "another_folder", f"is prepared as {file_format}, not"
    else:
        state = "is not prepared"
    folder = data_dir or builder._data_dir_root
    where = "" if data_dir is None else f", data_dir={os.fspath(data_dir)!r}"
    by_hand = builder.MANUAL_DOWNLOAD_INSTRUCTIONS
    if by_hand:
        manual = os.path.join(folder, "downloads", "manual")
        by_hand = f"\nBefore, put into {manual}: {' '.join(by_hand.split())}"
    return (
        f"{builder.info.full_name} {state} as array_record in "
        f"{builder._data_dir_root}. Preparing it takes TensorFlow, reading it does "
        "not:\n  pip install tensorflow-cpu\n"
        '  python -c "import tensorflow_datasets as tfds; '
        f"tfds.builder({name!r}{where}, file_format='array_record')"
        f'.download_and_prepare()"{by_hand or ""}'
    )
