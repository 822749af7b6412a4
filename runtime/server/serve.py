"""Server process: listening socket, signals and graceful shutdown."""

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
from runtime.server.app import make_app
from runtime.server.http.connections import uvicorn_options
from runtime.server.metrics import Metrics
from runtime.server.scheduling.service import Service
from runtime.server.settings import Settings

_BACKLOG = 2048
# Seconds after draining in which connections may finish sending their responses.
_CLOSE_SECONDS = 5


def is_loopback(host: str) -> bool:
    """Return whether ``host`` is only reachable from this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def bind(host: str, port: int) -> socket.socket:
    """Bind the server's socket. Called before models are loaded, so that a wrong address fails early.

    Args:
        host: address or name of a local interface.
        port: 0 to 65535; 0 picks a free port.

    Raises:
        OptionError: ``port`` is out of range.
        OptionError: ``host`` cannot be resolved.
        OptionError: the port is in use, or this user may not listen on it.
    """
    if not 0 <= port <= 65535:
        raise OptionError(f"--port must be from 0 to 65535, not {port}")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (socket.gaierror, UnicodeError):
        raise OptionError(f"--host {host}: no such host; give an address of this machine") from None
    bound = socket.socket(family, kind, protocol)
    try:
        if os.name == "posix":
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError as error:
        bound.close()
        if error.errno == errno.EADDRINUSE:
            raise OptionError(f"port {port} of {host} is in use; choose another --port (0 picks a free one)") from None
        raise OptionError(f"cannot listen on port {port} of {host} ({os.strerror(error.errno or 0)})") from None
    return bound


def url(bound: socket.socket, host: str) -> str:
    """Return the URL of the server."""
    port = bound.getsockname()[1]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class Server(uvicorn.Server):
    """uvicorn server that drains the services before it closes connections.

    The first SIGTERM or SIGINT starts a graceful shutdown: ``/ready`` answers 503, new requests are refused, accepted
    requests are finished. The second one terminates the process at once by the signal's default action. Uploads are
    unnamed temporary files, so nothing is left behind.
    """

    def __init__(self, app: Starlette, settings: Settings, on_ready: Callable[[], object]) -> None:
        """Args:
        app: application made by :func:`runtime.server.app.make_app`.
        settings: settings of the server.
        on_ready: called once the server accepts requests.
        """
        options = uvicorn_options(settings.limits)
        super().__init__(
            uvicorn.Config(app, backlog=_BACKLOG, timeout_graceful_shutdown=_CLOSE_SECONDS, workers=1, **options)
        )
        self._services, self._on_ready = app.state.service_group, on_ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start listening."""
        await super().startup(sockets)
        self._on_ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Drain the services while connections are still served, then close the connections."""
        await self._services.drain()
        await super().shutdown(sockets)

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Handle SIGTERM and SIGINT instead of uvicorn.

        uvicorn raises the signal again after a graceful shutdown, and treats a second signal differently. Signal
        handlers can only be set in the main thread; elsewhere, set ``should_exit`` to stop the server.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        numbers = (signal.SIGTERM, signal.SIGINT)

        def stop(*_: object) -> None:
            self.should_exit = True
            for number in numbers:
                signal.signal(number, signal.SIG_DFL)

        previous = {number: signal.signal(number, stop) for number in numbers}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)


def serve(
    services: Mapping[str, Service],
    settings: Settings,
    metrics: Metrics,
    bound: socket.socket,
    on_ready: Callable[[], object],
) -> None:
    """Serve until SIGTERM or SIGINT."""
    Server(make_app(services, settings, metrics), settings, on_ready).run(sockets=[bound])
