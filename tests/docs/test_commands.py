"""Commands and code of the pages: what they call is there, with the flags they give."""

import ast
import contextlib
import functools
import importlib
import importlib.util
import inspect
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
PAGES = sorted(
    str(path.relative_to(ROOT))
    for path in [
        *ROOT.glob("*.md"),
        *ROOT.glob("docs/*.md"),
        ROOT / "benchmarks/RESULTS.md",
    ]
)
BLOCK = re.compile(
    r"(?:^<!-- not run: (.*) -->\n\n?)?^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE
)
COMMAND = re.compile(
    r"^(?:    |\$ )((?:[A-Z_]+=\S+ )*(?:\S*python\S*|make|bash) .*)$", re.M
)
INLINE = re.compile(r"`((?:[A-Z_]+=\S+ )*(?:python|make|bash) [^`]+)`")
ABSL = re.compile(r"DEFINE_\w+\(\s*\"(\w+)\"")
ARGPARSE = re.compile(r"add_argument\(\s*\"--(\w+)\"")

pytestmark = pytest.mark.one_backend("reads pages")


def text_of(page):
    return (ROOT / page).read_text()


def commands_of(page):
    """What a page tells to type: indented lines and what stands between backquotes."""
    text = re.sub(r"```.*?```", "", text_of(page), flags=re.DOTALL)
    inline = [re.sub(r"\s+", " ", found) for found in INLINE.findall(text)]
    return COMMAND.findall(text) + inline


@functools.cache
def flags_of(script):
    """The flags of a script, and of the scripts beside it that it imports."""
    text = script.read_text()
    found = {*ABSL.findall(text), *ARGPARSE.findall(text)}
    for name in re.findall(r"^(?:import|from) (\w+)", text, re.MULTILINE):
        for folder in (script.parent, ROOT / "examples"):
            beside = folder / f"{name}.py"
            if beside.exists() and beside != script:
                found |= flags_of(beside)
    return found


@functools.cache
def package_flags(module):
    """The flags in the files of a module that is run by `python -m`."""
    path = ROOT.joinpath(*module.split("."))
    files = path.rglob("*.py") if path.is_dir() else [path.with_suffix(".py")]
    return {f for file in files for f in ARGPARSE.findall(file.read_text())}


def wrong(command):
    """What of a command is not there."""
    words = [w.strip("\"'") for w in command.split(" #")[0].rstrip("\\").split()]
    words = [w for w in words if not re.match(r"[A-Z_]+=", w)]
    program, *rest = words
    if program == "make":
        targets = re.findall(r"^([\w-]+):", text_of("Makefile"), re.MULTILINE)
        return [w for w in rest if w not in targets]
    if program == "bash":
        return [] if ROOT.joinpath(rest[0]).exists() else rest[:1]
    given = {re.match(r"\[?--(\w+)", w)[1] for w in rest if re.match(r"\[?--\w", w)}
    if rest[0] == "-m":
        if not rest[1].startswith("keras_imm"):
            return []
        if importlib.util.find_spec(rest[1]) is None:
            return [rest[1]]
        return sorted(given - package_flags(rest[1]))
    if rest[0].startswith("-"):
        return []
    script = ROOT / rest[0]
    if not script.exists():
        return [rest[0]]
    known = flags_of(script) | {"help", "helpfull"}
    return sorted(
        f for f in given if f not in known and f.removeprefix("no") not in known
    )


@pytest.mark.parametrize("page", PAGES)
def test_commands_are_there(page):
    found = {command: wrong(command) for command in commands_of(page)}
    assert not {command: missing for command, missing in found.items() if missing}


def test_wrong_commands_are_seen():
    assert wrong("python examples/digits.py --steps=3 --seed=1 --nodrop_labels") == [
        "nodrop_labels"
    ]
    assert wrong("KERAS_BACKEND=jax python examples/none.py") == ["examples/none.py"]
    assert wrong("python -m keras_imm.serving run a --prot=1") == ["prot"]
    assert wrong("python -m keras_imm.nothing") == ["keras_imm.nothing"]
    assert wrong("make digits nothing ARGS=--a") == ["nothing"]
    assert wrong("bash benchmarks/none.sh") == ["benchmarks/none.sh"]


def resolve(node, names):
    """What a dotted name stands for; None where it begins with a variable."""
    if isinstance(node, ast.Name):
        return names.get(node.id)
    owner = resolve(node.value, names) if isinstance(node, ast.Attribute) else None
    return None if owner is None else getattr(owner, node.attr)


def unresolved(code):
    """Imports, dotted names and arguments of a block that are not there."""
    names = {name: importlib.import_module(name) for name in ("keras", "keras_imm")}
    found = []
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            exec(compile(ast.Module([node], []), "imports", "exec"), names)
    for node in ast.walk(ast.parse(code)):
        try:
            if isinstance(node, ast.Attribute):
                resolve(node, names)
            elif isinstance(node, ast.Call) and (called := resolve(node.func, names)):
                keywords = dict.fromkeys(k.arg for k in node.keywords if k.arg)
                with contextlib.suppress(ValueError):  # written in C, without one
                    signature = inspect.signature(called)
                    signature.bind_partial(*node.args, **keywords)
        except (AttributeError, TypeError) as error:
            found.append(f"{ast.unparse(node)}: {error}")
    return found


def blocks():
    return [
        pytest.param(code, id=f"{page}-{number}")
        for page in PAGES
        for number, (_, code) in enumerate(BLOCK.findall(text_of(page)))
    ]


@pytest.mark.parametrize("code", blocks())
def test_names_and_arguments_are_there(code):
    assert not unresolved(code)


def test_wrong_names_and_arguments_are_seen():
    assert unresolved("keras_imm.IMN(1)")
    assert unresolved("keras_imm.kernels.Laplace(colour=1)")
    assert unresolved("from keras_imm import serving\nserving.export_all(model)")
    assert not unresolved("model.fit(keras_imm.datasets.load('a', batch_size=2))")


# Tests that run all blocks of a page which are not marked.
RUN = {
    "README.md": "tests/test_readme.py",
    "docs/guide.md": "tests/test_readme.py",
    "docs/models.md": "tests/test_readme.py",
    "docs/extending.md": "tests/docs/test_extending.py",
    "docs/own_images.md": "tests/docs/test_own_images.py",
    "docs/serving.md": "tests/docs/test_serving.py",
    "docs/objectives.md": "",
    "docs/precision.md": "",
}


@pytest.mark.parametrize("page", PAGES)
def test_each_block_runs_or_says_why_not(page):
    marks = [mark for mark, _ in BLOCK.findall(text_of(page))]
    if all(marks):
        assert page not in RUN
    elif RUN[page]:
        assert pathlib.Path(page).name in text_of(RUN[page])
    for mark in filter(None, marks):
        assert re.match(
            r"needs (a network|an accelerator|several (devices|hosts))", mark
        )


@pytest.mark.parametrize("page", [page for page, test in RUN.items() if not test])
def test_blocks_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {name: importlib.import_module(name) for name in ("keras", "keras_imm")}
    codes = [code for mark, code in BLOCK.findall(text_of(page)) if not mark]
    assert codes
    for code in codes:
        exec(compile(code, page, "exec"), names)
