"""Tests of what applies to every request: keys, heads, headers, readiness, metrics and the log."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator

import pytest
from starlette.testclient import TestClient

from runtime.server.metrics import Metrics
from runtime.server.settings import Settings
from tests.helpers.fake_service import FakeService, app
from tests.helpers.http import PATH, error_of, send


@pytest.fixture
def service() -> FakeService:
    return FakeService()


@pytest.fixture
def client(service: FakeService) -> Iterator[TestClient]:
    with TestClient(app(service)) as client:
        yield client


def test_keys(service: FakeService, caplog: pytest.LogCaptureFixture) -> None:
    with TestClient(app(service, settings=Settings(keys=("right", "other")))) as client:
        for headers in ({}, {"authorization": "Basic right"}, {"authorization": "right"}, {"authorization": "Bearer "}):
            response = client.get("/v1/models", headers=headers)
            assert error_of(response, 401)["message"].startswith("An API key is required")
            assert response.headers["www-authenticate"] == "Bearer"
        wrong = {"authorization": "Bearer wrong"}
        for response in (client.get("/v1/nothing", headers=wrong), send(client, headers=wrong)):
            assert error_of(response, 401)["code"] == "invalid_api_key"
        assert client.get("/v1/models", headers={"authorization": "bearer other"}).status_code == 200
        assert send(client, headers={"authorization": "Bearer right"}).status_code == 200
        for path in ("/health", "/ready", "/metrics"):
            assert client.get(path).status_code == 200
    assert len(service.calls) == 1
    assert "right" not in caplog.text
    assert "right" not in repr(Settings(keys=("right",)))


def test_cross_site_requests_are_refused(client: TestClient, service: FakeService) -> None:
    assert error_of(send(client, headers={"sec-fetch-site": "cross-site"}), 403)["code"] == "cross_site"
    assert not service.calls
    assert send(client, headers={"sec-fetch-site": "same-origin"}).status_code == 200
    with TestClient(app(service, settings=Settings(keys=("k",)))) as with_keys:
        headers = {"sec-fetch-site": "cross-site", "authorization": "Bearer k"}
        assert send(with_keys, headers=headers).status_code == 200  # the key shows that the page is trusted


def test_too_large_head(client: TestClient, service: FakeService) -> None:
    """Also when it arrives at once, so that h11 has parsed it already."""
    for headers in ({f"x-{number}": "1" for number in range(100)}, {"x-long": "1" * 20_000}):
        error_of(send(client, headers=headers), 431)
    error_of(client.get("/" + "a" * 20_000), 431)
    assert not service.calls
    assert send(client, headers={f"x-{number}": "1" for number in range(80)}).status_code == 200


def test_headers_of_every_response(client: TestClient) -> None:
    for response in (client.get("/v1/models"), client.get("/nothing"), send(client), send(client, stream="true")):
        assert response.headers["x-content-type-options"] == "nosniff"
        assert response.headers["cache-control"] == "no-store"
        assert "default-src 'none'" in response.headers["content-security-policy"]
        assert re.fullmatch("req_[0-9a-f]{24}", response.headers["x-request-id"])
        assert not any(name.startswith("access-control") for name in response.headers)


def test_ready_only_between_start_and_drain(service: FakeService) -> None:
    application = app(service)
    not_started = TestClient(application)
    assert not_started.get("/ready").status_code == 503
    assert not_started.get("/health").status_code == 200
    assert error_of(send(not_started), 503)["code"] == "service_unavailable"
    with TestClient(application) as client:
        assert client.get("/ready").json() == {"status": "ready"}
    assert service.drained == Settings().grace
    assert TestClient(application).get("/ready").status_code == 503


def test_requests_are_counted_by_few_labels(service: FakeService) -> None:
    metrics = Metrics()
    with TestClient(app(service, metrics=metrics)) as client:
        send(client)
        send(client, temperature="1")
        client.get("/v1/models/a")
        client.get("/v1/models/b")
        client.get("/v1/x/y")
        client.get("/elsewhere")
        text = client.get("/metrics")
    assert text.headers["content-type"].startswith("text/plain; version=0.0.4")
    counted = {line for line in text.text.splitlines() if line.startswith("asr_requests_total")}
    assert counted == {
        f'asr_requests_total{{endpoint="{PATH}",model="fake",status="200"}} 1.0',
        f'asr_requests_total{{endpoint="{PATH}",model="",status="400"}} 1.0',
        'asr_requests_total{endpoint="/v1/models/{id}",model="",status="404"} 2.0',
        'asr_requests_total{endpoint="other",model="",status="404"} 1.0',
    }


@pytest.mark.parametrize("with_text", [False, True])
def test_log_has_text_only_if_enabled(service: FakeService, caplog: pytest.LogCaptureFixture, with_text: bool) -> None:
    caplog.set_level(logging.INFO)
    with TestClient(app(service, settings=Settings(log_text=with_text))) as client:
        response = send(client, prompt="secret context")
        client.get("/health")
    (line,) = [entry.fields for entry in caplog.records if entry.name == "runtime.server.access"]  # type: ignore[attr-defined]
    assert line["request_id"] == response.headers["x-request-id"]
    assert (line["method"], line["path"], line["status"]) == ("POST", PATH, 200)
    assert (line["model"], line["audio_seconds"]) == ("fake", 2.5)
    assert line.get("text") == ("One two three." if with_text else None)
    assert "secret" not in str([entry.__dict__ for entry in caplog.records])
