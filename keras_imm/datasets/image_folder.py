"""Images in a folder or a zip file of the same layout, by index."""

import os

from keras_imm.datasets.file_trees import FolderTree, ZipTree
from keras_imm.datasets.image_files import ImageFiles, single_top_folder


class ImageFolder(ImageFiles):
    """Image files below a folder.

    Args:
        folder: The folder, laid out as `ImageFiles` takes it. Links to folders are
            followed, and each folder is read once per class. A link to a file that is
            not there is a corrupt record.
        split: As in `ImageFiles`.
        labels: As in `ImageFiles`.

    Raises:
        ValueError: As `ImageFiles`.
    """

    def __init__(
        self, folder: str | os.PathLike[str], split: str = "train", labels: bool = True
    ):
        super().__init__(FolderTree(folder), split, labels)


class ImageZip(ImageFiles):
    """Image files in a zip file, which is not unpacked.

    Args:
        path: The zip file, laid out as `ImageFiles` takes folders. A folder that holds
            all else, and is no split, does not count.
        split: As in `ImageFiles`.
        labels: As in `ImageFiles`.

    Raises:
        ValueError: As `ImageFiles`; if the file is damaged or encrypted, or has two
            members of one name or one with a name outside of it.
    """

    def __init__(
        self, path: str | os.PathLike[str], split: str = "train", labels: bool = True
    ):
        tree = ZipTree(path)
        super().__init__(tree, split, labels, single_top_folder(tree))
