"""Tests of the HTTP protocol with slow and hostile clients on real connections."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import tomllib
from importlib.metadata import version
from typing import Any

import pytest
from packaging.requirements import Requirement

from runtime.server.limits import Limits
from runtime.server.settings import Settings
from tests.conftest import REPOSITORY
from tests.helpers.fake_service import FakeService, Running, app, running, segment, until

PATH = "/v1/audio/transcriptions"
FORM = b'--edge\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\naudio\r\n--edge--\r\n'
HEAD = f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=edge\r\n".encode()


def serving(service: FakeService | None = None, **limits: Any) -> Any:
    settings = Settings(limits=Limits(**limits))
    return running(app(service or FakeService(), settings=settings), settings)


def connect(server: Running) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), timeout=20)


def receive_all(connection: socket.socket) -> bytes:
    """Receive until the server closes the connection."""
    answer = b""
    while piece := connection.recv(65_536):
        answer += piece
    return answer


def parse(answer: bytes) -> tuple[int, dict[str, str], Any]:
    head, _, body = answer.partition(b"\r\n\r\n")
    status, *lines = head.decode().split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return int(status.split()[1]), headers, json.loads(body)


def exchange(server: Running, *sent: bytes) -> tuple[int, dict[str, str], Any]:
    """Send, receive until the server closes the connection, and parse the response."""
    with connect(server) as connection:
        for piece in sent:
            connection.sendall(piece)
        return parse(receive_all(connection))


def test_incomplete_heads_time_out() -> None:
    with serving(header_timeout=0.2) as server:
        for begin in (b"", b"GET / HT", b"GET /health HTTP/1.1\r\nX: y\r\n"):
            status, headers, body = exchange(server, begin)
            assert (status, headers["connection"]) == (408, "close")
            assert body["error"]["code"] == "request_timeout"


def test_slow_head_does_not_restart_the_timeout() -> None:
    with serving(header_timeout=0.3) as server, connect(server) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\n")
        connection.settimeout(0.02)
        answer = b""
        while not answer:  # would never end if each byte restarted the timer
            try:
                connection.sendall(b"X-a: b\r\n")
                answer = connection.recv(65_536)
            except TimeoutError:
                continue
        assert answer.startswith(b"HTTP/1.1 408 ")


def test_second_head_of_a_connection_times_out() -> None:
    with serving(header_timeout=0.3) as server, connect(server) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        first = b""
        while not first.endswith(b"}"):
            first += connection.recv(65_536)
        connection.sendall(b"GET /hea")
        assert receive_all(connection).startswith(b"HTTP/1.1 408 ")


@pytest.mark.parametrize(
    "sent",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 1_000_000,
        b"GET /" + b"y" * 1_000_000,
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 100 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\nContent-Length: -5\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nBad Name: y\r\n\r\n",
    ],
)
def test_malformed_heads(sent: bytes) -> None:
    with serving() as server, connect(server) as connection:
        try:
            connection.sendall(sent)
            answer = receive_all(connection)
        except (ConnectionResetError, BrokenPipeError):
            assert len(sent) > 100_000  # refused while it was being sent
            return
        status, _, body = parse(answer)
        assert status == 400
        assert "not well-formed HTTP" in body["error"]["message"]


def test_incomplete_body_times_out() -> None:
    with serving(body_timeout=0.2) as server:
        status, headers, body = exchange(server, HEAD + b"Content-Length: 1000\r\n\r\n", FORM[:20])
        assert (status, headers["connection"]) == (408, "close")
        assert body["error"]["code"] == "request_timeout"


def test_malformed_chunks() -> None:
    with serving() as server:
        status, _, body = exchange(server, HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\nnothing\r\n")
        assert status == 400
        assert body["error"]["type"] == "invalid_request_error"


def test_size_of_a_chunked_body_is_limited() -> None:
    with serving(max_upload_bytes=1000) as server, connect(server) as connection:
        connection.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
        for piece in [FORM[:-14], *[b"x" * 60_000] * 30]:
            connection.sendall(b"%x\r\n%s\r\n" % (len(piece), piece))
        connection.sendall(b"0\r\n\r\n")
        answer = b""
        while b"\r\n\r\n" not in answer:
            answer += connection.recv(65_536)
        assert answer.startswith(b"HTTP/1.1 413 ")


def test_expect_100_continue_is_refused_before_the_body() -> None:
    with serving(max_upload_bytes=1000) as server:
        sent = HEAD + b"Content-Length: 999999999\r\nExpect: 100-continue\r\n\r\n"
        status, headers, _ = exchange(server, sent)
        assert (status, headers["connection"]) == (413, "close")


def test_unread_body_closes_the_connection() -> None:
    with serving() as server:
        answer = exchange(server, b"GET /health HTTP/1.1\r\nHost: x\r\nContent-Length: 999999\r\n\r\n")
        assert answer[0] == 200
        assert answer[1]["connection"] == "close"


def test_connection_limit() -> None:
    with serving(max_connections=2) as server, connect(server), connect(server):
        until(lambda: len(server.server.server_state.connections) == 2)
        status, headers, body = exchange(server, b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (status, headers["retry-after"], headers["connection"]) == (503, "5", "close")
        assert body["error"]["code"] == "service_unavailable"
        upgrade = b"GET /v1/realtime HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n"
        assert exchange(server, upgrade)[0] == 503


def test_client_that_does_not_read_is_disconnected() -> None:
    service = FakeService("fake", *[segment("word " * 2_000)] * 400)
    with serving(service, body_timeout=0.2) as server, connect(server) as connection:
        field = b'--edge\r\nContent-Disposition: form-data; name="stream"\r\n\r\ntrue\r\n'
        body = field + FORM
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.sendall(HEAD + f"Content-Length: {len(body)}\r\n\r\n".encode() + body)
        until(lambda: service.calls)
        until(lambda: not server.server.server_state.connections)


def test_slow_reader_gets_the_whole_response() -> None:
    service = FakeService("fake", *[segment("word " * 2_000)] * 400)
    with serving(service) as server, connect(server) as connection:
        field = b'--edge\r\nContent-Disposition: form-data; name="stream"\r\n\r\ntrue\r\n'
        body = field + FORM
        connection.sendall(HEAD + f"Connection: close\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
        until(lambda: any(connection.flow.write_paused for connection in list(server.server.server_state.connections)))
        answer = receive_all(connection)
        assert answer.count(b'"transcript.text.segment"') == 400
        assert answer.count(b'"transcript.text.done"') == 1


def test_refused_client_that_keeps_sending_is_disconnected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runtime.server.http.middleware._LINGER_SECONDS", 0.1)
    with serving(max_upload_bytes=1000) as server:
        status, headers, _ = exchange(server, HEAD + b"Content-Length: 999999999\r\n\r\n", b"x" * 1000)
        assert (status, headers["connection"]) == (413, "close")


def test_disconnect_cancels_the_transcription() -> None:
    service = FakeService()
    service.release = asyncio.Event()
    with serving(service) as server:
        before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 (only the number matters)
        with connect(server) as connection:
            connection.sendall(HEAD + f"Content-Length: {len(FORM)}\r\n\r\n".encode() + FORM)
            assert service.entered.wait(20)
        assert service.cancelled.wait(20)
        until(lambda: len(os.listdir("/proc/self/fd")) <= before)  # noqa: PTH208
        server.call(service.release.set)


def test_shutdown_finishes_accepted_requests_and_refuses_new_ones() -> None:
    service = FakeService()
    service.release = asyncio.Event()
    with serving(service) as server:
        with connect(server) as accepted:
            accepted.sendall(HEAD + f"Content-Length: {len(FORM)}\r\n\r\n".encode() + FORM)
            assert service.entered.wait(20)
            server.stop()
            until(lambda: service.drained is not None)
            assert exchange(server, b"GET /ready HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")[0] == 503
            refused = HEAD + f"Connection: close\r\nContent-Length: {len(FORM)}\r\n\r\n".encode() + FORM
            assert exchange(server, refused)[0] == 503
            server.call(service.release.set)
            status, _, body = parse(receive_all(accepted))
            assert (status, body["text"]) == (200, "One two three.")
        server.thread.join(20)
        with pytest.raises(OSError, match="refused"):
            connect(server)


def test_uvicorn_has_an_upper_bound() -> None:
    """The connections override undocumented parts of uvicorn, which may change in any minor version."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    requirements = map(Requirement, project["optional-dependencies"]["serve"])
    (uvicorn,) = [requirement for requirement in requirements if requirement.name == "uvicorn"]
    assert any(specifier.operator == "<" for specifier in uvicorn.specifier)
    assert version("uvicorn") in uvicorn.specifier
