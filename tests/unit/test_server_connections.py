"""What hostile and slow clients do to real connections."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from typing import Any

import pytest

from runtime.server.limits import Limits
from runtime.server.settings import Settings
from tests.helpers.fake_service import FakeService, Running, app, running, segment, until

PATH = "/v1/audio/transcriptions"
FORM = b'--edge\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\naudio\r\n--edge--\r\n'
HEAD = f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=edge\r\n".encode()


def serving(service: FakeService | None = None, **limits: Any) -> Any:
    settings = Settings(limits=Limits(**limits))
    return running(app(service or FakeService(), settings=settings), settings)


def connect(server: Running) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), timeout=20)


def rest(connection: socket.socket) -> bytes:
    """All that comes until the server closes."""
    answer = b""
    while piece := connection.recv(65_536):
        answer += piece
    return answer


def parsed(answer: bytes) -> tuple[int, dict[str, str], Any]:
    head, _, body = answer.partition(b"\r\n\r\n")
    status, *lines = head.decode().split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return int(status.split()[1]), headers, json.loads(body)


def one(server: Running, *sent: bytes) -> tuple[int, dict[str, str], Any]:
    """Send, and wait until the server closes the connection."""
    with connect(server) as connection:
        for piece in sent:
            connection.sendall(piece)
        return parsed(rest(connection))


def test_heads_that_do_not_come() -> None:
    with serving(header_timeout=0.2) as server:
        for begin in (b"", b"GET / HT", b"GET /health HTTP/1.1\r\nX: y\r\n"):
            status, headers, body = one(server, begin)
            assert (status, headers["connection"]) == (408, "close")
            assert body["error"]["code"] == "request_timeout"


def test_a_head_that_drips_gets_no_more_time() -> None:
    with serving(header_timeout=0.3) as server, connect(server) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\n")
        connection.settimeout(0.02)
        answer = b""
        while not answer:  # it would never end if every byte began the time anew
            try:
                connection.sendall(b"X-a: b\r\n")
                answer = connection.recv(65_536)
            except TimeoutError:
                continue
        assert answer.startswith(b"HTTP/1.1 408 ")


def test_a_second_head_on_the_same_connection_has_its_time_too() -> None:
    with serving(header_timeout=0.3) as server, connect(server) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        first = b""
        while not first.endswith(b"}"):
            first += connection.recv(65_536)
        connection.sendall(b"GET /hea")
        assert rest(connection).startswith(b"HTTP/1.1 408 ")


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
def test_heads_that_are_none(sent: bytes) -> None:
    with serving() as server, connect(server) as connection:
        try:
            connection.sendall(sent)
            answer = rest(connection)
        except (ConnectionResetError, BrokenPipeError):
            assert len(sent) > 100_000  # refused while it was still being sent
            return
        status, _, body = parsed(answer)
        assert status == 400
        assert "not well-formed HTTP" in body["error"]["message"]


def test_a_body_that_stops_coming() -> None:
    with serving(body_timeout=0.2) as server:
        status, headers, body = one(server, HEAD + b"Content-Length: 1000\r\n\r\n", FORM[:20])
        assert (status, headers["connection"]) == (408, "close")
        assert body["error"]["message"] == "The body did not arrive in time."


def test_broken_chunks() -> None:
    with serving() as server:
        status, _, body = one(server, HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\nnothing\r\n")
        assert status == 400
        assert body["error"]["type"] == "invalid_request_error"


def test_a_body_in_chunks_is_counted() -> None:
    with serving(max_upload_bytes=1000) as server, connect(server) as connection:
        connection.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
        for piece in [FORM[:-14], *[b"x" * 60_000] * 30]:
            connection.sendall(b"%x\r\n%s\r\n" % (len(piece), piece))
        connection.sendall(b"0\r\n\r\n")
        answer = b""
        while b"\r\n\r\n" not in answer:
            answer += connection.recv(65_536)
        assert answer.startswith(b"HTTP/1.1 413 ")


def test_who_asks_before_sending_is_told_no_at_once() -> None:
    with serving(max_upload_bytes=1000) as server:
        sent = HEAD + b"Content-Length: 999999999\r\nExpect: 100-continue\r\n\r\n"
        status, headers, _ = one(server, sent)
        assert (status, headers["connection"]) == (413, "close")


def test_a_body_that_nobody_reads_keeps_no_connection() -> None:
    with serving() as server:
        answer = one(server, b"GET /health HTTP/1.1\r\nHost: x\r\nContent-Length: 999999\r\n\r\n")
        assert answer[0] == 200
        assert answer[1]["connection"] == "close"


def test_connections_too_many() -> None:
    with serving(max_connections=2) as server, connect(server), connect(server):
        until(lambda: len(server.server.server_state.connections) == 2)
        status, headers, body = one(server, b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (status, headers["retry-after"], headers["connection"]) == (503, "5", "close")
        assert body["error"]["code"] == "service_unavailable"
        upgrade = b"GET /v1/realtime HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n"
        assert one(server, upgrade)[0] == 503


def test_a_client_that_does_not_read_is_given_up() -> None:
    service = FakeService("fake", *[segment("word " * 2_000)] * 400)
    with serving(service, body_timeout=0.2) as server, connect(server) as connection:
        field = b'--edge\r\nContent-Disposition: form-data; name="stream"\r\n\r\ntrue\r\n'
        body = field + FORM
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.sendall(HEAD + f"Content-Length: {len(body)}\r\n\r\n".encode() + body)
        until(lambda: service.asked)
        until(lambda: not server.server.server_state.connections)


def test_a_client_that_reads_late_gets_everything() -> None:
    service = FakeService("fake", *[segment("word " * 2_000)] * 400)
    with serving(service) as server, connect(server) as connection:
        field = b'--edge\r\nContent-Disposition: form-data; name="stream"\r\n\r\ntrue\r\n'
        body = field + FORM
        connection.sendall(HEAD + f"Connection: close\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
        until(lambda: any(held.flow.write_paused for held in list(server.server.server_state.connections)))
        answer = rest(connection)
        assert answer.count(b'"transcript.text.segment"') == 400
        assert answer.count(b'"transcript.text.done"') == 1


def test_who_is_refused_and_goes_on_sending_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runtime.server.http.middleware._LINGER_SECONDS", 0.1)
    with serving(max_upload_bytes=1000) as server:
        status, headers, _ = one(server, HEAD + b"Content-Length: 999999999\r\n\r\n", b"x" * 1000)
        assert (status, headers["connection"]) == (413, "close")


def test_a_client_that_hangs_up_frees_its_transcription() -> None:
    service = FakeService()
    service.release = asyncio.Event()
    with serving(service) as server:
        before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 (names are enough)
        with connect(server) as connection:
            connection.sendall(HEAD + f"Content-Length: {len(FORM)}\r\n\r\n".encode() + FORM)
            assert service.entered.wait(20)
        assert service.cancelled.wait(20)
        until(lambda: len(os.listdir("/proc/self/fd")) <= before)  # noqa: PTH208
        server.call(service.release.set)


def test_stopping_finishes_what_was_accepted_and_refuses_what_is_new() -> None:
    service = FakeService()
    service.release = asyncio.Event()
    with serving(service) as server:
        with connect(server) as accepted:
            accepted.sendall(HEAD + f"Content-Length: {len(FORM)}\r\n\r\n".encode() + FORM)
            assert service.entered.wait(20)
            server.stop()
            until(lambda: service.drained is not None)
            assert one(server, b"GET /ready HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")[0] == 503
            refused = HEAD + f"Connection: close\r\nContent-Length: {len(FORM)}\r\n\r\n".encode() + FORM
            assert one(server, refused)[0] == 503
            server.call(service.release.set)
            status, _, body = parsed(rest(accepted))
            assert (status, body["text"]) == (200, "One two three.")
        server.thread.join(20)
        with pytest.raises(OSError, match="refused"):
            connect(server)
