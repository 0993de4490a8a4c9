"""Published files: fetched once to a cache, or the way to get them by hand; uploads."""

import os
import pathlib
from collections.abc import Sequence

import keras

from keras_imm.files.checksum import sha256

_SHA256_DIGITS = 64


def fetch_from_hub(
    repository: str, filenames: Sequence[str], *, what: str, extra: str, usage: str
) -> pathlib.Path:
    """Downloads a file from the Hugging Face hub, or finds it in the hub's cache.

    Args:
        repository: Name of the repository, "user/name".
        filenames: Names that the file may have there; the first that is there counts.
        what: What is fetched, as the subject of a sentence: "Checkpoint 'cifar10'".
        extra: The optional dependencies of keras_imm that huggingface_hub is one of.
        usage: How a file is used that was downloaded by hand, with `{}` in the place
            of its path: "load_official({})".

    Returns:
        Path of the file.

    Raises:
        OSError: If it cannot be fetched; the message says what to download and how to
            use it.
    """

    def by_hand(filename):
        url = f"https://huggingface.co/{repository}/resolve/main/{filename}"
        return _by_hand(url, usage.format(repr(os.path.basename(filename))))

    try:
        import huggingface_hub.errors
    except ImportError as error:
        raise OSError(
            f"{what} is fetched with huggingface_hub: "
            f'`pip install "keras_imm[{extra}]"`. {by_hand(filenames[0])}'
        ) from error
    for filename in filenames:
        try:
            return pathlib.Path(huggingface_hub.hf_hub_download(repository, filename))
        except huggingface_hub.errors.RemoteEntryNotFoundError as error:
            missing = error
        except Exception as error:
            # Its errors come from whichever HTTP library it was built on.
            raise OSError(
                f"{what} cannot be fetched: {error}\n{by_hand(filename)}"
            ) from error
    raise OSError(
        f"{what} cannot be fetched: {repository} has none of {', '.join(filenames)}.\n"
        f"{by_hand(filenames[0])}"
    ) from missing


def fetch_folder_from_hub(
    repository: str, filenames: Sequence[str], *, what: str, extra: str, usage: str
) -> pathlib.Path:
    """Downloads files of one revision from the Hugging Face hub, or finds them.

    Args:
        repository: Name of the repository, "user/name".
        filenames: Names of the files. Those that are not there are left out.
        what: As in `fetch_from_hub`.
        extra: As in `fetch_from_hub`.
        usage: How a folder of these files is used, with `{}` in the place of its path.

    Returns:
        Path of a folder in the hub's cache that has the files.

    Raises:
        OSError: If they cannot be fetched; the message says what to download.
    """
    by_hand = (
        f"Without a connection: download {', '.join(filenames)} of "
        f"https://huggingface.co/{repository} elsewhere, put them into a folder "
        "anywhere on this machine and give its path: "
        f"{usage.format(repr(repository.split('/')[-1]))}."
    )
    try:
        import huggingface_hub
    except ImportError as error:
        raise OSError(
            f"{what} is fetched with huggingface_hub: "
            f'`pip install "keras_imm[{extra}]"`. {by_hand}'
        ) from error
    try:
        return pathlib.Path(
            huggingface_hub.snapshot_download(
                repository, allow_patterns=list(filenames)
            )
        )
    except Exception as error:  # as in `fetch_from_hub`
        raise OSError(f"{what} cannot be fetched: {error}\n{by_hand}") from error


def upload_folder_to_hub(
    repository: str,
    folder: str | os.PathLike[str],
    filenames: Sequence[str],
    *,
    extra: str,
) -> None:
    """Uploads files to the Hugging Face hub, in one commit.

    Args:
        repository: Name of the repository, "user/name". It is made if there is none.
        folder: The folder that has the files.
        filenames: Names of the files. Those that are not there are left out.
        extra: As in `fetch_from_hub`.

    Raises:
        OSError: If they cannot be uploaded.
    """
    try:
        import huggingface_hub
    except ImportError as error:
        raise OSError(
            f"{str(folder)!r} is uploaded with huggingface_hub: "
            f'`pip install "keras_imm[{extra}]"`.'
        ) from error
    try:
        hub = huggingface_hub.HfApi()
        hub.create_repo(repository, exist_ok=True)
        hub.upload_folder(
            repo_id=repository,
            folder_path=os.fspath(folder),
            allow_patterns=list(filenames),
        )
    except Exception as error:  # as in `fetch_from_hub`
        raise OSError(
            f"{str(folder)!r} cannot be uploaded to {repository}: {error}\n"
            "`hf auth login` stores a token that may write there."
        ) from error


def fetch_url(
    url: str, checksum: str, *, what: str, usage: str, cache_subdir: str = "datasets"
) -> pathlib.Path:
    """Downloads a file, or finds it in Keras's cache.

    Args:
        url: Where it is published.
        checksum: Its SHA-256 in hexadecimal digits, or how that begins.
        what: What is fetched, as the subject of a sentence: "KerasCV's encoder".
        usage: How a file is used that was downloaded by hand, with `{}` in the place
            of its path.
        cache_subdir: Folder in Keras's cache.

    Returns:
        Path of the file.

    Raises:
        OSError: If it cannot be fetched, or is not what was published; the message
            says what to download and how to use it.
    """
    by_hand = _by_hand(url, usage.format(repr(os.path.basename(url))))
    whole = {"file_hash": checksum} if len(checksum) == _SHA256_DIGITS else {}
    try:
        path = pathlib.Path(
            keras.utils.get_file(origin=url, cache_subdir=cache_subdir, **whole)
        )
    except Exception as error:  # it raises Exception itself
        raise OSError(f"{what} cannot be fetched: {error}\n{by_hand}") from error
    if not whole:  # which Keras cannot check
        digest = sha256(path)[: len(checksum)]
        if digest != checksum:
            raise OSError(
                f"{path} is damaged: its SHA-256 begins with {digest}, not with "
                f"{checksum}. Delete it to fetch it again. {by_hand}"
            )
    return path


def _by_hand(url: str, usage: str) -> str:
    return (
        f"Without a connection: download {url} elsewhere, put it anywhere on this "
        f"machine and give its path: {usage}."
    )
