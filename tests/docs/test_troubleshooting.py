"""Each row of the page on troubleshooting is a test."""

import pathlib
import re

import pytest

DOCS = pathlib.Path(__file__).resolve().parents[2] / "docs"
ROWS = [
    line
    for line in (DOCS / "troubleshooting.md").read_text().splitlines()
    if line.startswith("| ") and not line.startswith("| what one sees")
]

pytestmark = pytest.mark.one_backend("reads pages")


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.split("|")[1].strip()[:40])
def test_each_row_is_a_test(row):
    *_, last, _ = row.split("|")
    (link,) = re.findall(r"\]\(([^)]+)\)", last)
    names = re.findall(r"`(test_\w+)`", last)
    source = DOCS.joinpath(link).read_text()
    assert names
    for name in names:
        assert f"def {name}(" in source


def test_there_are_rows():
    assert len(ROWS) > 20
