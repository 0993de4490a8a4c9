"""The package as others meet it: the wheel, what an import loads, who imports whom."""

import ast
import collections
import email
import functools
import graphlib
import importlib.util
import os
import pathlib
import re
import subprocess
import sys
import zipfile

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "keras_imm"
BACKENDS = ("jax", "tensorflow", "torch")

# What a floor is for, and the rooms on it. A room imports itself, lower floors, and
# on its own floor only what `NEIGHBOURS` says.
FLOORS = [
    {
        "ground": (
            "files",
            "keras_callbacks",
            "precision",
            "registry",
            "training_data",
            "training_length",
            "validation",
        ),
        "backend": ("backend",),
    },
    {
        "pieces": (
            "kernels",
            "parameterizations",
            "pixels",
            "schedules",
            "time_distributions",
            "time_mappings",
            "weightings",
        ),
        "data": ("augmentation", "datasets", "fit_data", "latents", "metrics"),
        "weights": ("averages", "optimizers"),
        "devices": ("devices", "distribution"),
    },
    {"flow map": ("backbones", "flow_map", "layers")},
    {
        "objectives": ("objective", "objectives"),
        "samplers": ("samplers",),
        "cost of a network": ("flops", "memory"),
    },
    {"model": ("imm", "model")},
    {"recipes": ("presets", "recipes")},
    {"around a run": ("callbacks", "checkpoints", "serving")},
]
# Imports within a floor: (who, whom).
NEIGHBOURS = {
    ("files", "validation"),  # checks how a preset is asked for
    ("parameterizations", "schedules"),  # c_out is a function of alpha and sigma
    ("time_mappings", "schedules"),  # r(s, t) is equidistant in eta or log-SNR
    ("weightings", "schedules"),  # w(s, t) is a function of log-SNR
    ("datasets", "latents"),  # stores shards of latents
    ("metrics", "datasets"),  # the images that samples of Fashion-MNIST are measured by
    ("pixels", "latents"),  # decodes latents
    ("backbones", "layers"),
    ("flow_map", "backbones"),  # what a backbone is called with
    ("objective", "objectives"),  # the old path of the same names
    ("imm", "model"),  # IMM is a FlowMapModel
}
FLOOR_OF = {
    room: floor
    for floor, roles in enumerate(FLOORS)
    for rooms in roles.values()
    for room in rooms
}
MAY_KNOW_THE_BACKEND = {"backend", "serving"}


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


def is_of_a_preset(path):
    """Whether it is a file of a trained model that comes with the library."""
    return path.parts[-3] == "presets" and path.is_file() and path.suffix != ".pyc"


@pytest.mark.slow("builds a wheel")
@pytest.mark.one_backend("the wheel knows no backend")
def test_the_wheel_holds_the_package_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (metadata,) = (n for n in names if n.endswith("dist-info/METADATA"))
        metadata = email.message_from_bytes(archive.read(metadata))
    sources = {
        str(path.relative_to(ROOT))
        for path in PACKAGE.rglob("*")
        if path.suffix in (".py", ".npz", ".html")
        or path.name == "py.typed"
        or is_of_a_preset(path)
    }
    assert "keras_imm/metrics/fashion_mnist_v1.npz" in sources
    assert {n for n in names if ".dist-info/" not in n} == sources
    assert any(n.endswith("licenses/LICENSE") for n in names)
    assert metadata["License-Expression"] == "Apache-2.0"
    core = {r for r in metadata.get_all("Requires-Dist") if "extra ==" not in r}
    names = {re.match(r"[\w-]+", requirement).group() for requirement in core}
    assert names == {"keras", "numpy", "absl-py"}


@pytest.mark.slow("builds a wheel")
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


def modules_loaded_by_the_package():
    """Modules in a fresh process after `import keras_imm`, without Keras's."""
    code = """
import sys, keras
before = set(sys.modules)
import keras_imm
print(*sorted(set(sys.modules) - before))
"""
    return python(code).split()


