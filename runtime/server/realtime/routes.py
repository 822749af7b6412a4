"""``/v1/realtime``: who may connect. What happens then is in :mod:`runtime.server.realtime.connection`."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress

from starlette.websockets import WebSocket, WebSocketDisconnect

from runtime.server.http.keys import bearer
from runtime.server.http.origins import foreign_page
from runtime.server.http.problems import RequestProblem, unknown_key
from runtime.server.realtime.connection import POLICY_VIOLATION, Connection
from runtime.server.realtime.events import error_event
from runtime.server.realtime.session import EventError, checked_model
from runtime.server.scheduling.service import Service
from runtime.server.settings import Settings

# Browsers cannot set headers of a WebSocket: they name the protocol, and beside it, as OpenAI has it, the key.
SUBPROTOCOL = "realtime"
_KEY_SUBPROTOCOL = "openai-insecure-api-key."


async def realtime(websocket: WebSocket) -> None:
    """Serve one client: ``?intent=transcription``, and where wanted ``model=NAME`` and ``partials=true``.

    Reads ``app.state.services`` (models by name, the default one first) and ``app.state.settings``. A wrong key gets
    401 and a foreign page 403 in place of the WebSocket.
    """
    services: Mapping[str, Service] = websocket.app.state.services
    settings: Settings = websocket.app.state.settings
    refused = _refusal(websocket, settings)
    if refused:
        await _refuse(websocket, refused)
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


def presented_key(websocket: WebSocket) -> str | None:
    """The key that a client shows: a bearer's, or the one among its subprotocols; None without one."""
    if key := bearer(websocket.headers.get("authorization")):
        return key
    for offered in websocket.scope.get("subprotocols", []):
        if offered.startswith(_KEY_SUBPROTOCOL):
            return str(offered.removeprefix(_KEY_SUBPROTOCOL))
    return None


def _refusal(websocket: WebSocket, settings: Settings) -> RequestProblem | None:
    """What a client that may not connect is told."""
    presented = presented_key(websocket)
    if not settings.allows(presented):
        return unknown_key(presented is not None)
    # With keys, a foreign page that shows one was given it; without, whoever opens a page would lend it this server.
    return foreign_page(websocket.headers, settings.hosts) if settings.allows(None) else None


async def _refuse(websocket: WebSocket, problem: RequestProblem) -> None:
    if "websocket.http.response" in websocket.scope.get("extensions", {}):
        await websocket.send_denial_response(problem.response())
    else:
        await websocket.close(4000 + problem.status, problem.code)


def _read_query(query: Mapping[str, str], services: Mapping[str, Service]) -> tuple[str, bool]:
    """Model, and whether partials are wanted.

    Raises:
        EventError: the URL asks for something else than a transcription here.
    """
    for name in query:
        if name not in ("intent", "model", "partials"):
            raise EventError(
                f"unknown parameter {name!r} in the URL; there are intent, model and partials",
                "unknown_parameter",
                name,
            )
    if query.get("intent", "transcription") != "transcription":
        raise EventError("intent must be transcription: there is nothing else here", "invalid_value", "intent")
    partials = query.get("partials", "false")
    if partials not in ("true", "false"):
        raise EventError("partials must be true or false", "invalid_value", "partials")
    return checked_model(query.get("model") or next(iter(services)), services, "model"), partials == "true"
