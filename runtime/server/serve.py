"""The server as a process: its socket, its signals, and how it ends."""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import os
import signal
import socket
import threading
from collections.abc import Callable, Generator, Mapping

import uvicorn
from starlette.applications import Starlette

from runtime.errors import OptionError
from runtime.server.http.app import make_app
from runtime.server.http.connections import uvicorn_options
from runtime.server.metrics import Metrics
from runtime.server.scheduling.service import Service
from runtime.server.settings import Settings

_BACKLOG = 2048
# What is left to do after the draining: answers that are ready go out.
_LAST_SECONDS = 5


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach what listens there."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def bind(host: str, port: int) -> socket.socket:
    """A socket for the server; port 0 takes one that is free. Found out before models are loaded.

    Raises:
        OptionError: the port is taken or not ours, or there is no such host.
    """
    if not 0 <= port <= 65535:
        raise OptionError(f"--port must be from 0 to 65535, not {port}")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (socket.gaierror, UnicodeError):
        raise OptionError(f"--host {host}: no such host on this machine") from None
    bound = socket.socket(family, kind, protocol)
    try:
        if os.name == "posix":
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError as error:
        bound.close()
        if error.errno == errno.EADDRINUSE:
            raise OptionError(f"port {port} of {host} is taken; give another --port (0 picks one)") from None
        raise OptionError(f"cannot listen on port {port} of {host} ({os.strerror(error.errno or 0)})") from None
    return bound


def url(bound: socket.socket, host: str) -> str:
    """Where the server is."""
    port = bound.getsockname()[1]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class Server(uvicorn.Server):
    """uvicorn's server with one application of ours.

    The first SIGTERM or SIGINT ends it gracefully: ``/ready`` says no, new requests are refused, accepted ones are
    finished. The second ends the process at once, by the system's own hand; uploads have no names, so nothing is left.
    """

    def __init__(self, app: Starlette, settings: Settings, on_ready: Callable[[], object]) -> None:
        """``on_ready`` is called when requests are taken."""
        options = uvicorn_options(settings.limits)
        super().__init__(
            uvicorn.Config(app, backlog=_BACKLOG, timeout_graceful_shutdown=_LAST_SECONDS, workers=1, **options)
        )
        self._life, self._on_ready = app.state.life, on_ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen."""
        await super().startup(sockets)
        self._on_ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Drain while connections are still answered, then close them."""
        await self._life.drain()
        await super().shutdown(sockets)

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Replaces uvicorn's, which raises the signal again after a graceful end, and takes a second one for another.

        Signals are for the main thread; a server in another is told by ``should_exit``.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        numbers = (signal.SIGTERM, signal.SIGINT)

        def stop(*_: object) -> None:
            self.should_exit = True
            for each in numbers:
                signal.signal(each, signal.SIG_DFL)

        before = {number: signal.signal(number, stop) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def serve(
    services: Mapping[str, Service],
    settings: Settings,
    metrics: Metrics,
    bound: socket.socket,
    on_ready: Callable[[], object],
) -> None:
    """Serve until a signal says to stop."""
    Server(make_app(services, settings, metrics), settings, on_ready).run(sockets=[bound])
