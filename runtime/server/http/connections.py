"""uvicorn's HTTP/1.1 protocol with time limits for slow clients, a connection limit, and OpenAI's error objects.

uvicorn 0.54 waits without a limit for the head of a request: its only timeout is that of an idle connection between two
requests, and any byte ends it. It also keeps clients that do not read their response.

This module subclasses ``uvicorn.protocols.http.h11_impl.H11Protocol``, which uvicorn does not document. Therefore
pyproject.toml limits uvicorn to the minor version that this module was written for. These parts are used:

- overridden: the callbacks of :class:`asyncio.Protocol`, ``handle_websocket_upgrade``, ``_should_upgrade`` and
  ``send_400_response``;
- read: ``app`` (also set, before the first request), ``conn`` (the :class:`h11.Connection`), ``connections``, ``loop``
  and ``transport``;
- the table ``STATUS_PHRASES`` of the same module.
"""

from __future__ import annotations

import asyncio
from typing import Any

import h11
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import STATUS_PHRASES, H11Protocol

from runtime.server.http.api_errors import ApiError, invalid, too_slow, unavailable
from runtime.server.limits import MAX_MESSAGE_BYTES, Limits


def connection_type(limits: Limits) -> type[asyncio.Protocol]:
    """Return the protocol class with these limits, for ``uvicorn.Config(http=…)``."""

    class LimitedConnection(_Connection):
        _limits = limits

    return LimitedConnection


class _Connection(H11Protocol):
    _limits: Limits
    _head_timer: asyncio.TimerHandle | None = None
    _write_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self._limits.max_connections:
            self.app = _refuse_connection
        self._start_head_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timers()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.transport.is_closing():
            return
        # The timer starts when the connection waits for a head. Further bytes of the head do not restart it.
        if self.conn.their_state is not h11.IDLE:
            self._stop_head_timer()
        elif self._head_timer is None:
            self._start_head_timer()

    def pause_writing(self) -> None:
        """Start the timer for a client that does not read its response."""
        super().pause_writing()
        if self._write_timer is None:
            self._write_timer = self.loop.call_later(self._limits.body_timeout, self.transport.abort)

    def resume_writing(self) -> None:
        self._stop_write_timer()
        super().resume_writing()

    def handle_websocket_upgrade(self, event: h11.Request) -> None:
        """Hand over to the WebSocket protocol, which has its own timeouts."""
        self._stop_timers()
        super().handle_websocket_upgrade(event)

    def _should_upgrade(self) -> bool:
        """Refuse connections above the limit over HTTP, also if they request a WebSocket."""
        return self.app is not _refuse_connection and super()._should_upgrade()

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002 (uvicorn's message is not meant for clients)
        """Answer malformed HTTP or a head that is too large. uvicorn calls this when h11 raises an error."""
        self._refuse(invalid("The request is not well-formed HTTP, or its head is too large."))

    def _start_head_timer(self) -> None:
        self._head_timer = self.loop.call_later(self._limits.header_timeout, self._head_timed_out)

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _stop_write_timer(self) -> None:
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None

    def _stop_timers(self) -> None:
        self._stop_head_timer()
        self._stop_write_timer()

    def _head_timed_out(self) -> None:
        self._head_timer = None
        if not self.transport.is_closing():
            self._refuse(too_slow("The head of the request did not arrive in time."))

    def _refuse(self, error: ApiError) -> None:
        """Send the error without the application, if a response can still be sent, and close the connection."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            body = error.encoded()
            headers = [
                ("content-type", "application/json"),
                ("content-length", str(len(body))),
                ("connection", "close"),
            ]
            for event in (
                h11.Response(status_code=error.status, headers=headers, reason=STATUS_PHRASES[error.status]),
                h11.Data(data=body),
                h11.EndOfMessage(),
            ):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()


async def _refuse_connection(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer 503 on a connection above the limit. Used as the application of that connection."""
    error = unavailable("Too many connections are open; try again later.")
    error.headers["connection"] = "close"
    await error.response()(scope, receive, send)


def uvicorn_options(limits: Limits) -> dict[str, Any]:
    """Return options for :class:`uvicorn.Config`: small heads and messages, no proxy headers, no server header."""
    return {
        "http": connection_type(limits),
        "h11_max_incomplete_event_size": 1 << 14,
        "ws": "websockets-sansio",
        "ws_max_size": MAX_MESSAGE_BYTES,
        "ws_per_message_deflate": False,
        # When a client sends faster than the server processes, reading is paused, so its pongs are not read either.
        # runtime.server.realtime.connection detects lost clients: they send nothing, or do not read.
        "ws_ping_timeout": None,
        "proxy_headers": False,
        "server_header": False,
        "access_log": False,
        "log_config": None,
        "lifespan": "on",
    }
