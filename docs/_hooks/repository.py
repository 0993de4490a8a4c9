"""Links from pages to files of the repository that are no pages.

README.md is the first page. Other files are in the site as soon as a page leads to
them: Markdown and pictures as they are, and everything else as a listing, which the
search leaves out.
"""

import pathlib
import posixpath
import re

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = pathlib.Path(__file__).resolve().parents[2]
FIRST_PAGE = "README.md"
OTHER_PAGES = ("CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")
PICTURES = (".png", ".svg", ".jpg", ".gif")
LANGUAGES = {".py": "python", ".toml": "toml", ".sh": "bash", ".html": "html"}
LINK = re.compile(r"(\]\()(?!\w+:|#)([^)\s#]+)((?:#[^)\s]*)?\))")


def site_path(file: str) -> str:
    """Where a file of the repository is among the sources of the site.

    Args:
        file: Path from the top of the repository, with slashes.
    """
    if file == FIRST_PAGE:
        return "index.md"
    if file.startswith("docs/"):
        return file.removeprefix("docs/")
    if file.endswith((".md", *PICTURES)):
        return file
    return f"source/{file}.md"


def target(file: str, link: str) -> str:
    """The file that a link in another file leads to, from the top of the repository."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(file), link))


def linked_files(file: str) -> set[str]:
    """The files that a page leads to."""
    text = (ROOT / file).read_text()
    found = {target(file, match[2]) for match in LINK.finditer(text)}
    return {path for path in found if (ROOT / path).is_file()}


def reached_files(pages: list[str]) -> list[str]:
    """All files that are reached from pages over links, with the pages."""
    reached, waiting = set(), list(pages)
    while waiting:
        file = waiting.pop()
        if file not in reached:
            reached.add(file)
            waiting += linked_files(file) if file.endswith(".md") else []
    return sorted(reached)


def listing(file: str) -> str:
    """Markdown that shows a file."""
    language = LANGUAGES.get(pathlib.PurePath(file).suffix, "text")
    head = f"---\ntitle: {file}\nsearch:\n  exclude: true\n---\n\n# {file}\n\n"
    return f"{head}````{language}\n{(ROOT / file).read_text()}````\n"


def with_site_links(text: str, file: str) -> str:
    """The text of a page with links that lead to the same files in the site."""
    here = posixpath.dirname(site_path(file))

    def moved(match: re.Match) -> str:
        path = target(file, match[2])
        if not (ROOT / path).is_file():
            return match[0]
        return match[1] + posixpath.relpath(site_path(path), here or ".") + match[3]

    return LINK.sub(moved, text)


_file_of = {}  # pages that are shown as they are, by their path in the site


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the first page and what is linked."""
    pages = [f"docs/{file.src_uri}" for file in files.documentation_pages()]
    own = [page for page in pages if (ROOT / page).is_file()]
    for file in reached_files([FIRST_PAGE, *OTHER_PAGES, *own]):
        path = site_path(file)
        if path.startswith("source/"):
            files.append(File.generated(config, path, content=listing(file)))
            continue
        if file.endswith(".md"):
            _file_of[path] = file
        if not file.startswith("docs/"):
            added = File.generated(config, path, abs_src_path=str(ROOT / file))
            files.append(added)
    return files


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """Moves the links of pages that are shown as they are."""
    file = _file_of.get(page.file.src_uri)
    return with_site_links(markdown, file) if file else markdown
