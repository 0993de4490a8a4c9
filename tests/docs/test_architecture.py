"""docs/architecture.md is about the package as it is."""

import ast
import importlib
import inspect
import itertools
import pathlib
import re
import traceback

import keras
import numpy as np
import pytest
from small_dit import small_dit

import keras_imm

pytestmark = pytest.mark.slow("follows every call of a training")

ROOT = pathlib.Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "architecture.md"
PACKAGE = ROOT / "keras_imm"


def tree():
    """The groups of the page's tree, in order: {name: entries}."""
    (block,) = re.findall(
        r"^```\n(keras_imm/\n.*?)^```$", PAGE.read_text(), re.S | re.M
    )
    groups = {}
    for line in block.splitlines()[1:]:
        if heading := re.fullmatch(r"  \[(.*)\]", line):
            entries = groups.setdefault(heading[1], [])
        elif entry := re.match(r"  (\S+)\s+\S", line):
            entries.append(entry[1])
    return groups


def imported_names(path):
    """All that a file imports, also inside functions, by full name."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def imported_rooms(path):
    names = (name.split(".") for name in imported_names(path))
    return {name[1] for name in names if name[0] == "keras_imm"}


def section(title):
    return re.search(
        rf"^## {title}.*?\n(.*?)(?=^## |\Z)", PAGE.read_text(), re.S | re.M
    )[1]


@pytest.mark.one_backend("reads a page")
def test_the_tree_is_the_package():
    listed = [entry for entries in tree().values() for entry in entries]
    exist = {
        path.name + ("/" if path.is_dir() else "")
        for path in PACKAGE.iterdir()
        if path.name != "__pycache__"
    }
    assert len(listed) == len(set(listed))
    assert set(listed) == exist


@pytest.mark.one_backend("reads a page")
def test_groups_import_what_stands_above_them_alone():
    floors = {
        entry.removesuffix("/").removesuffix(".py"): floor
        for floor, entries in enumerate(tree().values())
        for entry in entries
    }
    for path in PACKAGE.rglob("*.py"):
        room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if room == "__init__":
            continue
        for other in imported_rooms(path):
            assert floors[other] <= floors[room], f"{path} imports {other}"


@pytest.mark.one_backend("reads a page")
def test_frameworks_are_imported_where_the_page_says():
    importing = {
        path.relative_to(PACKAGE).parts[0] + "/"
        for path in PACKAGE.rglob("*.py")
        if {"jax", "tensorflow", "torch"}
        & {name.split(".")[0] for name in imported_names(path)}
    }
    sentence = re.search(r"are imported in (.*?) alone", PAGE.read_text(), re.S)[1]
    assert importing == set(re.findall(r"`(\w+/)`", sentence))


@pytest.mark.one_backend("reads a page")
@pytest.mark.parametrize("title", ["One batch", "One request", "The contracts"])
def test_what_is_named_exists(title):
    """A link's module, or one linked earlier, has the classes and methods."""
    text = section(title)
    paths = re.findall(r"\]\(\.\./(keras_imm/[\w/]+\.py)\)", text)
    assert paths
    modules = [
        importlib.import_module(path.removesuffix(".py").replace("/", "."))
        for path in paths
        if not re.match(r"keras_imm/backend/(jax|tensorflow|torch)/", path)
    ]
    modules.append(keras_imm.backend)
    for name, attribute in re.findall(r"`([A-Z]\w+)\.(\w+)`", text):
        found = [getattr(module, name) for module in modules if hasattr(module, name)]
        assert found, name
        assert hasattr(found[0], attribute), f"{name}.{attribute}"


def rooms(stack):
    """The modules on a stack that do not trace functions, each once in a row."""
    files = [
        pathlib.Path(frame.filename).relative_to(PACKAGE).as_posix()
        for frame in stack
        if pathlib.Path(frame.filename).is_relative_to(PACKAGE)
    ]
    backend = f"backend/{keras.backend.backend()}/"
    files = [f.replace(backend, "backend/<name>/") for f in files]
    tracing = ("backend/<name>/graphs.py", "backend/<name>/compilation.py")
    return [f for f, _ in itertools.groupby(f for f in files if f not in tracing)]


@pytest.fixture
def stacks(monkeypatch):
    """The stacks of all calls of the transformer's blocks."""
    seen = []
    block = importlib.import_module("keras_imm.layers.dit_block").DiTBlock
    call = block.call

    def traced(self, *args, **kwargs):
        seen.append([*traceback.extract_stack()[:-1]])
        return call(self, *args, **kwargs)

    traced.__signature__ = inspect.signature(call)
    monkeypatch.setattr(block, "call", traced)
    return seen


def test_the_walks_are_what_happens(stacks):
    model = keras_imm.IMM(small_dit())
    model.compile("adam")
    stacks.clear()  # of building it
    x, labels = np.zeros((8, 4, 4, 1), "float32"), np.arange(8) % 3
    model.fit(x, labels, batch_size=8, verbose=0)
    walk = [
        *("model.py", "backend/<name>/model.py", "backend/<name>/train_step.py"),
        *("objectives/batch_loss.py", "objectives/moment_matching.py"),
        *("flow_map.py", "backbones/dit.py"),
    ]
    # The target's pass and the loss's, and no other.
    passes = {
        tuple(f.name for f in stack if f.name in ("target", "loss")) for stack in stacks
    }
    assert passes == {("target", "target"), ("loss", "loss")}
    assert all(rooms(stack) == walk for stack in stacks)

    stacks.clear()
    model.generate([0, 1], num_steps=2)
    assert stacks
    walk = [
        *("model.py", "samplers/generation.py", "samplers/pushforward.py"),
        *("flow_map.py", "backbones/dit.py"),
    ]
    assert all(rooms(stack) == walk for stack in stacks)
