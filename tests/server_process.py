"""`python -m keras_imm.serving run` in a process of its own."""

import os
import re
import signal
import subprocess
import sys

import numpy as np
from scripts import ROOT

COMMAND = [sys.executable, "-m", "keras_imm.serving", "run"]


class ServerProcess:
    """`python -m keras_imm.serving run flags`, or another command, until `stop`."""

    def __init__(self, *flags, command=COMMAND, **environment):
        self.process = subprocess.Popen(
            [*command, "--port=0", *flags],
            env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.lines = []
        for line in self.process.stdout:
            self.lines.append(line)
            if found := re.search(r"http://(\S+):(\d+)", line):
                self.host, self.port = found[1], int(found[2])
                self.url = found[0]
                return
        raise RuntimeError(self.process.stderr.read())

    def stop(self, number=signal.SIGINT):
        self.process.send_signal(number)
        output, errors = self.process.communicate(timeout=90)
        return self.process.returncode, output, errors


def assert_same_images(answer, expected):
    # Passes of other sizes round differently, and bytes are truncated.
    assert np.shape(answer) == np.shape(expected)
    assert np.abs(np.int64(answer) - np.int64(expected)).max() <= 1
