"""A served model in a thread of this process, and requests to it."""

import asyncio
import json
import threading
import urllib.error
import urllib.request

import numpy as np
from aiohttp import web

from keras_imm.serving.server.application import application
from keras_imm.serving.server.errors import RequestError
from keras_imm.serving.server.running import bound_socket
from keras_imm.serving.server.servable import Servable, Signature, Tensor
from keras_imm.serving.server.service import Limits, Service


class Doubling(Servable):
    """Twice `x`, two numbers a row, and `n` + 1; it refuses a row with n = -1.

    Attributes:
        passes: (signature, rows) of every pass.
        go: An event that every pass waits for; it is set.
    """

    platform, version = "doubling", 3

    def __init__(self):
        pairs = Tensor(np.dtype("float32"), (None, 2))
        whole = Tensor(np.dtype("int64"), (None,))
        texts = Tensor(np.dtype(object), (None,))
        self.signatures = {
            "serving_default": Signature(
                {"x": pairs, "n": whole}, {"y": pairs, "m": whole}
            ),
            "one": Signature({"n": whole}, {"m": whole}),
            "text": Signature({"n": whole}, {"t_bytes": texts}),
        }
        self.passes = []
        self.go = threading.Event()
        self.go.set()
        self.began = threading.Event()

    def run(self, name, inputs):
        self.passes.append((name, len(inputs["n"])))
        self.began.set()
        assert self.go.wait(60)
        if (inputs["n"] == -1).any():
            raise RequestError("`n` must not be -1.")
        if (inputs["n"] == -2).any():
            raise ZeroDivisionError("a fault of the model")
        if name == "text":
            found = np.array([f"<{n}>".encode() for n in inputs["n"]], object)
            return {"t_bytes": found}
        more = {"y": 2 * inputs["x"]} if "x" in inputs else {}
        return {"m": inputs["n"] + 1, **more}


class RunningServer:
    """A service that listens to a free port, until `close`."""

    def __init__(self, servable, name="tiny", grpc=False, class_names=("a",), **limits):
        self.service = Service(name, servable, Limits(**limits))
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self._run(self._start(grpc, [*class_names]))

    def _run(self, coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(60)

    async def _start(self, grpc, class_names):
        bound = bound_socket("127.0.0.1", 0)
        self.port = bound.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._runner = web.AppRunner(
            application(self.service, class_names), handler_cancellation=True
        )
        await self._runner.setup()
        await web.SockSite(self._runner, bound, backlog=1024).start()
        self._rpc = None
        if grpc:
            from keras_imm.serving.server import grpc_service

            self._rpc, self.grpc_port = grpc_service.server(self.service, "127.0.0.1:0")
            await self._rpc.start()

    async def _end(self):
        await self._runner.cleanup()
        if self._rpc is not None:
            await self._rpc.stop(None)

    def close(self):
        self._run(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self.service.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def ask(self, path, body=None, method=None, **headers):
        """Status and JSON of the answer."""
        status, content, _ = self.fetch(path, body, method, **headers)
        return status, json.loads(content)

    def fetch(self, path, body=None, method=None, **headers):
        """Status, content and headers of the answer."""
        if isinstance(body, dict):
            body = json.dumps(body)
        if isinstance(body, str):
            body = body.encode()
        headers = {name.replace("_", "-"): value for name, value in headers.items()}
        request = urllib.request.Request(self.url + path, body, headers, method=method)
        try:
            with urllib.request.urlopen(request) as response:
                return response.status, response.read(), response.headers
        except urllib.error.HTTPError as error:
            return error.code, error.read(), error.headers

    def figures(self):
        """The figures of /metrics, by name and labels."""
        lines = self.fetch("/metrics")[1].decode().splitlines()
        pairs = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
        return {name: float(value) for name, value in pairs}
