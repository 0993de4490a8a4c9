"""Notebooks of docs/tutorials/ as pages, with the outputs that are stored in them."""

import pathlib
import posixpath
import re

import nbconvert
import nbformat
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

ROOT = pathlib.Path(__file__).resolve().parents[2]
FOLDER = "tutorials"
LINK = re.compile(r"(\]\([\w/.-]+)\.ipynb\b")  # to a notebook


def not_run(notebook: nbformat.NotebookNode) -> bool:
    """Whether a cell has not run, or not in its order."""
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    counts = [cell.execution_count for cell in cells]
    return counts != list(range(1, len(cells) + 1))


def page_of(path: pathlib.Path) -> tuple[str, dict[str, bytes]]:
    """A notebook as Markdown, and its pictures by their names beside the page.

    Raises:
        mkdocs.exceptions.PluginError: If a cell of the notebook was not run.
    """
    notebook = nbformat.read(path, as_version=4)
    if not_run(notebook):
        raise PluginError(f"{path.name} was not run: `make tutorials` does it")
    exporter = nbconvert.MarkdownExporter()
    names = {"unique_key": path.stem, "output_files_dir": f"{path.stem}_files"}
    text, found = exporter.from_notebook_node(notebook, resources=names)
    head, _, rest = text.lstrip().partition("\n")
    if not head.startswith("# "):
        raise PluginError(f"{path.name} must begin with its title")
    note = f'<a href="{path.name}" download>This page as a notebook.</a>'
    return f"{head}\n\n{note}\n{rest}", found["outputs"]


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds a page for each notebook; the notebook itself stays beside it."""
    for path in sorted((ROOT / "docs" / FOLDER).glob("*.ipynb")):
        text, pictures = page_of(path)
        page = posixpath.join(FOLDER, f"{path.stem}.md")
        files.append(File.generated(config, page, content=text))
        for name, content in pictures.items():
            where = posixpath.join(FOLDER, name)
            files.append(File.generated(config, where, content=content))
    return files


def on_page_markdown(markdown: str, **_: object) -> str:
    """Links to notebooks lead to their pages."""
    return LINK.sub(r"\1.md", markdown)