@pytest.mark.slow("child processes")
def test_importing_loads_no_framework_that_keras_does_not():
    code = f"import sys, {{}}; print(sorted(set(sys.modules) & set({BACKENDS})))"
    assert python(code.format("keras_imm")) == python(code.format("keras"))


@pytest.mark.slow("child processes")
def test_importing_loads_keras_and_the_standard_library_alone():
    """No drawing, testing, downloads or data sets; benchmarks/ has the seconds.

    Of the standard library a few modules that Keras has not loaded: email, http or
    asyncio alone would be more.
    """
    loaded = modules_loaded_by_the_package()
    by_top = collections.Counter(name.split(".")[0] for name in loaded)
    assert by_top["keras_imm"] > 50  # it has been imported
    standard = {name for name in by_top if name in sys.stdlib_module_names}
    assert set(by_top) - standard <= {"keras_imm", "keras"}
    assert sum(by_top[name] for name in standard) <= 5


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
    return [path for path in sorted(PACKAGE.rglob("*.py")) if room_of(path) != TOP]


TOP = "__init__"  # the face of the package, which names all rooms


def room_of(path):
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def rooms():
    """Entries at the top of the package."""
    entries = {
        path.stem
        for path in PACKAGE.iterdir()
        if path.suffix == ".py" or (path.is_dir() and any(path.glob("*.py")))
    }
    return entries - {TOP}


def imported_rooms(path):
    names = {name[1] for name in imports(path) if name[0] == "keras_imm"}
    return names - {room_of(path)}


@pytest.mark.one_backend("reads source files")
def test_every_room_has_a_floor():
    assert rooms() == set(FLOOR_OF)
    assert len(FLOOR_OF) == sum(len(r) for f in FLOORS for r in f.values())


