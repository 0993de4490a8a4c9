"""Python processes that need not import the framework: forks of one that has.

    warm = WarmPython()
    done = warm.run(["examples/digits.py", "--steps=2"])   # as subprocess.run

What is run finds `__main__`, `sys.argv`, `sys.path`, folder and environment as after
`python examples/digits.py --steps=2`; only what it imports is there before.
"""

import json
import os
import pathlib
import subprocess
import sys
import tempfile

import keras

ROOT = pathlib.Path(__file__).resolve().parents[1]


def read_at_import(environment):
    """What frameworks read of an environment when they are imported."""
    names = ("CUDA_", "JAX_", "KERAS_", "OMP_", "TF_", "XLA_")
    return {k: v for k, v in environment.items() if k.startswith(names)}


class WarmPython:
    """A process that has imported the package under the current backend, and forks."""

    def __init__(self):
        self.read_at_import = read_at_import(os.environ)
        self.process = subprocess.Popen(
            [sys.executable, __file__],
            env={
                **os.environ,
                "KERAS_BACKEND": keras.backend.backend(),
                "PYTHONPATH": str(ROOT),
            },
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, arguments, env):
        """`python arguments` that has ended, with its output as text."""
        with tempfile.TemporaryDirectory() as folder:
            names = [os.path.join(folder, name) for name in ("stdout", "stderr")]
            request = [arguments, dict(env), os.getcwd(), names]
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
            status = json.loads(self.process.stdout.readline())
            found = [
                pathlib.Path(name).read_text(errors="replace")
                if os.path.exists(name)
                else ""
                for name in names
            ]
        return subprocess.CompletedProcess(arguments, status, *found)


def _execute(arguments, environment, folder, names):
    import atexit
    import runpy
    import threading

    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for stream, name in enumerate(names, 1):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT), stream)
    status = 1
    try:
        if arguments[0] == "-c":
            sys.argv[:], sys.path[0] = ["-c", *arguments[2:]], ""
            module = type(sys)("__main__")
            sys.modules["__main__"] = module
            exec(compile(arguments[1], "<string>", "exec"), module.__dict__)
        else:
            sys.argv[:], sys.path[0] = arguments, str(pathlib.Path(arguments[0]).parent)
            runpy.run_path(arguments[0], run_name="__main__")
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        threading._shutdown()
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _serve():
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the import prints is no answer
    __import__("keras_imm")
    for line in sys.stdin:
        child = os.fork()
        if not child:
            _execute(*json.loads(line))
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        print(json.dumps(status), file=answers, flush=True)


if __name__ == "__main__":
    _serve()
