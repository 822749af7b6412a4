"""What holds for every request: its id, its line in the log, its answer's headers, keys, and how a failure ends."""

from __future__ import annotations

import asyncio
import logging
import secrets

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from runtime.server.http.clients import ClientGone
from runtime.server.http.keys import bearer
from runtime.server.http.origins import foreign_page
from runtime.server.http.problems import RequestProblem, failed, head_too_large, unknown_key
from runtime.server.logs import Record
from runtime.server.metrics import Metrics
from runtime.server.settings import Settings

log = logging.getLogger(__name__)

# How long a client that is refused may go on sending: one that has not finished does not read the answer, and to close
# the connection on it would take the answer away.
_LINGER_SECONDS = 5.0
# nginx's number for a client that closed its connection before it was answered.
CLIENT_GONE = 499
_API = "/v1/"
# Of a head, which h11 bounds only where it comes in pieces: what arrives at once may be 64 KiB. Browsers send a dozen
# headers, proxies add some.
_HEAD_BYTES, _MOST_HEADERS = 1 << 14, 100
_COUNTED = ("/v1/audio/transcriptions", "/v1/models", "/v1/realtime")
_NOT_COUNTED = frozenset({"/health", "/ready", "/metrics"})


class Edge:
    """The outermost layer of the application."""

    def __init__(self, app: ASGIApp, settings: Settings, metrics: Metrics) -> None:
        self._app, self._settings, self._metrics = app, settings, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Raises only where the answer had begun, so that the connection is cut."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        record = Record(f"req_{secrets.token_hex(12)}", scope.get("method", "GET"), scope["path"])
        scope.setdefault("state", {})["record"] = record
        try:
            if scope["type"] == "http":
                await self._http(record, scope, receive, send)
            else:
                await self._app(scope, receive, _noting(record, send))
        finally:
            record.log(with_text=self._settings.log_text)
            if endpoint := _endpoint(record.path):
                self._metrics.answered(record.model, endpoint, record.status, record.seconds)

    async def _http(self, record: Record, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = _Exchange(record, Headers(scope=scope), receive, send)
        try:
            self._admit(scope, exchange.request_headers)
            await self._app(scope, exchange.receive, exchange.send)
        except ClientGone:
            record.status = CLIENT_GONE
        except RequestProblem as problem:
            await problem.response()(scope, exchange.receive, exchange.send)
        except Exception:  # the outermost boundary: whatever it was, the client gets an answer
            log.exception("request %s: failed", record.id)
            if record.status:
                raise
            await failed(record.id).response()(scope, exchange.receive, exchange.send)

    def _admit(self, scope: Scope, headers: Headers) -> None:
        """Check head and key, before anything is read.

        Raises:
            RequestProblem: the head is too large, a key is needed, or a page of another site asks, or one under a name
                that is not ours.
        """
        target = len(scope.get("raw_path") or scope["path"]) + len(scope.get("query_string", b""))
        size = target + sum(len(name) + len(value) for name, value in headers.raw)
        if size > _HEAD_BYTES or len(headers.raw) > _MOST_HEADERS:
            raise head_too_large(_HEAD_BYTES, _MOST_HEADERS)
        if not scope["path"].startswith(_API):
            return
        # A page elsewhere cannot read our answers, but a form of its could make a server without keys work.
        if self._settings.allows(None) and (refused := foreign_page(headers, self._settings.hosts)):
            raise refused
        presented = bearer(headers.get("authorization"))
        if not self._settings.allows(presented):
            raise unknown_key(presented is not None)


class _Exchange:
    """One request and its answer: knows whether the body was read to its end, and completes the headers."""

    def __init__(self, record: Record, headers: Headers, receive: Receive, send: Send) -> None:
        self.request_headers = headers
        self._record, self._receive, self._send = record, receive, send
        self._unread = "transfer-encoding" in headers or headers.get("content-length", "0") != "0"

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.disconnect" or not message.get("more_body", False):
            self._unread = False
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._record.status = message["status"]
            headers = MutableHeaders(raw=list(message.get("headers", [])))
            if self._unread and message["status"] >= 400:
                await self._let_finish(headers)
            if self._unread:
                headers["connection"] = "close"
            _complete(headers, self._record.id)
            message = {**message, "headers": headers.raw}
        await self._send(message)

    async def _let_finish(self, headers: MutableHeaders) -> None:
        """Read and forget what is still being sent, for a while.

        Not of who waits for leave to send (``Expect: 100-continue``), and not of who was too slow already.
        """
        if "expect" in self.request_headers or "close" in headers.get("connection", ""):
            return
        try:
            async with asyncio.timeout(_LINGER_SECONDS):
                while self._unread:
                    await self.receive()
        except TimeoutError:
            return


def _complete(headers: MutableHeaders, request_id: str) -> None:
    """Headers of every answer. A page brings its own Content-Security-Policy."""
    headers["x-request-id"] = request_id
    headers["x-content-type-options"] = "nosniff"
    headers.setdefault("referrer-policy", "no-referrer")
    headers.setdefault("x-frame-options", "DENY")
    headers.setdefault("cross-origin-resource-policy", "same-origin")
    headers.setdefault("cache-control", "no-store")
    if not headers.get("content-type", "").startswith("text/html"):
        headers.setdefault("content-security-policy", "default-src 'none'; frame-ancestors 'none'")


def _noting(record: Record, send: Send) -> Send:
    """``send`` of a WebSocket that notes how it went: 101 for a connection that was accepted, else the refusal."""

    async def noted(message: Message) -> None:
        match message["type"]:
            case "websocket.accept":
                record.status = 101
            case "websocket.close":
                record.status = record.status or 403
            case "websocket.http.response.start":
                record.status = message["status"]
                headers = MutableHeaders(raw=list(message.get("headers", [])))
                _complete(headers, record.id)
                message = {**message, "headers": headers.raw}
        await send(message)

    return noted


def _endpoint(path: str) -> str | None:
    """A path as a metric's label, of which there are few; None for what is not counted."""
    if path in _NOT_COUNTED or not path.startswith(_API):
        return None
    if path in _COUNTED:
        return path
    return "/v1/models/{id}" if path.startswith("/v1/models/") else "other"
