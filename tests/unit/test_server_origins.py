"""Tests that pages of other sites cannot use a server without keys."""

from __future__ import annotations

import pytest
from starlette.datastructures import Headers
from starlette.testclient import TestClient, WebSocketDenialResponse

from runtime.server.http.origins import is_known_host
from runtime.server.settings import Settings
from tests.helpers.fake_service import FakeService, app

PATH = "/v1/audio/transcriptions"


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1:8000",
        "[::1]:8000",
        "192.168.1.7",
        "localhost:8000",
        "asr",
        "a.local.",
        "asr.localhost:1",
        "me.example",
    ],
)
def test_known_hosts(host: str) -> None:
    assert is_known_host(Headers({"host": host}), ["me.example"])


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "localhost.evil.example"]
)
def test_unknown_hosts(host: str) -> None:
    assert not is_known_host(Headers({"host": host}), ["me.example"])


def test_missing_host_is_allowed() -> None:
    assert is_known_host(Headers({}), [])


def test_dns_rebinding_is_refused() -> None:
    """The browser considers the request same-origin; only the host name shows the attack."""
    service = FakeService()
    headers = {"host": "evil.example:8000", "origin": "http://evil.example:8000", "sec-fetch-site": "same-origin"}
    with TestClient(app(service)) as client:
        for response in (
            client.post(PATH, files={"file": b"audio"}, headers=headers),
            client.get("/v1/models", headers=headers),
        ):
            assert response.status_code == 403
            assert response.json()["error"]["code"] == "host_not_allowed"
        with (
            pytest.raises(WebSocketDenialResponse) as denied,
            client.websocket_connect("/v1/realtime", headers={**headers, "sec-websocket-version": "13"}),
        ):
            pass
        assert denied.value.status_code == 403
        assert client.get("/health", headers=headers).status_code == 200
    assert not service.calls


def test_other_origin_is_refused_without_sec_fetch_site() -> None:
    """Browsers send ``Sec-Fetch-Site`` only to https and localhost, and treat other ports as the same site."""
    service = FakeService()
    with TestClient(app(service)) as client:
        for origin in ("http://evil.example", "http://testserver:3000", "null"):
            response = client.post(PATH, files={"file": b"audio"}, headers={"origin": origin})
            assert response.status_code == 403
        assert not service.calls
        assert client.post(PATH, files={"file": b"audio"}, headers={"origin": "http://testserver"}).status_code == 200


@pytest.mark.parametrize("settings", [Settings(hosts=("asr.example",)), Settings(keys=("key",))])
def test_allowed_host_or_key_gives_access(settings: Settings) -> None:
    headers = {"host": "asr.example:80", "authorization": "Bearer key"}
    with TestClient(app(FakeService(), settings=settings)) as client:
        assert client.get("/v1/models", headers=headers).status_code == 200