@pytest.mark.one_backend("reads source files")
@pytest.mark.parametrize("path", sources(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_room_imports_only_rooms_below(path):
    room = room_of(path)
    for other in imported_rooms(path):
        below = FLOOR_OF[other] < FLOOR_OF[room]
        assert below or (room, other) in NEIGHBOURS, f"{room} imports {other}"


@pytest.mark.one_backend("reads source files")
def test_neighbours_import_each_other_and_not_in_a_circle():
    used = {
        (room_of(path), other) for path in sources() for other in imported_rooms(path)
    }
    assert used >= NEIGHBOURS
    assert all(FLOOR_OF[a] == FLOOR_OF[b] for a, b in NEIGHBOURS)
    graphlib.TopologicalSorter(
        {room: {b for a, b in used if a == room} for room in FLOOR_OF}
    ).prepare()  # raises CycleError


def names_of_the_backend(path):
    """Where a file asks which backend there is."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute):
            chain = ast.unparse(node)
            if re.search(r"\b(backend|config)\.backend$", chain) or re.search(
                r"(^|\.)backend\.name$", chain
            ):
                yield chain
        elif isinstance(node, ast.Constant) and node.value == "KERAS_BACKEND":
            yield node.value
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                pair = node.module, alias.name
                if pair in (("keras.backend", "backend"), ("keras.config", "backend")):
                    yield ".".join(pair)


@pytest.mark.one_backend("reads source files")
@pytest.mark.parametrize("path", sources(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_few_rooms_know_the_backend(path):
    if room_of(path) in MAY_KNOW_THE_BACKEND:
        return
    assert not {name[0] for name in imports(path)} & {*BACKENDS, "jaxlib"}
    assert not list(names_of_the_backend(path))


@pytest.mark.one_backend("reads source files")
def test_backends_are_seen_where_they_may_be_known(tmp_path):
    """The tests above would notice: they do see the imports and names of backend/."""
    files = list((PACKAGE / "backend").rglob("*.py"))
    assert {*BACKENDS} <= {name[0] for path in files for name in imports(path)}
    assert list(names_of_the_backend(PACKAGE / "backend" / "__init__.py"))
    asking = tmp_path / "asking.py"
    for text in (
        "import keras\nkeras.backend.backend()",
        "import keras\nkeras.config.backend()",
        "from keras.backend import backend",
        "from keras_imm import backend\nbackend.name()",
        "import os\nos.environ['KERAS_BACKEND']",
    ):
        asking.write_text(text)
        assert len(list(names_of_the_backend(asking))) == 1, text


@pytest.mark.one_backend("reads a page")
def test_the_printed_tree_is_that_of_the_package():
    """docs/architecture.md: a fenced tree of keras_imm/, a sentence for each entry."""
    page = ROOT / "docs" / "architecture.md"
    if not page.exists():
        pytest.skip("docs/architecture.md has not been written yet")
    blocks = re.findall(
        r"^```.*?\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE
    )
    (tree,) = (b for b in blocks if b.lstrip().startswith("keras_imm/"))
    printed = {}
    for line in tree.splitlines()[1:]:
        match = re.match(r"^(?:[├└]── | {2,4})(\w+)(/|\.py)\s+(\S.*)$", line)
        if match:  # deeper entries and continued sentences have more before them
            name, kind, sentence = match.groups()
            assert (PACKAGE / f"{name}{kind}").exists(), line
            assert len(sentence.split()) > 2, line
            printed[name] = sentence
    assert set(printed) - {TOP} == rooms()


# Files that read a clock, none of which says how long something may take.
CLOCKS = {
    "datasets/test_worker_processes.py": "waits for processes to end, and not for ever",
    "examples/test_encode_latents.py": "kills a run at moments before it would end",
    "examples/test_evaluate.py": "as test_encode_latents",
}


def clocks(source):
    """Readings of a clock of the module `time`."""
    names = "perf_counter|monotonic|process_time|thread_time|time"
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute):
            if re.fullmatch(rf"time\.({names})(_ns)?", ast.unparse(node)):
                yield ast.unparse(node)
        elif isinstance(node, ast.ImportFrom) and node.module in ("time", "timeit"):
            yield node.module


@pytest.mark.one_backend("reads source files")
def test_no_test_measures_seconds():
    """On a busy machine it would fail: benchmarks/ measures."""
    tests = ROOT / "tests"
    reading = {
        str(path.relative_to(tests))
        for path in tests.rglob("*.py")
        if list(clocks(path.read_text()))
    }
    assert reading == set(CLOCKS)
    assert list(clocks("import time\nstart = time.perf_counter()"))


# Where `make check` does not look.
SLOW_FOLDERS = ("benchmarks", "examples", "serving")


def is_marked_slow(node):
    """Whether the decorators of a function or class say so."""
    return any("mark.slow" in ast.unparse(one) for one in node.decorator_list)


def starts_process(node):
    """Whether code calls `subprocess`, or this file's or the backends' helpers."""
    called = {
        ast.unparse(one.func) for one in ast.walk(node) if isinstance(one, ast.Call)
    }
    return any(re.match(r"subprocess\.|(seen_by|python)$", name) for name in called)


def unmarked_starts(source):
    """Functions of a test file that start a process and are not marked slow."""
    tree = ast.parse(source)
    marks = [ast.unparse(node) for node in tree.body if isinstance(node, ast.Assign)]
    if any(m.startswith("pytestmark") and "mark.slow" in m for m in marks):
        return []
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    return [f.name for f in functions if starts_process(f) and not is_marked_slow(f)]


@pytest.mark.one_backend("reads source files")
def test_the_fast_tests_start_no_process():
    """`make check` takes two minutes: what starts a process is marked slow."""
    tests = ROOT / "tests"
    found = {
        f"{path.relative_to(tests)}: {name}"
        for path in tests.rglob("test_*.py")
        if path.relative_to(tests).parts[0] not in SLOW_FOLDERS
        for name in unmarked_starts(path.read_text())
    }
    helpers = {"python", "wheel", "modules_loaded_by_the_package"}  # of marked tests
    assert found <= {f"test_package.py: {name}" for name in helpers}
    assert unmarked_starts("def test_x():\n    subprocess.run([])") == ["test_x"]
