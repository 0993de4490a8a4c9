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


def test_every_picture_and_every_benchmark_has_its_command_on_the_page_of_figures():
    page = (DOCS / "figures.md").read_text()
    pictures = {path.name for path in (DOCS.parent / "examples/pictures").iterdir()}
    assert pictures and not [name for name in pictures if f"/{name})" not in page]
    results = (DOCS.parent / "benchmarks" / "RESULTS.md").read_text()
    programs = {
        f"benchmarks/{path.name}"
        for path in (DOCS.parent / "benchmarks").glob("*.py")
        if "app.run(" in path.read_text() or '"__main__"' in path.read_text()
    }
    told = {name for name in programs if name in results}
    assert len(told) > 20 and not sorted(name for name in told if name not in page)
