"""Tests of transcription requests at the level of ASGI messages."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.testclient import TestClient

from runtime.server.limits import Limits
from runtime.server.metrics import Metrics
from runtime.server.settings import Settings
from tests.helpers.fake_service import FakeService, app
from tests.helpers.http import PATH

ALWAYS_READY = FakeService()
ALWAYS_READY.ready = True
CLIENT = TestClient(app(ALWAYS_READY))
FORM = b'--edge\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\naudio\r\n--edge--\r\n'


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Check that the test leaves no temporary file."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield folder
    assert not list(folder.iterdir())


@pytest.fixture
def service() -> FakeService:
    return FakeService()


def call_asgi(application: Any, receive: Callable[[], Any], body: bytes = b"") -> list[Any]:
    """Send one request to the bare ASGI application and return the messages that it sends."""
    sent: list[Any] = []

    async def send_message(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": PATH,
        "query_string": b"",
        "headers": [
            (b"content-type", b"multipart/form-data; boundary=edge"),
            (b"content-length", str(len(body)).encode()),
        ],
        "app": application,
    }
    asyncio.run(application(scope, receive, send_message))
    return sent


@pytest.mark.parametrize("stream", [False, True])
def test_disconnect_cancels_the_transcription(service: FakeService, stream: bool) -> None:
    service.ready = True
    field = b'--edge\r\nContent-Disposition: form-data; name="stream"\r\n\r\ntrue\r\n' if stream else b""
    messages = [{"type": "http.request", "body": field + FORM, "more_body": False}]

    async def receive() -> Any:
        if messages:
            return messages.pop()
        await asyncio.to_thread(service.entered.wait)
        return {"type": "http.disconnect"}

    async def block() -> None:
        service.release = asyncio.Event()

    asyncio.run(block())
    metrics = Metrics()
    assert call_asgi(app(service, metrics=metrics), receive, field + FORM) == []
    assert service.cancelled.is_set()
    assert b'status="499"' in metrics.exposition()


@given(
    content_type=st.sampled_from(
        ["multipart/form-data; boundary=edge", "multipart/form-data; boundary=", "text/plain"]
    ),
    lines=st.lists(
        st.sampled_from(
            [
                b"--edge",
                b"--edge--",
                b"",
                b'Content-Disposition: form-data; name="file"; filename="\\..\\..\0"',
                b'Content-Disposition: form-data; name="stream"',
                b"Content-Disposition: form-data; name*=utf-8''file",
                b"Content-Transfer-Encoding: base64",
                b"true",
                b"\xff\xfe\0",
            ]
        )
        | st.binary(max_size=20),
        max_size=20,
    ),
)
def test_no_form_causes_an_internal_error(content_type: str, lines: list[bytes]) -> None:
    response = CLIENT.post(PATH, content=b"\r\n".join(lines), headers={"content-type": content_type})
    assert response.status_code in (200, 400)


def test_concurrent_uploads_are_limited(service: FakeService) -> None:
    service.ready = True
    application = app(service, settings=Settings(limits=Limits(max_queue=1)))

    async def scenario() -> list[Any]:
        sent: list[Any] = []
        started, disconnect = asyncio.Event(), asyncio.Event()

        async def slow() -> Any:
            started.set()
            await disconnect.wait()
            return {"type": "http.disconnect"}

        def whole() -> Callable[[], Any]:
            messages = [{"type": "http.request", "body": FORM, "more_body": False}]

            async def receive() -> Any:
                if not messages:
                    await asyncio.Event().wait()
                return messages.pop()

            return receive

        async def record(message: Any) -> None:
            sent.append(message)

        scope = {
            "type": "http",
            "method": "POST",
            "path": PATH,
            "query_string": b"",
            "headers": [(b"content-type", b"multipart/form-data; boundary=edge"), (b"content-length", b"5")],
        }
        first = asyncio.create_task(application({**scope}, slow, record))
        await started.wait()
        await application({**scope}, whole(), record)
        disconnect.set()
        await first
        await application({**scope}, whole(), record)
        return [message["status"] for message in sent if message["type"] == "http.response.start"]

    assert asyncio.run(scenario()) == [429, 200]
