"""Tests of keys, origins and query parameters of ``/v1/realtime``."""

from __future__ import annotations

from typing import Any

import pytest
from starlette.testclient import WebSocketDenialResponse

from runtime import Transcriber
from tests.helpers.realtime import (
    ScriptedService,
    connected,
    make_app,
    run,
)


@pytest.mark.parametrize(
    "options",
    [
        {"headers": {"Authorization": "Bearer secret"}},
        {"headers": {"Authorization": "bearer  secret", "Origin": "https://elsewhere.example"}},
        {"subprotocols": ["realtime", "openai-insecure-api-key.secret"]},
    ],
)
def test_valid_key(transcriber: Transcriber, options: dict[str, Any]) -> None:
    with connected(make_app(ScriptedService(transcriber), key="secret"), **options) as client:
        chosen = "realtime" if "subprotocols" in options else None
        assert client.socket.accepted_subprotocol == chosen


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"headers": {"Authorization": "Bearer wrong"}},
        {"headers": {"Authorization": "Basic secret"}},
        {"headers": {"Authorization": "Bearer"}},
        {"subprotocols": ["realtime", "openai-insecure-api-key."]},
    ],
)
def test_missing_or_wrong_key(transcriber: Transcriber, options: dict[str, Any]) -> None:
    with (
        pytest.raises(WebSocketDenialResponse) as denied,
        connected(make_app(ScriptedService(transcriber), key="secret"), **options),
    ):
        pass
    assert denied.value.status_code == 401
    assert denied.value.json()["error"]["code"] == "invalid_api_key"


@pytest.mark.parametrize("origin", ["http://testserver", "HTTPS://TestServer"])
def test_same_origin(transcriber: Transcriber, origin: str) -> None:
    with connected(make_app(ScriptedService(transcriber)), headers={"Origin": origin}):
        pass


@pytest.mark.parametrize(
    "origin", ["http://elsewhere.example", "null", "", "testserver", "http://testserver:81", "http://["]
)
def test_other_origin(transcriber: Transcriber, origin: str) -> None:
    with (
        pytest.raises(WebSocketDenialResponse) as denied,
        connected(make_app(ScriptedService(transcriber)), headers={"Origin": origin}),
    ):
        pass
    assert denied.value.status_code == 403


def test_server_without_denial_responses_closes(transcriber: Transcriber) -> None:
    sent: list[dict[str, Any]] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        return {"type": "websocket.connect"}

    scope = {"type": "websocket", "path": "/v1/realtime", "headers": [], "query_string": b"", "subprotocols": []}
    run(make_app(ScriptedService(transcriber), key="secret")(scope, receive, send))
    assert sent == [{"type": "websocket.close", "code": 4401, "reason": "invalid_api_key"}]


@pytest.mark.parametrize(
    ("query", "param"),
    [("?intent=conversation", "intent"), ("?model=gpt", "model"), ("?partials=1", "partials"), ("?a=b", "a")],
)
def test_invalid_query(transcriber: Transcriber, query: str, param: str) -> None:
    with connected(make_app(ScriptedService(transcriber)), query) as client:
        assert client.created["error"]["param"] == param
        assert client.closed() == 1008
