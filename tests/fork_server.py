"""Python processes for the price of one import: forks of a process that has imported.

    server = ForkServer()  # which has imported the package
    run = server.start("examples/digits.py", "--steps=2")
    os.kill(run.pid, signal.SIGKILL)
    run.wait()
    server = ForkServer("examples/encode_latents.py")  # and a script, which it runs
    status, output = server.run("--out=latents")

A run is a process of its own, which can be killed as any other. It finds `__main__`,
`sys.argv`, `sys.path`, folder and environment as after `python examples/digits.py
--steps=2`; a script that the server has imported finds its own flags. What is imported
must not have started the backend.
"""

import atexit
import importlib
import json
import os
import pathlib
import runpy
import subprocess
import sys
import tempfile
import threading

import keras

ROOT = pathlib.Path(__file__).resolve().parents[1]


class Run:
    """One run: what it printed is in `stdout` and `stderr`, and in `output` both."""

    def __init__(self, server, pid, logs):
        self.server, self.pid, self.logs = server, pid, logs

    def wait(self):
        """The exit status: that of the script, or minus the signal that killed it."""
        return self.server.ask(wait=self.pid)

    @property
    def stdout(self):
        return _text(self.logs[0])

    @property
    def stderr(self):
        return _text(self.logs[1])

    @property
    def output(self):
        return self.stdout + self.stderr


def _text(log):
    path = pathlib.Path(log)
    return path.read_text(errors="replace") if path.exists() else ""


class ForkServer:
    """A process that has imported, under the current backend, and forks to run.

    Args:
        script: Script of the checkout that all runs are of; None for anything that
            stands after `python`.
    """

    def __init__(self, script=None):
        self.folder = tempfile.TemporaryDirectory()
        self.count = 0
        scripts = [] if script is None else [str(ROOT / script)]
        self.process = subprocess.Popen(
            [sys.executable, __file__, *scripts],
            env={
                **os.environ,
                "KERAS_BACKEND": keras.backend.backend(),
                "PYTHONPATH": str(ROOT),
            },
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, **request):
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def start(self, *arguments, environment=None):
        """A run, in the current folder and an environment (None: the server's)."""
        self.count += 1
        logs = [
            os.path.join(self.folder.name, f"{self.count}.{stream}")
            for stream in ("stdout", "stderr")
        ]
        pid = self.ask(
            arguments=arguments, environment=environment, folder=os.getcwd(), logs=logs
        )
        return Run(self, pid, logs)

    def run(self, *arguments):
        """A run that has ended, as (exit status, output)."""
        run = self.start(*arguments)
        return run.wait(), run.output

    def close(self):
        self.process.communicate()
        self.folder.cleanup()


def _run(script, arguments, environment, folder, logs):
    if environment is not None:
        os.environ.clear()
        os.environ.update(environment)
    os.chdir(folder)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for stream, log in enumerate(logs, 1):
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
    status = 1
    try:
        if script is None:
            _as_python(*arguments)
        else:
            from absl import app

            app.run(script.main, argv=[script.__file__, *arguments])
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


def _as_python(first, *others):
    """`python first others`, of a file or of `-c` and code."""
    if first == "-c":
        code, *others = others
        sys.argv[:], sys.path[0] = [first, *others], ""
        sys.modules["__main__"] = module = type(sys)("__main__")
        exec(compile(code, "<string>", "exec"), module.__dict__)
    else:
        sys.argv[:], sys.path[0] = [first, *others], str(pathlib.Path(first).parent)
        runpy.run_path(first, run_name="__main__")


def _serve(path=None):
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the import prints is no answer
    script = None
    if path is None:
        importlib.import_module("keras_imm")
    else:
        sys.path.insert(0, str(pathlib.Path(path).parent))
        script = importlib.import_module(pathlib.Path(path).stem)
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            _, status = os.waitpid(request["wait"], 0)
            answer = os.waitstatus_to_exitcode(status)
        else:
            answer = os.fork()
            if not answer:
                _run(script, **request)
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    _serve(*sys.argv[1:])
