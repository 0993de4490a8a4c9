"""Runs a script many times for the price of one import: each run is a fork.

    server = ForkServer("examples/encode_latents.py")
    run = server.start("--out=latents")
    os.kill(run.pid, signal.SIGKILL)
    run.wait()

A run is a process of its own, with its own flags, which can be killed as any other. The
script must not have started its backend when it has been imported.
"""

import importlib
import json
import os
import pathlib
import subprocess
import sys
import tempfile

import keras

ROOT = pathlib.Path(__file__).resolve().parents[1]


class Run:
    """One run of the script."""

    def __init__(self, server, pid, log):
        self.server, self.pid, self.log = server, pid, log

    def wait(self):
        """The exit status: that of the script, or minus the signal that killed it."""
        return self.server.ask(wait=self.pid)

    @property
    def output(self):
        return pathlib.Path(self.log).read_text()


class ForkServer:
    """A process that has imported a script of the checkout and forks to run it."""

    def __init__(self, script):
        self.folder = tempfile.TemporaryDirectory()
        self.count = 0
        self.process = subprocess.Popen(
            [sys.executable, __file__, str(ROOT / script)],
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

    def start(self, *flags):
        self.count += 1
        log = os.path.join(self.folder.name, f"{self.count}.log")
        return Run(self, self.ask(flags=flags, log=log), log)

    def run(self, *flags):
        """A run that has ended, as (exit status, output)."""
        run = self.start(*flags)
        return run.wait(), run.output

    def close(self):
        self.process.communicate()
        self.folder.cleanup()


def _run(script, flags, log):
    from absl import app

    for stream in (1, 2):
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
    status = 1
    try:
        app.run(script.main, argv=[script.__file__, *flags])
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _serve(path):
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the import prints is no answer
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
                _run(script, request["flags"], request["log"])
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    _serve(sys.argv[1])
