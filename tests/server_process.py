"""`examples/serve.py` in a process of its own."""

import json
import os
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request

import numpy as np
from scripts import ROOT


class Server:
    """`python examples/serve.py flags`, until `stop`."""

    def __init__(self, *flags, **environment):
        self.process = subprocess.Popen(
            [sys.executable, str(ROOT / "examples" / "serve.py"), "--port=0", *flags],
            env={**os.environ, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for line in self.process.stdout:
            if found := re.search(r"http://(\S+):(\d+)", line):
                self.host, self.port = found[1], int(found[2])
                self.url = found[0]
                return
        raise RuntimeError(self.process.stderr.read())

    def ask(self, path, body=None, method=None):
        """Status and JSON of the answer."""
        body = json.dumps(body) if isinstance(body, dict) else body
        data = None if body is None else body.encode()
        request = urllib.request.Request(self.url + path, data, method=method)
        try:
            with urllib.request.urlopen(request) as response:
                return response.status, json.load(response)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)

    def predict(self, body, path="/v1/models/tiny:predict"):
        return self.ask(path, body)

    def stop(self, number=signal.SIGINT):
        self.process.send_signal(number)
        output, errors = self.process.communicate(timeout=90)
        return self.process.returncode, output, errors


def images(seeds, labels, **more):
    return {"inputs": {"seed": seeds, "label": labels}, **more}


def assert_same_images(answer, expected):
    # Passes of other sizes round differently, and bytes are truncated.
    assert np.shape(answer) == np.shape(expected)
    assert np.abs(np.int64(answer) - np.int64(expected)).max() <= 1
