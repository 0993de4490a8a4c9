"""What docs/objectives.md says of the code."""

import re

import pytest
from scripts import ROOT

from keras_imm import objectives

pytestmark = pytest.mark.one_backend("reads a page")

PAGE = (ROOT / "docs" / "objectives.md").read_text()


def test_every_objective_is_listed_by_its_name():
    listed = dict(re.findall(r'^\| "(\w+)" \| `(\w+)`', PAGE, re.MULTILINE))
    assert len(listed) == 9
    for name, kind in listed.items():
        assert type(objectives.get(name)).__name__ == kind


def test_the_passes_are_those_of_the_objectives():
    passes = {
        "flow matching": objectives.FlowMatching(),
        "Shortcut, share 1/8": objectives.Shortcut(),
        "SoFlow, share of s = t 3/4": objectives.SoFlow(),
        "moment matching": objectives.MomentMatching(),
        "consistency training": objectives.ConsistencyTraining(),
        "MeanFlow": objectives.MeanFlow(),
        "sCM": objectives.ContinuousConsistency(),
        "differential moment matching": objectives.DifferentialMomentMatching(),
        "improved MeanFlow": objectives.MeanFlow(improved=True),
        "terminal velocity matching": objectives.TerminalVelocityMatching(),
    }
    (table,) = re.findall(r"^\| objective \| passes \|\n(.*?)\n\n", PAGE, re.M | re.S)
    for line in table.splitlines()[1:]:
        names, value = (cell.strip() for cell in line.strip("|").split("|"))
        whole = [names] if names in passes else names.split(", ")
        for name in whole:
            assert passes.pop(name).network_passes == float(value), name
    assert not passes
