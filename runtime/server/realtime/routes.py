"""Endpoint ``/v1/realtime``: authentication, query parameters and start of a connection."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress

from starlette.websockets import WebSocket, WebSocketDisconnect

from runtime.server.http.api_errors import ApiError, unknown_key
from runtime.server.http.origins import cross_site_error
from runtime.server.keys import bearer_key
from runtime.server.realtime.connection import POLICY_VIOLATION, Connection
from runtime.server.realtime.events import error_event
from runtime.server.realtime.session import EventError, checked_model
from runtime.server.scheduling.service import Service
from runtime.server.settings import Settings

# Browsers cannot set headers of a WebSocket. As in OpenAI's API, they send the key as an additional subprotocol.
SUBPROTOCOL = "realtime"
_KEY_SUBPROTOCOL = "openai-insecure-api-key."


async def realtime(websocket: WebSocket) -> None:
    """Serve one client.

    Query parameters: ``intent=transcription``, ``model=NAME`` and ``partials=true``, all optional. Reads
    ``app.state.services`` (services by model name, the default first) and ``app.state.settings``. A wrong key is
    answered with 401 and a page of another site with 403, instead of a WebSocket.
    """
    services: Mapping[str, Service] = websocket.app.state.services
    settings: Settings = websocket.app.state.settings
    if refusal := _access_error(websocket, settings):
        await _deny(websocket, refusal)
        return
    offered = websocket.scope.get("subprotocols", [])
    await websocket.accept(subprotocol=SUBPROTOCOL if SUBPROTOCOL in offered else None)
    try:
        model, partials = _read_query(websocket.query_params, services)
    except EventError as error:
        with suppress(WebSocketDisconnect):
            await websocket.send_json(error_event(str(error), code=error.code, param=error.param))
            await websocket.close(POLICY_VIOLATION, str(error.code))
        return
    await Connection(websocket, services, settings.limits, model=model, partials=partials).run()


def client_key(websocket: WebSocket) -> str | None:
    """Return the key from the header ``Authorization`` or from the subprotocols; None if there is none."""
    if key := bearer_key(websocket.headers.get("authorization")):
        return key
    for offered in websocket.scope.get("subprotocols", []):
        if offered.startswith(_KEY_SUBPROTOCOL):
            return str(offered.removeprefix(_KEY_SUBPROTOCOL))
    return None


def _access_error(websocket: WebSocket, settings: Settings) -> ApiError | None:
    """Return the error for a client that may not connect, or None."""
    key = client_key(websocket)
    if not settings.accepts_key(key):
        return unknown_key(key is not None)
    # A page of another site that has a key may connect. Without keys, any visited page could use the server.
    return cross_site_error(websocket.headers, settings.hosts) if settings.accepts_key(None) else None


async def _deny(websocket: WebSocket, error: ApiError) -> None:
    """Refuse the handshake with an HTTP response if the server supports it, otherwise with a close code."""
    if "websocket.http.response" in websocket.scope.get("extensions", {}):
        await websocket.send_denial_response(error.response())
    else:
        await websocket.close(4000 + error.status, error.code)


def _read_query(query: Mapping[str, str], services: Mapping[str, Service]) -> tuple[str, bool]:
    """Return the model's name and whether partials are requested.

    Raises:
        EventError: a parameter is unknown.
        EventError: a parameter has an invalid value.
        EventError: the model is unknown.
    """
    for name in query:
        if name not in ("intent", "model", "partials"):
            raise EventError(
                f"unknown parameter {name!r} in the URL; known parameters: intent, model, partials",
                "unknown_parameter",
                name,
            )
    if query.get("intent", "transcription") != "transcription":
        raise EventError("intent must be transcription; nothing else is supported", "invalid_value", "intent")
    partials = query.get("partials", "false")
    if partials not in ("true", "false"):
        raise EventError("partials must be true or false", "invalid_value", "partials")
    return checked_model(query.get("model") or next(iter(services)), services, "model"), partials == "true"
