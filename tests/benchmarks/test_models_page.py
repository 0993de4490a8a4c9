"""The page of models says what the package has."""

import pathlib
import re

import models_page
import pytest

import keras_imm
from keras_imm import recipes
from keras_imm.backbones import dit, unet
from keras_imm.checkpoints.hub import PUBLISHED

pytestmark = pytest.mark.any_backend("a benchmark, of what is tested on each")

PAGE = (pathlib.Path(__file__).parents[2] / "docs" / "models.md").read_text()


def test_the_page_is_what_the_script_writes():
    rows = re.findall(r"^\| (\w+) \| ([\d,]+) \|", PAGE, re.MULTILINE)
    counts = {name: int(count.replace(",", "")) for name, count in rows}
    assert list(counts) == [*dit.PRESETS, *unet.PRESETS]
    assert models_page.page(counts) + "\n" == PAGE
    # Counted by the published code; the other sizes are in test_dit.
    assert counts["dit_xl_2"] == 676_440_592
    assert counts["ddpmpp_cifar10"] == 56_061_443
    assert counts["ncsnpp_cifar10"] == 56_789_763


def test_every_recipe_and_checkpoint_is_there():
    for name in recipes.names():
        assert f'keras_imm.recipes.build("{name}")' in PAGE
    for name in PUBLISHED:
        assert f'keras_imm.checkpoints.load_official("{name}")' in PAGE
    assert "1.99 (8)" in PAGE
    assert "1.98 (2)" in PAGE


def test_the_commands_are_python():
    commands = re.findall(r"`(keras_imm\.[^`]+\))`", PAGE)
    assert len(commands) > 20
    for command in commands:
        compile(command, "docs/models.md", "eval")
        function = command.split("(")[0].removeprefix("keras_imm.")
        found = keras_imm
        for part in function.split("."):
            found = getattr(found, part)
        assert callable(found)
