"""Published checkpoints by name, and where they are."""

import pathlib
from typing import Any, NamedTuple

from keras_imm.time_mappings import EtaDecrement
from keras_imm.weightings import ELBO

REPOSITORY = "lumaai/imm"


class Published(NamedTuple):
    """A published checkpoint.

    Attributes:
        filenames: Names it may have in the repository.
        recipe: Name of the recipe it was trained with, in `keras_imm.recipes`.
        second_time: "s" or "stride".
        k: Exponent of the mapping it was trained with (Table 5).
        min_gap: Smallest gap of that mapping.
        a: Exponent a of its weighting.
        b: Offset b of its weighting.
        label_dropout: Probability that a label was dropped.
    """

    filenames: tuple[str, ...]
    recipe: str
    second_time: str
    k: int
    min_gap: float
    a: int
    b: int
    label_dropout: float

    def arguments(self) -> dict[str, Any]:
        """Arguments of `keras_imm.IMM` that the file does not hold."""
        return {
            "second_time": self.second_time,
            "time_mapping": EtaDecrement(k=self.k, min_gap=self.min_gap),
            "weighting": ELBO(a=self.a, b=self.b),
            "label_dropout": self.label_dropout,
        }


PUBLISHED = {
    "cifar10": Published(
        filenames=("cifar10.pkl", "cifar10.pt"),
        recipe="cifar10",
        second_time="s",
        k=15,
        min_gap=0.0,
        a=1,
        b=5,
        label_dropout=0.0,
    ),
    "imagenet256_ts_a2": Published(
        filenames=("imagenet256_ts_a2.pkl",),
        recipe="imagenet256_dit_xl_2_stride",
        second_time="stride",
        k=12,
        min_gap=1e-4,
        a=2,
        b=4,
        label_dropout=0.1,
    ),
    "imagenet256_s_a1": Published(
        filenames=("imagenet256_s_a1.pkl",),
        recipe="imagenet256_dit_xl_2",
        second_time="s",
        k=12,
        min_gap=0.0,
        a=1,
        b=4,
        label_dropout=0.1,
    ),
}


def fetch(name: str) -> pathlib.Path:
    """Downloads a published checkpoint, or finds it in the cache.

    Args:
        name: A key of `PUBLISHED`.

    Returns:
        Path of the file.

    Raises:
        OSError: If it cannot be fetched; the message says what to download.
    """
    filenames = PUBLISHED[name].filenames
    try:
        import huggingface_hub
    except ImportError as error:
        raise OSError(
            f"Checkpoint {name!r} is fetched with huggingface_hub: "
            f'`pip install "keras_imm[hub]"`. {_by_hand(filenames[0])}'
        ) from error
    for filename in filenames:
        try:
            return pathlib.Path(huggingface_hub.hf_hub_download(REPOSITORY, filename))
        except huggingface_hub.errors.RemoteEntryNotFoundError as error:
            missing = error
        except Exception as error:
            # Its errors come from whichever HTTP library it was built on.
            raise OSError(
                f"Checkpoint {name!r} cannot be fetched: {error}\n{_by_hand(filename)}"
            ) from error
    raise OSError(
        f"{REPOSITORY} has none of {', '.join(filenames)}.\n{_by_hand(filenames[0])}"
    ) from missing


def _by_hand(filename: str) -> str:
    return (
        "Without a connection: download "
        f"https://huggingface.co/{REPOSITORY}/resolve/main/{filename} elsewhere, put "
        f"it anywhere on this machine and give its path: load_official({filename!r})."
    )
