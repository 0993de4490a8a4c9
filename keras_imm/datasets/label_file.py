"""Labels of images in `dataset.json`, as the tools of StyleGAN and EDM write it."""

import json
from collections.abc import Sequence
from typing import Any

from keras_imm.validation import shortened

LABEL_FILE = "dataset.json"
_LARGEST = 2**31 - 1


def read_labels(content: bytes, files: Sequence[str], name: str) -> list[int] | None:
    """Labels of images.

    Args:
        content: `{"labels": [["00000/img00000000.png", 6], ...]}`, or
            `{"labels": null}` where there are none; in UTF-8.
        files: Paths of all images, relative to the folder of the file.
        name: What the file is called in messages.

    Returns:
        The label of each image, or None where there are none.

    Raises:
        ValueError: If it is of another form, a label is no integer of at least 0, an
            image has none or two, or an image is not there.
    """
    entries = _entries(content, name)
    if entries is None:
        return None
    labels = {}
    for entry in entries:
        file, label = _checked(entry, name)
        if file in labels:
            raise ValueError(f"{name} must hold one label for {_short(file)}, not two.")
        labels[file] = label
    _check_same_files(labels, files, name)
    return [labels[file] for file in files]


def _entries(content: bytes, name: str) -> list | None:
    try:
        content = json.loads(content.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name} is not JSON: {shortened(error)}") from error
    is_known = isinstance(content, dict) and "labels" in content
    if not is_known or not isinstance(content["labels"], list | None):
        raise ValueError(
            f'{name} must be {{"labels": [[file, integer], ...]}} or {{"labels": '
            "null}, as StyleGAN has it; rename it if it is something else. Received: "
            f"{_short(content)}"
        )
    return content["labels"]


def _checked(entry: Any, name: str) -> tuple[str, int]:
    is_pair = isinstance(entry, list) and len(entry) == 2 and isinstance(entry[0], str)
    if not is_pair or type(entry[1]) is not int or not 0 <= entry[1] <= _LARGEST:
        raise ValueError(
            f"{name} must hold labels as [file, integer of at least 0]; of one-hot "
            "vectors give the index of the 1, or labels=False to read images alone. "
            f"Received: {_short(entry)}"
        )
    return tuple(entry)


def _check_same_files(labels: dict[str, int], files: Sequence[str], name: str) -> None:
    without = [file for file in files if file not in labels]
    if without:
        raise ValueError(
            f"{name} must have a label for each image, or labels=False be given. "
            f"Received: none for {len(without)} of {len(files)} images, the first is "
            f"{_short(without[0])}"
        )
    if len(labels) > len(files):
        gone = labels.keys() - set(files)
        raise ValueError(
            f"{name} must name images that are there, or labels=False be given. "
            f"Received: {len(gone)} that are not, the first is {_short(min(gone))}"
        )


def _short(value: Any) -> str:
    return shortened(repr(value))
