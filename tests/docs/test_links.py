"""Links between the pages, and from them to files."""

import pathlib
import re

import pytest

DOCS = pathlib.Path(__file__).resolve().parents[2] / "docs"
LINK = re.compile(r"\]\((?!https?:)([^)#]+)")

pytestmark = pytest.mark.one_backend("reads pages")


@pytest.mark.parametrize(
    "page",
    [
        "accelerators",
        "architecture",
        "comparison",
        "extending",
        "figures",
        "guide",
        "mathematics",
        "migration",
        "paper",
        "troubleshooting",
    ],
)
def test_links_lead_to_files(page):
    links = LINK.findall((DOCS / f"{page}.md").read_text())
    assert links
    assert not [link for link in links if not DOCS.joinpath(link).exists()]


def test_every_page_is_linked_from_the_first():
    linked = LINK.findall((DOCS.parent / "README.md").read_text())
    assert {f"docs/{path.name}" for path in DOCS.glob("*.md")} <= set(linked)
