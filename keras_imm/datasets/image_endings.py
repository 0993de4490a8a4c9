"""Which files are images, by the endings of their names."""

import collections
import posixpath
from collections.abc import Iterable

from keras_imm.datasets.extras import extra, pillow
from keras_imm.validation import shortened

# A program, a film, and what is drawn by an interpreter.
_NO_PIXELS = frozenset(("EPS", "MPEG", "PDF"))
_READ_AS_ANOTHER = frozenset(("MPO",))  # as JPEG
_MOST_NAMED = 5


def image_endings() -> frozenset[str]:
    """Endings of the raster formats that the installed Pillow reads, in lower case."""
    image, stub = pillow(), extra("PIL.ImageFile", "Reading images").StubImageFile
    endings = image.registered_extensions()
    readers = {name: reader for name, (reader, _) in image.OPEN.items()}
    return frozenset(
        ending
        for ending, name in endings.items()
        if (name in readers or name in _READ_AS_ANOTHER)
        and name not in _NO_PIXELS
        and not _is_a(readers.get(name), stub)
    )


def ending(path: str) -> str:
    """The ending of a path with its dot, in lower case; empty where it has none."""
    return posixpath.splitext(path)[1].lower()


def described(paths: Iterable[str]) -> str:
    """How many paths have which endings: "3 '.txt', 1 without an ending"."""
    counts = collections.Counter(map(ending, paths))
    named = [
        f"{count} {shortened(repr(end), 20) if end else 'without an ending'}"
        for end, count in counts.most_common(_MOST_NAMED)
    ]
    others = counts.total() - sum(n for _, n in counts.most_common(_MOST_NAMED))
    return ", ".join([*named, f"{others} others"][: len(named) + (others > 0)])


def _is_a(reader, kind):
    """Whether a reader is of formats that Pillow knows by their names alone."""
    return isinstance(reader, type) and issubclass(reader, kind)
