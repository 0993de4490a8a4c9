"""Published checkpoints by name, and where they are."""

import pathlib
from typing import Any, NamedTuple

from keras_imm import recipes
from keras_imm.files.downloads import fetch_from_hub
from keras_imm.time_mappings import EtaDecrement
from keras_imm.weightings import ELBO

REPOSITORY = "lumaai/imm"


class Published(NamedTuple):
    """A published checkpoint.

    Attributes:
        filenames: Names it may have in the repository.
        recipe: Name of the recipe it was trained with, in `keras_imm.recipes`.
    """

    filenames: tuple[str, ...]
    recipe: str

    def arguments(self) -> dict[str, Any]:
        """Arguments of `keras_imm.IMM` that the file does not hold."""
        recipe = recipes.get(self.recipe)
        return {
            "second_time": recipe.second_time,
            "time_mapping": EtaDecrement(k=recipe.k, min_gap=recipe.min_gap),
            "weighting": ELBO(a=recipe.a, b=recipe.b),
            "label_dropout": recipe.label_dropout,
        }


PUBLISHED = {
    "cifar10": Published(("cifar10.pkl", "cifar10.pt"), "cifar10"),
    "imagenet256_ts_a2": Published(
        ("imagenet256_ts_a2.pkl",), "imagenet256_dit_xl_2_stride"
    ),
    "imagenet256_s_a1": Published(("imagenet256_s_a1.pkl",), "imagenet256_dit_xl_2"),
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
    return fetch_from_hub(
        REPOSITORY,
        PUBLISHED[name].filenames,
        what=f"Checkpoint {name!r}",
        extra="hub",
        usage="load_official({})",
    )
