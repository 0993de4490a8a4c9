"""What several files say of the project is one thing."""

import importlib.util
import pathlib
import re
import tomllib

import pytest

import keras_imm

ROOT = pathlib.Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PINNED = dict(
    line.split("==")
    for line in (ROOT / "constraints.txt").read_text().splitlines()
    if not line.startswith("#")
)

pytestmark = pytest.mark.one_backend("reads files of the project")


def script(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / ".ci" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def requirements():
    extras = PROJECT["optional-dependencies"].values()
    return [*PROJECT["dependencies"], *(one for extra in extras for one in extra)]


def numbers(version):
    return tuple(map(int, re.findall(r"\d+", version)))


def test_one_version():
    assert PROJECT["dynamic"] == ["version"]
    (cited,) = re.findall(
        r"^version: (.*)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE
    )
    assert cited == keras_imm.__version__


def test_the_linter_of_commits_is_that_of_ci():
    text = (ROOT / ".pre-commit-config.yaml").read_text()
    assert set(re.findall(r"ruff==([\d.]+)", text)) == {PINNED["ruff"]}
    makefile = (ROOT / "Makefile").read_text()
    entries = [line.split()[:2] for line in re.findall(r"entry: (.*)", text)]
    assert entries == [["ruff", "check"], ["ruff", "format"]]
    assert all(f"-m {' '.join(entry)}" in makefile for entry in entries)


def test_every_requirement_has_a_bound_and_a_pinned_version():
    for requirement in requirements():
        name, bound = re.match(r"([\w.-]+)>=([\w.]+)", requirement).groups()
        assert numbers(PINNED[name]) >= numbers(bound), requirement


def test_workflows_do_what_ci_does():
    workflow = (ROOT / ".github" / "workflows" / "tests.yml").read_text()
    targets = re.findall(r"^make (\w+)$", (ROOT / ".ci" / "run").read_text(), re.M)
    assert targets == ["lint", "docs", "test"]
    made = {
        word for line in re.findall(r"make (.*)", workflow) for word in line.split()
    }
    assert set(targets) <= made
    pythons = {
        one.rpartition(" ")[2]
        for one in PROJECT["classifiers"]
        if re.search(r":: 3\.\d+$", one)
    }
    assert set(re.findall(r'"(3\.\d+)"', workflow)) == pythons
    assert min(pythons) == PROJECT["requires-python"].removeprefix(">=")
    assert f'python-version: "{min(pythons)}"' in workflow
    backends = set(script("bounds").FRAMEWORKS)
    for matrix in re.findall(r"backend: \[(.*)\]", workflow):
        assert set(matrix.split(", ")) == backends


def test_a_release_tries_every_extra_of_a_user():
    extras = set(PROJECT["optional-dependencies"])
    # The build with GPU kernels is the other one's size many times over.
    assert set(script("release").EXTRAS) == extras - {"tensorflow", "docs", "dev"}


def test_bounds_are_those_of_the_project():
    bounds = script("bounds")
    assert bounds.lower_bound("keras>=3.15,<3.16") == "keras==3.15"
    for backend in bounds.FRAMEWORKS:
        oldest = bounds.requirements(backend, oldest=True)
        named = {one.partition("==")[0].removesuffix("-cpu") for one in oldest}
        assert {"keras", "numpy", "absl-py", backend} <= named
    others = bounds.tests_of_others("jax")
    assert str(ROOT / "tests" / "layers" / "test_resampling.py") in others
    assert str(ROOT / "tests" / "test_project.py") not in others


@pytest.mark.long("it tests the option itself")
def test_long_tests_run_if_they_are_asked_for(pytestconfig):
    assert pytestconfig.getoption("--long")
