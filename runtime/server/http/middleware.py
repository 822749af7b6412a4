"""Outermost middleware: request id, access log, metrics, API keys, response headers and unexpected errors."""

from __future__ import annotations

import asyncio
import logging
import secrets

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from runtime.server.http.api_errors import ApiError, head_too_large, internal_error, unknown_key
from runtime.server.http.disconnects import ClientDisconnected
from runtime.server.http.origins import cross_site_error
from runtime.server.keys import bearer_key
from runtime.server.logs import Record
from runtime.server.metrics import Metrics
from runtime.server.settings import Settings

log = logging.getLogger(__name__)

# Seconds in which a refused client may finish sending its body. Many clients read the response only after sending
# everything; closing the connection earlier would discard the response.
_LINGER_SECONDS = 5.0
# nginx's status for a client that closed its connection before it was answered.
CLIENT_CLOSED_REQUEST = 499
_API = "/v1/"
# Limits on a request's head. h11 only limits a head that arrives in pieces: one that arrives at once may have 64 KiB.
# Browsers send about a dozen headers, proxies add some.
_MAX_HEAD_BYTES, _MAX_HEADERS = 1 << 14, 100
_COUNTED = ("/v1/audio/transcriptions", "/v1/models", "/v1/realtime")


class RequestMiddleware:
    """ASGI middleware around the whole application."""

    def __init__(self, app: ASGIApp, settings: Settings, metrics: Metrics) -> None:
        self._app, self._settings, self._metrics = app, settings, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Process a request.

        Raises:
            Exception: an unexpected error after the response started; uvicorn then closes the connection.
        """
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        record = Record(f"req_{secrets.token_hex(12)}", scope.get("method", "GET"), scope["path"])
        scope.setdefault("state", {})["record"] = record
        try:
            if scope["type"] == "http":
                await self._http(record, scope, receive, send)
            else:
                await self._app(scope, receive, _recording_send(record, send))
        finally:
            record.log(with_text=self._settings.log_text)
            if endpoint := _endpoint_label(record.path):
                self._metrics.answered(record.model, endpoint, record.status, record.seconds)

    async def _http(self, record: Record, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = _Exchange(record, Headers(scope=scope), receive, send)
        try:
            self._check_head(scope, exchange.request_headers)
            await self._app(scope, exchange.receive, exchange.send)
        except ClientDisconnected:
            record.status = CLIENT_CLOSED_REQUEST
        except ApiError as error:
            await error.response()(scope, exchange.receive, exchange.send)
        except Exception:  # outermost boundary: the client gets a response whatever the error is
            log.exception("request %s: failed", record.id)
            if record.status:
                raise
            await internal_error(record.id).response()(scope, exchange.receive, exchange.send)

    def _check_head(self, scope: Scope, headers: Headers) -> None:
        """Check size, origin and key before the body is read.

        Raises:
            ApiError: the head is too large.
            ApiError: the server has no keys, and the request may come from a page of another site.
            ApiError: the API key is missing or wrong.
        """
        target = len(scope.get("raw_path") or scope["path"]) + len(scope.get("query_string", b""))
        size = target + sum(len(name) + len(value) for name, value in headers.raw)
        if size > _MAX_HEAD_BYTES or len(headers.raw) > _MAX_HEADERS:
            raise head_too_large(_MAX_HEAD_BYTES, _MAX_HEADERS)
        if not scope["path"].startswith(_API):
            return
        # A page of another site cannot read responses, but its forms could use a server without keys.
        if self._settings.accepts_key(None) and (error := cross_site_error(headers, self._settings.hosts)):
            raise error
        key = bearer_key(headers.get("authorization"))
        if not self._settings.accepts_key(key):
            raise unknown_key(key is not None)


class _Exchange:
    """Receive and send of one HTTP request; tracks whether the body was read, and completes response headers."""

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
                await self._discard_body(headers)
            if self._unread:
                headers["connection"] = "close"
            _add_headers(headers, self._record.id)
            message = {**message, "headers": headers.raw}
        await self._send(message)

    async def _discard_body(self, headers: MutableHeaders) -> None:
        """Read and discard the rest of the body for at most ``_LINGER_SECONDS``.

        Skipped for clients that wait for permission to send (``Expect: 100-continue``) or have already timed out.
        """
        if "expect" in self.request_headers or "close" in headers.get("connection", ""):
            return
        try:
            async with asyncio.timeout(_LINGER_SECONDS):
                while self._unread:
                    await self.receive()
        except TimeoutError:
            return


def _add_headers(headers: MutableHeaders, request_id: str) -> None:
    """Add the headers of every response. The web page has its own Content-Security-Policy."""
    headers["x-request-id"] = request_id
    headers["x-content-type-options"] = "nosniff"
    headers.setdefault("referrer-policy", "no-referrer")
    headers.setdefault("x-frame-options", "DENY")
    headers.setdefault("cross-origin-resource-policy", "same-origin")
    headers.setdefault("cache-control", "no-store")
    if not headers.get("content-type", "").startswith("text/html"):
        headers.setdefault("content-security-policy", "default-src 'none'; frame-ancestors 'none'")


def _recording_send(record: Record, send: Send) -> Send:
    """Wrap ``send`` of a WebSocket to record its status: 101 if it was accepted, otherwise that of the refusal."""

    async def send_and_record(message: Message) -> None:
        match message["type"]:
            case "websocket.accept":
                record.status = 101
            case "websocket.close":
                record.status = record.status or 403
            case "websocket.http.response.start":
                record.status = message["status"]
                headers = MutableHeaders(raw=list(message.get("headers", [])))
                _add_headers(headers, record.id)
                message = {**message, "headers": headers.raw}
        await send(message)

    return send_and_record


def _endpoint_label(path: str) -> str | None:
    """Return the value of the metrics' label ``endpoint``, one of a few; None for paths that are not counted."""
    if not path.startswith(_API):
        return None
    if path in _COUNTED:
        return path
    return "/v1/models/{id}" if path.startswith("/v1/models/") else "other"
