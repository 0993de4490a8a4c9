"""Names of folders that are splits of a data set and no classes, and their parts."""

import collections
import itertools
import re
from collections.abc import Mapping, Sequence

from keras_imm.validation import shortened

_AFTER = r"([-_ .]?(set|images?|imgs|data|\d+(x\d+)?|[ab]))*"
_NAME = re.compile(
    r"(trainval|train|training|val|valid|validation|dev|test|testing|eval|evaluation)"
    + _AFTER
)
# Splits beside others, which may as well be classes beside classes.
_REST = re.compile(r"(extra|unlabell?ed|h[eo]ld[-_ ]?out)" + _AFTER)
_PART = re.compile(r"(.*)\[(.*):(.*)\]")
_PERCENT = re.compile(r"\d{1,3}%|")
_SAME = {
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "dev": "validation",
    "testing": "test",
    "evaluation": "eval",
}


def split_of(name: str) -> str | None:
    """The split that a name stands for, or None.

    Args:
        name: In any case, also with what often follows: "Train", "valid_64x64",
            "test-images", "val2017", "trainA".

    Returns:
        "train", "validation" (also "val", "valid" and "dev"), "test", "eval" or
        "trainval".
    """
    match = _NAME.fullmatch(name.lower())
    return _SAME.get(match[1], match[1]) if match else None


def splits_among(folders: Sequence[str]) -> dict[str, str]:
    """Which of the subfolders of a folder are splits: all, two or more, or none.

    Args:
        folders: Their names. "extra", "unlabeled" and "holdout" are splits where all
            others are. Names that differ by that of a split alone are splits, too:
            "seg_train" and "seg_test", or "train-clean" and "test-clean".

    Returns:
        The splits by the names of their folders.
    """
    found = _named(folders, split_of)
    if found:
        with_rest = _named(folders, lambda name: split_of(name) or _rest_of(name))
        found = with_rest if len(with_rest) == len(folders) else found
    if len(found) > 1 or len(found) == len(folders):
        return found
    return _alike_but_for_the_split(folders)


def _named(folders, split):
    return {name: split(name) for name in folders if split(name)}


def _rest_of(name):
    """What a name beside those of splits stands for, or None."""
    match = _REST.fullmatch(name.lower())
    return re.sub("[-_ ]", "", match[1]).replace("ll", "l") if match else None


def _alike_but_for_the_split(folders):
    """Names that become one where their words for different splits are left out."""
    groups = collections.defaultdict(dict)
    for name in folders:
        words = re.split("[-_ .]", name.lower())
        for start, stop in itertools.combinations(range(len(words) + 1), 2):
            split = split_of("_".join(words[start:stop]))
            if split:
                groups[*words[:start], None, *words[stop:]][name] = split
    found = {}
    for group in groups.values():
        if len(set(group.values())) > 1:
            found |= group
    return {name: found[name] for name in folders if name in found}


def choose_split(split: str, splits: Mapping[str, str], where: str) -> str:
    """The folder of a split.

    Args:
        split: What was asked for: the folder's name, or a name that stands for the
            same split.
        splits: As `splits_among` returns them.
        where: What they are in, for the message.

    Raises:
        ValueError: If none is meant, or several are.
    """
    if split in splits:
        return split
    meant = split_of(split) or _rest_of(split)
    same = [name for name, kind in splits.items() if kind == meant]
    if len(same) != 1:
        raise ValueError(
            f"`split` must be one of the splits in {where}: "
            f"{shortened(', '.join(map(repr, splits)))}. Received: split={split!r}. "
            "Rename folders that are classes."
        )
    return same[0]


def split_part(split: str) -> tuple[str, tuple[int, int]]:
    """The split and the part of it, as tensorflow-datasets writes them.

    Args:
        split: "train", or with a part in percent: "train[:90%]", "train[90%:]".

    Returns:
        The split, and where the part begins and ends in percent: 0 and 100 for all.

    Raises:
        ValueError: If the part is none.
    """
    match = _PART.fullmatch(split)
    if match is None:
        return split, (0, 100)
    name, *ends = match.groups()
    first, last = 0, 0
    if all(map(_PERCENT.fullmatch, ends)):
        first, last = int(ends[0][:-1] or 0), int(ends[1][:-1] or 100)
    if not first < last <= 100:
        raise ValueError(
            "The part of a `split` of files must be in percent, as in 'train[:90%]' "
            f"and 'train[90%:]', and hold something. Received: split={split!r}"
        )
    return name, (first, last)
