"""The fast tests of a backend with the oldest, or the newest, versions allowed.

    python .ci/bounds.py oldest jax
    python .ci/bounds.py newest torch --python=python3.13 tests/samplers

An environment is made in a temporary folder, of the core dependencies and the extra of
the backend: at the lower bounds of pyproject.toml, or as new as they are published.
Whatever follows the options is handed to pytest. On Linux, PyPI's PyTorch brings
gigabytes of CUDA along; PIP_EXTRA_INDEX_URL may name an index of builds for CPUs.
"""

import argparse
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import tomllib

ROOT = pathlib.Path(__file__).resolve().parents[1]
FRAMEWORKS = ("jax", "tensorflow", "torch")
EXTRAS = {"tensorflow": "tensorflow-cpu", "jax": "stablehlo", "torch": "torch"}
# What the tests import beside the package.
TOOLS = (
    "huggingface_hub",
    "pillow",
    "pytest",
    "safetensors",
    "scikit-learn",
    "scipy",
    "tensorboard",
    "tensorboardX",
)
# What no version of a framework matters to.
LEFT_OUT = ("benchmarks", "docs", "examples", "serving")


def lower_bound(requirement: str) -> str:
    """The oldest version of a requirement: "jax==0.5" of "jax>=0.5,<1"."""
    name, bound = re.match(r"([\w.-]+)>=([\w.]+)", requirement).groups()
    return f"{name}=={bound}"


def requirements(backend: str, oldest: bool) -> list[str]:
    """The core dependencies and those of a backend."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extra = project["optional-dependencies"][EXTRAS[backend]]
    found = project["dependencies"] + extra
    return [lower_bound(one) for one in found] if oldest else found


def tests_of_others(backend: str) -> list[str]:
    """Test files that need another framework, by what they import first of all."""
    others = "|".join(name for name in FRAMEWORKS if name != backend)
    pattern = re.compile(rf"^(?:import|from) (?:{others})\b", re.MULTILINE)
    files = sorted((ROOT / "tests").rglob("test_*.py"))
    return [str(file) for file in files if pattern.search(file.read_text())]


def make_environment(folder: str, python: str, wanted: list[str]) -> pathlib.Path:
    """Installs requirements into a new environment; returns its interpreter."""
    subprocess.run([python, "-m", "venv", folder], check=True)
    interpreter = pathlib.Path(folder, "bin", "python")
    pip = [interpreter, "-m", "pip", "--disable-pip-version-check"]
    subprocess.run([*pip, "install", "--quiet", "--upgrade", *wanted], check=True)
    subprocess.run([*pip, "list"], check=True)
    return interpreter


def main() -> int:
    """Runs the tests; returns pytest's exit code."""
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("versions", choices=("oldest", "newest"))
    parser.add_argument("backend", choices=FRAMEWORKS)
    parser.add_argument("--python", default=sys.executable)
    options, arguments = parser.parse_known_args()
    wanted = [*requirements(options.backend, options.versions == "oldest"), *TOOLS]
    left_out = [ROOT / "tests" / folder for folder in LEFT_OUT]
    left_out += tests_of_others(options.backend)
    with tempfile.TemporaryDirectory(prefix="keras_imm_bounds_") as folder:
        interpreter = make_environment(folder, options.python, wanted)
        command = [interpreter, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
        command += ["-m", "not slow", *(f"--ignore={path}" for path in left_out)]
        environment = {
            **os.environ,
            "KERAS_BACKEND": options.backend,
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(ROOT),
            # JAX 0.5.0 crashes on a CPU when it runs what it finds in its cache.
            "JAX_ENABLE_COMPILATION_CACHE": "false",
        }
        return subprocess.call([*command, *arguments], cwd=ROOT, env=environment)


if __name__ == "__main__":
    sys.exit(main())
