"""Paths as users give them."""

import os
import pathlib


def user_path(path: str | os.PathLike[str], argument: str = "path") -> pathlib.Path:
    """A path that a user gave, with the home folder in the place of a leading `~`.

    Args:
        path: The path. `~name` without a user of that name stays as it is.
        argument: What messages call it.

    Returns:
        The path, not made absolute.

    Raises:
        TypeError: If it is no path.
    """
    if not isinstance(path, str | os.PathLike):
        raise TypeError(
            f"`{argument}` must be a path, a string or an os.PathLike[str]. "
            f"Received: {argument}={path!r}"
        )
    return pathlib.Path(os.path.expanduser(os.fspath(path)))


def replaceable_folder(
    folder: str | os.PathLike[str], filenames: tuple[str, ...], needed: str, what: str
) -> pathlib.Path:
    """The absolute path of a folder that may be made, or replaced.

    Args:
        folder: The folder.
        filenames: Names of all files that one to replace may have.
        needed: The one that it has to have.
        what: What such a folder is called, such as "a preset".

    Raises:
        ValueError: If it is a file, or has something else in it.
    """
    folder = user_path(folder, "folder").resolve()
    if not folder.exists():
        return folder
    found = sorted(os.listdir(folder)) if folder.is_dir() else [folder.name]
    foreign = [name for name in found if name not in filenames]
    if foreign or (found and needed not in found):
        raise ValueError(
            f"`folder` must be new, empty or {what}, which is replaced. Received: "
            f"folder={str(folder)!r}, where there is {(foreign or found)[0]!r}"
        )
    return folder
