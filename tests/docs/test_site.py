"""What `make docs` adds to the pages: the API, links to files, all that is shown."""

import base64
import importlib
import importlib.util
import inspect
import json
import pathlib
import re
import types

import keras
import pytest

import keras_imm

pytest.importorskip("mkdocs", reason="needs the extra `docs`")
from mkdocs.exceptions import PluginError

ROOT = pathlib.Path(__file__).resolve().parents[2]
ASSETS = ROOT / "docs" / "assets"

pytestmark = pytest.mark.one_backend("reads sources and pages")


def hook(name):
    path = ROOT / "docs" / "_hooks" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"docs_{name}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def reference():
    return hook("reference")


@pytest.fixture(scope="module")
def written(reference):
    return reference.Reference()


repository, offline, docstrings = map(hook, ("repository", "offline", "docstrings"))


@pytest.fixture
def tutorials():
    pytest.importorskip("nbconvert", reason="needs the extra `docs`")
    return hook("tutorials")


def notebook(path, title="# Cats\n\nAll of them.", counts=(1,)):
    """A notebook with a title and cells that print a picture, so often run."""
    pixel = base64.b64encode(b"\x89PNG a picture").decode()
    output = {"output_type": "display_data", "data": {"image/png": pixel}}
    cells = [{"cell_type": "markdown", "metadata": {}, "source": title}]
    for count in counts:
        cell = {"cell_type": "code", "metadata": {}, "source": "show()"}
        outputs = [{**output, "metadata": {}}]
        cells.append({**cell, "execution_count": count, "outputs": outputs})
    text = {"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 4}
    path.write_text(json.dumps(text))
    return path


def test_a_notebook_becomes_a_page_with_its_pictures(tutorials, tmp_path):
    text, pictures = tutorials.page_of(notebook(tmp_path / "cats.ipynb"))
    assert text.startswith("# Cats\n")
    assert text.index('<a href="cats.ipynb" download>') < text.index("All of them.")
    (name,) = pictures
    assert name.startswith("cats_files/") and f"]({name})" in text
    assert pictures[name].startswith(b"\x89PNG")


@pytest.mark.parametrize("counts", [(None,), (2,), (1, 3), (2, 1)])
def test_a_notebook_that_was_not_run_in_order_is_refused(tutorials, tmp_path, counts):
    with pytest.raises(PluginError, match=r"cats\.ipynb was not run"):
        tutorials.page_of(notebook(tmp_path / "cats.ipynb", counts=counts))


def test_a_notebook_without_a_title_is_refused(tutorials, tmp_path):
    with pytest.raises(PluginError, match="must begin with its title"):
        tutorials.page_of(notebook(tmp_path / "cats.ipynb", title="Cats"))


def test_links_to_notebooks_lead_to_their_pages(tutorials):
    text = "[a](cats.ipynb), [b](../tutorials/cats.ipynb#c), [d](cats.md), `x.ipynb`"
    assert tutorials.on_page_markdown(text) == (
        "[a](cats.md), [b](../tutorials/cats.md#c), [d](cats.md), `x.ipynb`"
    )


def public_modules():
    """Modules of the package without an underscore, but the old path of objectives."""
    found = {n for n in keras_imm.__all__ if inspect.ismodule(getattr(keras_imm, n))}
    return {f"keras_imm.{name}" for name in found - {"objective"}} | {"keras_imm"}


def defined(module):
    """What a module lists, or else defines: the names that a user finds in it."""
    if hasattr(module, "__all__"):
        return {n for n in module.__all__ if not inspect.ismodule(getattr(module, n))}
    return {
        name
        for name, value in vars(module).items()
        if getattr(value, "__module__", None) == module.__name__
        and not name.startswith("_")
    }


def test_every_public_name_is_on_a_page(written):
    on_pages = {name for names in written.pages.values() for name in names}
    modules = {name.rpartition(".")[0] for name in on_pages}
    assert public_modules() <= modules
    for name in modules:
        module = importlib.import_module(name)
        missing = {f"{name}.{one}" for one in defined(module)} - on_pages
        assert not missing
    objects = [keras_imm.objectives.MomentMatching, keras_imm.schedules.Cosine]
    paths = {f"{one.__module__.split('.')[1]}.{one.__name__}" for one in objects}
    assert {f"keras_imm.{path}" for path in paths} <= on_pages


def test_each_object_is_described_once(written):
    texts = "\n".join(written.text(page) for page in written.pages)
    described = re.findall(r"^::: (\S+)$", texts, re.MULTILINE)
    assert len(described) == len(set(described))
    assert "keras_imm.FlowMap" in described
    assert "keras_imm.flow_map.FlowMap" not in described
    assert "## `keras_imm.flow_map.FlowMap` { #keras_imm.flow_map.FlowMap }" in texts


def public_members(kind):
    """Methods and properties of a class that are its package's own."""
    for name, value in vars(kind).items():
        routine = isinstance(value, types.FunctionType | classmethod | property)
        if routine and not name.startswith("_"):
            outside = [
                base
                for base in kind.__mro__[1:]
                if name in vars(base) and not base.__module__.startswith("keras_imm")
            ]
            if not outside:
                yield name


def test_every_public_method_has_a_docstring(written):
    """Its own, or that of the method of this package that it overrides."""
    names = [name for names in written.pages.values() for name in names]
    missing, count = [], 0
    for path in names:
        module, _, name = path.rpartition(".")
        kind = getattr(importlib.import_module(module), name)
        if inspect.isclass(kind):
            for member in public_members(kind):
                count += 1
                if not inspect.getdoc(getattr(kind, member)):
                    missing.append(f"{path}.{member}")
    assert count > 200
    assert not missing


def test_a_name_without_docstring_is_seen(reference):
    package = reference.load()
    assert not reference.undocumented(package)
    package["samplers"]["Euler"].target.docstring = None
    assert reference.undocumented(package) == ["keras_imm.samplers.Euler"]


def test_names_in_code_are_links(written):
    class Files:
        def get_file_from_path(self, path):
            return types.SimpleNamespace(url=path.replace(".md", ".html"))

    def links(code):
        text = written.with_links(f"<p><code>{code}</code></p>", "a.html", Files())
        return re.findall('href="([^"]*)"', text)

    assert links("keras_imm.samplers.Euler()") == [
        "reference/samplers.html#keras_imm.samplers.Euler"
    ]
    assert links("keras_imm.flow_map.FlowMap.velocity") == [
        "reference/keras_imm.html#keras_imm.FlowMap"
    ]
    assert links("keras_imm.samplers") == links("keras.Model") == []


def test_links_lead_to_the_same_files_in_the_site():
    text = (
        "[a](../keras_imm/model.py), ![b](../examples/pictures/x.png), "
        "[c](scaling.md#on-what), [d](../README.md), [e](https://keras.io), [f](#g)"
    )
    assert repository.with_site_links(text, "docs/objectives.md") == (
        "[a](source/keras_imm/model.py.md), ![b](../examples/pictures/x.png), "
        "[c](scaling.md#on-what), [d](index.md), [e](https://keras.io), [f](#g)"
    )
    text = "[a](docs/scaling.md), ![b](examples/pictures/digits_samples.png)"
    assert repository.with_site_links(text, "README.md") == (
        "[a](scaling.md), ![b](examples/pictures/digits_samples.png)"
    )


def test_files_are_reached_over_pages():
    reached = repository.reached_files(["README.md"])
    assert {"docs/troubleshooting.md", "tests/test_training_data.py"} <= set(reached)
    assert "keras_imm/registry.py" not in reached


def test_listings_show_files_and_are_not_searched():
    text = repository.listing("keras_imm/registry.py")
    assert (ROOT / "keras_imm" / "registry.py").read_text() in text
    assert "exclude: true" in text


def test_what_a_page_would_fetch_is_seen():
    seen = offline.fetched_by_page(
        '<link href="https://fonts.example/css" rel="stylesheet">'
        "<script src='//cdn.example/x.js'></script><img src=https://a.example/b.png>"
        "<style>@import 'https://c.example/d.css';</style>"
        '<a href="https://e.example">not fetched</a><script src="x.js"></script>'
        '<link rel="canonical" href="https://f.example">'
    )
    assert [address.split("//")[1].split(".")[0] for address in seen] == [
        *("fonts", "cdn", "a", "c")
    ]


def test_styles_and_formulas_are_carried_along():
    style = (ASSETS / "katex" / "katex.min.css").read_text()
    assert not offline.fetched_by_style(style)
    fonts = set(re.findall(r"url\(([^)]*)\)", style))
    assert fonts == {
        f"fonts/{path.name}" for path in (ASSETS / "katex" / "fonts").iterdir()
    }
    listed = (ASSETS / "VERSIONS.txt").read_text()
    for folder in filter(pathlib.Path.is_dir, ASSETS.iterdir()):
        assert f"{folder.name}/" in listed
        assert "Permission is hereby granted" in (folder / "LICENSE").read_text()
    (version,) = re.findall(r"katex@([\d.]+)`", listed)
    assert f'"{version}"' in (ASSETS / "katex" / "katex.min.js").read_text()


def test_call_arguments_are_a_list():
    docstring = inspect.getdoc(keras_imm.FlowMapModel)
    text = docstrings.with_call_arguments(docstring)
    assert "\n    - `x_t`: Samples at time t" in text
    assert "\n    - `labels`: Integers in [0, num_classes], shape (batch,)." in text
    assert docstrings.with_call_arguments(inspect.getdoc(keras.Model)) == (
        inspect.getdoc(keras.Model)
    )


def test_what_notebooks_leave_behind_is_no_page():
    """`make tutorials` runs them where they are, and they write to runs/."""
    text = (ROOT / "mkdocs.yml").read_text()
    (excluded,) = re.findall(r"^exclude_docs: \|\n((?:  .*\n)+)", text, re.MULTILINE)
    assert "/tutorials/runs/" in excluded.split()
