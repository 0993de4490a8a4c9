"""docs/mathematics.md has every piece, and the recipes' numbers."""

import dataclasses
import inspect
import pathlib
import re

import pytest

from keras_imm import (
    kernels,
    parameterizations,
    recipes,
    samplers,
    schedules,
    time_distributions,
    time_mappings,
    weightings,
)

TEXT = (
    pathlib.Path(__file__).resolve().parents[2] / "docs" / "mathematics.md"
).read_text()

pytestmark = pytest.mark.one_backend("reads a page")


def cell(value):
    """A value of a recipe as the page writes it."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple) and value and isinstance(value[0], tuple):
        return ", ".join(f"{fid:.2f} ({steps})" for steps, fid in value)
    if isinstance(value, tuple):
        return ", ".join(map(cell, value))
    return {int: "{:,}", float: "{:g}"}.get(type(value), "{}").format(value)


def test_the_settings_are_the_recipes():
    table = re.search(r"^\| field of.*?(?=\n\n)", TEXT, re.DOTALL | re.MULTILINE)[0]
    head, _, *rows = (
        [one.strip() for one in line.strip("|").split(" | ")]
        for line in table.splitlines()
    )
    columns = [recipes.RECIPES[name] for name in head[1:]]
    names = [field.name for field in dataclasses.fields(recipes.Recipe)]
    assert [row[0] for row in rows] == names
    for name, *cells in rows:
        assert cells == [cell(getattr(recipe, name)) for recipe in columns], name


@pytest.mark.parametrize(
    ("module", "base"),
    [
        (kernels, kernels.Kernel),
        (parameterizations, parameterizations.Parameterization),
        (samplers, samplers.Sampler),
        (schedules, schedules.Schedule),
        (time_distributions, time_distributions.TimeDistribution),
        (time_mappings, time_mappings.TimeMapping),
        (weightings, weightings.Weighting),
    ],
)
def test_every_piece_is_named(module, base):
    pieces = {
        name
        for name, kind in vars(module).items()
        if inspect.isclass(kind) and issubclass(kind, base) and kind is not base
    }
    named = re.findall(rf"`{module.__name__}\.(\w+)`", TEXT)
    assert pieces and pieces == set(named)


def test_names_in_the_page_are_there():
    for path in set(re.findall(r"`keras_imm\.([\w.]+)`", TEXT)):
        found = __import__("keras_imm")
        for name in path.split("."):
            found = getattr(found, name)
