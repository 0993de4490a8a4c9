"""Pages of the API, one for each public module, with every public name of it.

The names are read from the sources, which are not run: `__all__` of a module, or what
it defines without an underscore. Each object is described once, under its first name.
"""

import html
import pathlib
import re

import griffe
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from mkdocs.utils import get_relative_url

ROOT = pathlib.Path(__file__).resolve().parents[2]
PACKAGE = "keras_imm"
# Public, though `import keras_imm` does not name them: for those who extend it.
MORE_MODULES = ("flow_map", "layers")
OLD_NAMES = ("objective",)
FOLDER = "reference"


def load() -> griffe.Module:
    """The package as it is written."""
    return griffe.load(PACKAGE, search_paths=[str(ROOT)], resolve_aliases=True)


def names_of(module: griffe.Module) -> list[str]:
    """The public names that a module defines or lists, modules left out."""
    if module.exports is None:
        return [
            name
            for name, member in module.members.items()
            if not name.startswith("_") and not member.is_alias
        ]
    return [n for n in map(str, module.exports) if not is_module(module, n)]


def is_module(module: griffe.Module, name: str) -> bool:
    """Whether a name is a module, not what is imported from one of that name."""
    path = f"{module.path}.{name}"
    return module[name].is_module and module.imports.get(name, path) == path


def modules_of(package: griffe.Module) -> list[str]:
    """The public modules, the package itself first."""
    listed = [n for n in map(str, package.exports) if is_module(package, n)]
    return ["", *sorted({*listed, *MORE_MODULES} - set(OLD_NAMES))]


def pages_of(package: griffe.Module) -> dict[str, list[str]]:
    """The full names of all that is public: {page: names}."""
    pages = {}
    for name in modules_of(package):
        module = package[name] if name else package
        page = f"{FOLDER}/{name or PACKAGE}.md"
        pages[page] = [f"{module.path}.{one}" for one in names_of(module)]
    return pages


def member(package: griffe.Module, name: str) -> griffe.Object | griffe.Alias:
    """The object of a full name."""
    path, _, last = name.removeprefix(f"{PACKAGE}.").rpartition(".")
    module = package[path] if path else package
    if module[last].is_module and not is_module(module, last):
        return member(package, module.imports[last])
    return module[last]


def undocumented(package: griffe.Module) -> list[str]:
    """Public names, and modules, without a docstring."""
    names = [name for names in pages_of(package).values() for name in names]
    modules = [package[name] if name else package for name in modules_of(package)]
    objects = {name: member(package, name) for name in names}
    objects |= {module.path: module for module in modules}
    return [name for name, found in objects.items() if not found.has_docstring]


def summary(found: griffe.Object | griffe.Alias) -> str:
    """The first sentence of a docstring, on one line of a table."""
    paragraph = found.docstring.value.split("\n\n")[0]
    return " ".join(paragraph.split()).replace("|", "\\|")


class Reference:
    """The pages, and where each name is on them."""

    def __init__(self) -> None:
        self.package = load()
        self.pages = pages_of(self.package)
        self.page_of = {}
        self._first = {}
        for page, names in self.pages.items():
            for name in names:
                path = member(self.package, name).canonical_path
                self._first.setdefault(path, name)
                self.page_of[name] = page

    def first_name(self, name: str) -> str:
        """The name under which an object is described."""
        return self._first[member(self.package, name).canonical_path]

    def text(self, page: str) -> str:
        """Markdown of a page; mkdocstrings writes what a directive stands for."""
        module = page.removeprefix(f"{FOLDER}/").removesuffix(".md")
        path = PACKAGE if module == PACKAGE else f"{PACKAGE}.{module}"
        lines = [_directive(path, level=1, members="false")]
        for name in self.pages[page]:
            first = self.first_name(name)
            if first != name:
                lines.append(f"{_heading(name)}This is `{first}`.\n")
            elif self.package[name.removeprefix(f"{PACKAGE}.")].is_module:
                path = member(self.package, name).path
                own = _directive(path, level=3, show_root_heading="false")
                lines.append(_heading(name) + own)
            else:
                lines.append(_directive(name, level=2))
        return "\n".join(lines)

    def overview(self) -> str:
        """Markdown of the page that lists all names."""
        lines = ["# API reference\n"]
        for page, names in self.pages.items():
            module = pathlib.PurePath(page).stem
            path = PACKAGE if module == PACKAGE else f"{PACKAGE}.{module}"
            found = self.package if path == PACKAGE else self.package[module]
            lines += [f"\n## [{path}]({module}.md)\n\n{summary(found)}\n"]
            lines += ["| | |", "|---|---|"]
            for name in names:
                text = summary(member(self.package, name))
                lines.append(f"| `{name}` | {text} |")
        return "\n".join(lines) + "\n"

    def with_links(self, content: str, url: str, files: Files) -> str:
        """HTML in which the code `keras_imm.<name>` leads to the name's description."""

        def linked(match: re.Match) -> str:
            path = html.unescape(match[1])
            while path and path not in self.page_of:
                path = path.rpartition(".")[0]
            if not path:
                return match[0]
            first = self.first_name(path)
            page = files.get_file_from_path(self.page_of[first])
            return f'<a href="{get_relative_url(page.url, url)}#{first}">{match[0]}</a>'

        code = rf'(?<!">)<code>({PACKAGE}(?:\.\w+)+)[^<]*</code>(?!</a>)'
        return re.sub(code, linked, content)


def _heading(name: str) -> str:
    return f"## `{name}` {{ #{name} }}\n\n"


def _directive(name: str, level: int, **options: str) -> str:
    lines = [f"::: {name}", "    options:", f"      heading_level: {level}"]
    lines += [f"      {option}: {value}" for option, value in options.items()]
    return "\n".join(lines) + "\n"


_reference = None


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Reads the package and puts its pages into the navigation."""
    global _reference
    missing = undocumented(load())
    if missing:
        raise PluginError(f"Public names without a docstring: {', '.join(missing)}")
    _reference = Reference()
    titles = [{pathlib.PurePath(page).stem: page} for page in _reference.pages]
    pages = [f"{FOLDER}/index.md", *titles]
    config.nav = [
        {"API reference": pages} if entry == {"API reference": FOLDER} else entry
        for entry in config.nav
    ]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages."""
    texts = {page: _reference.text(page) for page in _reference.pages}
    texts[f"{FOLDER}/index.md"] = _reference.overview()
    for page, text in texts.items():
        files.append(File.generated(config, page, content=text))
    return files


def on_page_content(content: str, page: Page, files: Files, **_: object) -> str:
    """Links names in code to their descriptions."""
    return _reference.with_links(content, page.url, files)


def on_post_build(config: MkDocsConfig) -> None:
    """Looks for every name on its page."""
    missing = []
    for page, names in _reference.pages.items():
        file = pathlib.Path(config.site_dir, page).with_suffix(".html")
        built = set(re.findall(r'\bid="([^"]+)"', file.read_text()))
        missing += [name for name in names if name not in built]
    if missing:
        raise PluginError(f"Public names that are on no page: {', '.join(missing)}")
