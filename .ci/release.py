"""The checklist of a release: what is built is installed and tried as users will.

    python .ci/release.py
    python .ci/release.py --pythons=python3.13 --extras=torch,jax --no-sdist

Wheel and sdist are built; the sdist builds the same wheel and passes its own tests of
the package; the wheel is installed with each extra, of the versions in constraints.txt,
into an empty environment of each Python, where a model that comes with the library
draws digits, or what the extra is for is done. It stops at nothing and says in the end
what failed. It runs in the environment that `make test` makes.
"""

import argparse
import os
import pathlib
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable

ROOT = pathlib.Path(__file__).resolve().parents[1]
PYTHONS = ("python3.11", "python3.12", "python3.13")
MODEL = """
import keras_imm
model = keras_imm.FlowMapModel.from_preset("imm_digits")
"""
DRAW = f"""{MODEL}
images = model.to_uint8(model.generate(labels=range(10), seed=0))
assert images.shape == (10, 8, 8, 1) and images.std() > 50, images.std()
"""
# {extra: (backend, extras that are installed with it, what is tried)}
EXTRAS = {
    "tensorflow-cpu": ("tensorflow", (), DRAW),
    "jax": ("jax", (), DRAW),
    "torch": ("torch", (), DRAW),
    "hub": ("jax", ("jax",), "import keras_imm, huggingface_hub"),
    "data": ("jax", ("jax",), "import keras_imm, array_record, grain, PIL"),
    "latents": ("tensorflow", (), "import keras_imm, keras_cv, safetensors"),
    "tensorboard": ("jax", ("jax",), "import keras_imm, tensorboardX"),
    "serving": (
        "tensorflow",
        (),
        f"{MODEL}keras_imm.serving.export_saved_model(model, 'served')",
    ),
    "litert": (
        "tensorflow",
        (),
        f"{MODEL}keras_imm.serving.export_litert(model, 'digits.tflite')",
    ),
    "onnx": (
        "torch",
        (),
        f"{MODEL}keras_imm.serving.export_onnx(model, 'digits.onnx')",
    ),
    "openvino": (
        "torch",
        (),
        f"{MODEL}keras_imm.serving.export_openvino(model, 'digits')",
    ),
    "stablehlo": (
        "jax",
        (),
        f"{MODEL}keras_imm.serving.export_stablehlo(model, 'digits.jax')",
    ),
    "serve": ("jax", ("jax",), "import keras_imm.serving.server.application, grpc"),
    "examples": ("jax", ("jax",), "import keras_imm, matplotlib, PIL, sklearn"),
}


def run(*command: object, **options: object) -> str:
    """What a command prints; RuntimeError with its last lines if it fails."""
    done = subprocess.run(
        [*map(str, command)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        **options,
    )
    if done.returncode:
        raise RuntimeError("\n".join(done.stdout.splitlines()[-15:]))
    return done.stdout.strip()


def check_versions() -> None:
    """The version that is cited is the package's, and the changelog has it."""
    source = (ROOT / "keras_imm" / "__init__.py").read_text()
    (version,) = re.findall(r'^__version__ = "(.*)"$', source, re.MULTILINE)
    for file, line in (
        ("CITATION.cff", rf"^version: {re.escape(version)}$"),
        ("CHANGELOG.md", rf"^## \[{re.escape(version)}\] - \d{{4}}-\d\d-\d\d$"),
    ):
        if not re.search(line, (ROOT / file).read_text(), re.MULTILINE):
            raise RuntimeError(f"{file} does not have the version {version}")


def check_checkout() -> None:
    """What is built is what was committed."""
    changed = run("git", "status", "--porcelain", cwd=ROOT)
    if changed:
        raise RuntimeError(changed)


def built(
    folder: pathlib.Path, source: pathlib.Path = ROOT
) -> tuple[pathlib.Path, ...]:
    """Builds wheel and sdist; returns their paths."""
    command = ("-m", "build", "--no-isolation", "--outdir", folder, source)
    run(sys.executable, *command)
    (wheel,), (sdist,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    return wheel, sdist


def check_sdist(wheel: pathlib.Path, sdist: pathlib.Path) -> None:
    """It builds the same wheel, and passes the tests of package and project."""
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(sdist) as archive:
            archive.extractall(folder, filter="data")
        (source,) = pathlib.Path(folder).iterdir()
        again, _ = built(pathlib.Path(folder, "again"), source)
        contents = [
            {one.filename: one.CRC for one in zipfile.ZipFile(path).infolist()}
            for path in (wheel, again)
        ]
        if contents[0] != contents[1]:
            raise RuntimeError("The sdist builds another wheel")
        tests = ("test_package.py", "test_project.py", "docs/test_site.py")
        environment = os.environ | {"KERAS_BACKEND": "torch", "PYTHONPATH": str(source)}
        command = (sys.executable, "-m", "pytest", "-q")
        run(*command, *(f"tests/{one}" for one in tests), cwd=source, env=environment)


def check_extra(wheel: pathlib.Path, python: str, extra: str) -> None:
    """Installs the wheel with an extra into an empty environment and tries it."""
    backend, others, code = EXTRAS[extra]
    with tempfile.TemporaryDirectory() as folder:
        run(python, "-m", "venv", folder)
        interpreter = pathlib.Path(folder, "bin", "python")
        wanted = f"{wheel}[{','.join((extra, *others))}]"
        install = ("-m", "pip", "install", "--no-compile")
        install += ("--constraint", ROOT / "constraints.txt")
        run(interpreter, *install, wanted)
        environment = os.environ | {"KERAS_BACKEND": backend}
        environment |= {"TF_CPP_MIN_LOG_LEVEL": "3"}
        environment.pop("PYTHONPATH", None)
        run(interpreter, "-c", code, cwd=folder, env=environment)


def attempt(name: str, check: Callable, *arguments: object) -> list[str]:
    """Runs a check and says how it went; the name, if it failed."""
    try:
        check(*arguments)
    except (RuntimeError, OSError) as error:
        print(f"{name}: FAILED\n{error}", flush=True)
        return [name]
    print(f"{name}: passed", flush=True)
    return []


def names(text: str) -> list[str]:
    """The parts of a list with commas."""
    return [one for one in text.split(",") if one]


def main() -> int:
    """Runs the checklist; returns 1 if anything failed."""
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("--pythons", type=names, default=PYTHONS)
    parser.add_argument("--extras", type=names, default=list(EXTRAS))
    parser.add_argument("--sdist", action=argparse.BooleanOptionalAction, default=True)
    options = parser.parse_args()
    failed = attempt("versions", check_versions) + attempt("checkout", check_checkout)
    with tempfile.TemporaryDirectory() as folder:
        wheel, sdist = built(pathlib.Path(folder))
        if options.sdist:
            failed += attempt("sdist", check_sdist, wheel, sdist)
        for python in options.pythons:
            for extra in options.extras:
                name = f"{python} [{extra}]"
                failed += attempt(name, check_extra, wheel, python, extra)
    print(f"failed: {', '.join(failed)}" if failed else "all passed")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
