"""The package as others meet it: the wheel, what an import loads, who imports whom."""

import ast
import email
import functools
import importlib.util
import os
import pathlib
import subprocess
import sys
import zipfile

import keras
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "keras_imm"
BACKENDS = ("jax", "tensorflow", "torch")

# A room imports only rooms of lower floors, and itself.
FLOORS = {
    "files": 0,
    "precision": 0,
    "registry": 0,
    "seeds": 0,
    "validation": 0,
    "schedules": 1,
    "kernels": 1,
    "layers": 1,
    "trainers": 1,
    "augmentation": 1,
    "latents": 1,
    "metrics": 1,
    "optimizers": 1,
    "compilation": 0.5,
    "devices": 1,
    "distribution": 1,
    "datasets": 1.5,
    "backbones": 2,
    "parameterizations": 2,
    "time_mappings": 2,
    "weightings": 2,
    "flops": 2.5,
    "objective": 3,
    "samplers": 3,
    "generation": 3.5,
    "imm": 4,
    "recipes": 5,
    "checkpoints": 6,
    "serving": 5,
    "callbacks": 5,
}
MAY_IMPORT_A_BACKEND = {
    "trainers",
    "serving",
    "checkpoints",
    "compilation",
    "devices",
    "distribution",
}


def python(code, **environment):
    """What a fresh process prints."""
    result = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", **environment},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    command = ["-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT]
    subprocess.run([sys.executable, *command], check=True, capture_output=True)
    (path,) = folder.glob("*.whl")
    return path


@pytest.mark.one_backend("the wheel knows no backend")
def test_the_wheel_holds_the_package_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (metadata,) = (n for n in names if n.endswith("dist-info/METADATA"))
        metadata = email.message_from_bytes(archive.read(metadata))
    sources = {
        str(path.relative_to(ROOT))
        for path in PACKAGE.rglob("*")
        if path.suffix == ".py" or path.name == "py.typed"
    }
    assert {n for n in names if ".dist-info/" not in n} == sources
    assert any(n.endswith("licenses/LICENSE") for n in names)
    assert metadata["License-Expression"] == "Apache-2.0"
    core = {r for r in metadata.get_all("Requires-Dist") if "extra ==" not in r}
    assert {r.split(">")[0] for r in core} == {"keras", "numpy", "absl-py"}


@pytest.mark.one_backend("the wheel knows no backend")
def test_the_wheel_installs_into_an_empty_environment_and_imports(wheel, tmp_path):
    """Its dependencies are lent to the environment; the package itself is not."""
    subprocess.run([sys.executable, "-m", "venv", tmp_path], check=True)
    interpreter = tmp_path / "bin" / "python"
    install = ["-m", "pip", "install", "--quiet", "--no-deps", "--no-index", wheel]
    subprocess.run([interpreter, *install], check=True)
    lent = pathlib.Path(importlib.util.find_spec("keras").origin).parents[1]
    code = "import keras_imm; print(keras_imm.__version__, keras_imm.__file__)"
    result = subprocess.run(
        [interpreter, "-c", code],
        env={**os.environ, "PYTHONPATH": str(lent)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    version, file = result.stdout.split()
    assert version == wheel.name.split("-")[1]
    assert pathlib.Path(file).is_relative_to(tmp_path)


def test_importing_loads_no_framework_that_keras_does_not():
    code = f"import sys, {{}}; print(sorted(set(sys.modules) & set({BACKENDS})))"
    assert python(code.format("keras_imm")) == python(code.format("keras"))


def test_importing_loads_no_drawing_or_testing_library():
    code = """
import sys, keras
before = set(sys.modules)
import keras_imm
new = {name.split(".")[0] for name in set(sys.modules) - before}
print(*sorted(new - set(sys.stdlib_module_names)))
"""
    allowed = {"keras_imm", "keras", keras.backend.backend()}
    assert set(python(code).split()) <= allowed


@pytest.mark.timing
def test_importing_costs_little_more_than_keras():
    code = f"import sys; sys.path.insert(0, {str(ROOT / 'benchmarks')!r})\n"
    code += "import import_time; print(import_time.medians()[1])"
    assert float(python(code)) < 0.2


@functools.cache
def imports(path):
    """All that a file imports, also inside functions: [(top module, room or None)]."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        found += [name.split(".") for name in names]
    return found


def sources():
    return [
        path for path in sorted(PACKAGE.rglob("*.py")) if path.parent != PACKAGE
    ] + [path for path in sorted(PACKAGE.glob("*.py")) if path.name != "__init__.py"]


def room_of(path):
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


@pytest.mark.parametrize("path", sources(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_room_imports_only_rooms_below(path):
    room = room_of(path)
    assert room in FLOORS, f"give {room} a floor in this test"
    if room not in MAY_IMPORT_A_BACKEND:
        assert not {name[0] for name in imports(path)} & {*BACKENDS, "jaxlib"}
    for name in imports(path):
        if name[0] == "keras_imm" and name[1] != room:
            assert FLOORS[name[1]] < FLOORS[room], f"{room} imports {name[1]}"


def test_backends_are_seen_where_they_may_be_imported():
    """The test above would notice: it does see the imports of the trainers."""
    tops = {
        name[0]
        for path in (PACKAGE / "trainers").glob("*.py")
        for name in imports(path)
    }
    assert {"jax", "tensorflow", "torch"} <= tops
