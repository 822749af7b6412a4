"""uvicorn's HTTP connections with what they lack: time limits on heads and on readers, and errors in OpenAI's shape.

uvicorn 0.54 waits for ever for the head of a request: its one timeout is that of an idle connection between two
requests, and any byte ends it. Nor does it give up a client that does not read.
"""

from __future__ import annotations

import asyncio
from typing import Any

import h11
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import STATUS_PHRASES, H11Protocol

from runtime.server.http.problems import RequestProblem, invalid, too_slow, unavailable
from runtime.server.limits import Limits
from runtime.server.realtime.connection import MAX_MESSAGE_BYTES


def connection_type(limits: Limits) -> type[asyncio.Protocol]:
    """The protocol for ``uvicorn.Config(http=…)`` with these limits."""

    class LimitedConnection(_Connection):
        _limits = limits

    return LimitedConnection


class _Connection(H11Protocol):
    _limits: Limits
    _head_timer: asyncio.TimerHandle | None = None
    _reader_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self._limits.max_connections:
            self.app = _too_many
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timers()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.transport.is_closing():
            return
        # A head that has begun has until the time that its first byte set, however many bytes follow.
        if self.conn.their_state is not h11.IDLE:
            self._head_arrived()
        elif self._head_timer is None:
            self._await_head()

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._reader_timer is None:
            self._reader_timer = self.loop.call_later(self._limits.body_timeout, self.transport.abort)

    def resume_writing(self) -> None:
        if self._reader_timer is not None:
            self._reader_timer.cancel()
            self._reader_timer = None
        super().resume_writing()

    def handle_websocket_upgrade(self, event: h11.Request) -> None:
        """The WebSocket's protocol takes over, with timeouts of its own."""
        self._stop_timers()
        super().handle_websocket_upgrade(event)

    def _should_upgrade(self) -> bool:
        """A connection too many gets its refusal through HTTP."""
        return self.app is not _too_many and super()._should_upgrade()

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002 (uvicorn's words are not for clients)
        """Malformed HTTP, or a head that is too large; uvicorn calls it where h11 gives up."""
        self._refuse(invalid("The request is not well-formed HTTP, or its head is too large."))

    def _await_head(self) -> None:
        self._head_timer = self.loop.call_later(self._limits.header_timeout, self._head_is_late)

    def _head_arrived(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _stop_timers(self) -> None:
        self._head_arrived()
        if self._reader_timer is not None:
            self._reader_timer.cancel()
            self._reader_timer = None

    def _head_is_late(self) -> None:
        self._head_timer = None
        if not self.transport.is_closing():
            self._refuse(too_slow("The head of the request did not arrive in time."))

    def _refuse(self, problem: RequestProblem) -> None:
        """Answer without the application, where an answer is still possible, and close the connection."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            body = problem.encoded()
            headers = [
                ("content-type", "application/json"),
                ("content-length", str(len(body))),
                ("connection", "close"),
            ]
            for event in (
                h11.Response(status_code=problem.status, headers=headers, reason=STATUS_PHRASES[problem.status]),
                h11.Data(data=body),
                h11.EndOfMessage(),
            ):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()


async def _too_many(scope: Scope, receive: Receive, send: Send) -> None:
    """Refuse a connection too many."""
    problem = unavailable("Too many connections are open; try again later.")
    problem.headers["connection"] = "close"
    await problem.response()(scope, receive, send)


def uvicorn_options(limits: Limits) -> dict[str, Any]:
    """What else uvicorn is told: small heads and messages, nothing believed of a proxy, nothing said of itself."""
    return {
        "http": connection_type(limits),
        "h11_max_incomplete_event_size": 1 << 14,
        "ws": "websockets-sansio",
        "ws_max_size": MAX_MESSAGE_BYTES,
        "ws_per_message_deflate": False,
        # Of a client that sends faster than is heard nothing is read for a while, its pongs neither. One that is gone
        # is found by its silence, or by not reading: see :mod:`runtime.server.realtime.connection`.
        "ws_ping_timeout": None,
        "proxy_headers": False,
        "server_header": False,
        "access_log": False,
        "log_config": None,
        "lifespan": "on",
    }
