"""A server from its start to its end."""

import asyncio
import contextlib
import errno
import os
import signal
import socket
from collections.abc import Callable

from aiohttp import web

from keras_imm.serving.server.application import application
from keras_imm.serving.server.service import Service

_BACKLOG = 1024  # connections that nobody has accepted yet
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def bound_socket(host: str, port: int) -> socket.socket:
    """A socket that nobody else can take from here on; port 0 for any free one.

    Raises:
        OSError: If it cannot be had. It names the host and the port.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM
        )[0]
        bound = socket.socket(family, kind, protocol)
        try:
            _bind(bound, address)
        except OSError:
            bound.close()
            raise
    except OSError as error:
        raise OSError(
            f"Cannot listen on {host}, port {port}: {error.strerror}. "
            "Port 0 takes any free port."
        ) from error
    return bound


def listen(bound: socket.socket) -> None:
    """Has a socket listen; what is left of its connections does not keep its port."""
    _reuse(bound, True)
    bound.listen(_BACKLOG)


def _bind(bound: socket.socket, address: tuple) -> None:
    """Binds a socket, also where connections of a server that has ended wait."""
    try:
        bound.bind(address)
    except OSError as error:
        if error.errno != errno.EADDRINUSE or os.name != "posix":
            raise
        # Of two that reuse an address both would have it until the first listens.
        _reuse(bound, True)
        bound.bind(address)
        _reuse(bound, False)


def _reuse(bound: socket.socket, value: bool) -> None:
    if os.name == "posix":  # elsewhere it takes the port from whoever has it
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, value)


async def serve(
    service: Service,
    class_names: list[str],
    bound: socket.socket,
    grpc_port: int | None = None,
) -> None:
    """Listens until SIGINT or SIGTERM, and answers the requests that came before.

    New ones are refused then; a second signal ends it at once. Prints where it listens,
    and that it has ended.

    Args:
        service: Who answers.
        class_names: Names of the labels that the page offers.
        bound: Where to listen to HTTP.
        grpc_port: Where to listen to gRPC, 0 for any free one; None for nowhere.

    Raises:
        asyncio.CancelledError: If a second signal came.
        ImportError: If `grpc_port` is given and grpcio or protobuf is not installed.
        OSError: If nobody can listen at `grpc_port`.
    """
    stop = asyncio.Event()
    host, port = bound.getsockname()[:2]
    host = f"[{host}]" if ":" in host else host
    patience = service.limits.timeout_s
    runner = web.AppRunner(
        application(service, class_names),
        access_log=None,
        handler_cancellation=True,  # nothing is computed for a client that has gone
        shutdown_timeout=patience,
    )
    async with contextlib.AsyncExitStack() as stack:
        stack.callback(service.close)
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        if grpc_port is not None:
            from keras_imm.serving.server import grpc_service

            rpc, grpc_port = grpc_service.server(service, f"{host}:{grpc_port}")
            await rpc.start()
        listen(bound)
        await web.SockSite(runner, bound, backlog=_BACKLOG).start()
        _on_signals(stop.set)
        if grpc_port is not None:
            _say(f"gRPC is at {host}:{grpc_port}")
        _say(f"{service.name} is at http://{host}:{port}/ (Ctrl-C ends)")
        await stop.wait()
        _on_signals(asyncio.current_task().cancel)
        service.is_stopping = True
        if grpc_port is not None:
            await asyncio.gather(rpc.stop(patience), runner.cleanup())
    _say("Stopped.")


def _on_signals(call: Callable[[], object]) -> None:
    with contextlib.suppress(NotImplementedError):  # Windows
        for number in _SIGNALS:
            asyncio.get_running_loop().add_signal_handler(number, call)


def _say(line: str) -> None:
    print(line, flush=True)  # whoever waits for it may read from a pipe
