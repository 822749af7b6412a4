"""Tests of the log: one line per request, without log injection."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest

from runtime.server.logs import LogFormat, Record, configure_logging


@pytest.fixture(autouse=True)
def restore_loggers() -> Iterator[None]:
    names = ("", "runtime", "python_multipart", "uvicorn.error")
    levels = {name: logging.getLogger(name).level for name in names}
    handlers = logging.root.handlers[:]
    yield
    logging.root.handlers[:] = handlers
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


def logged(record: Record, format: LogFormat, *, with_text: bool = False) -> str:
    stream = io.StringIO()
    configure_logging(format, stream)
    record.log(with_text=with_text)
    return stream.getvalue()


def test_text_line() -> None:
    record = Record("req_1", "POST", "/v1/audio/transcriptions", "tiny int8", 200, 3.25, "hello")
    stamp, line = logged(record, "text").split(" INFO ")
    assert stamp.endswith("Z")
    words = line.split()
    assert words[:3] == ["POST", "/v1/audio/transcriptions", "200"]
    assert line.endswith(' s audio_seconds=3.25 model="tiny int8" request_id=req_1\n')
    assert logged(record, "text", with_text=True).endswith("request_id=req_1 text=hello\n")


def test_json_line() -> None:
    line = json.loads(logged(Record("req_1", "GET", "/v1/models", status=200), "json"))
    assert line.pop("time").endswith("Z")
    assert line.pop("seconds") >= 0
    assert line == {
        "level": "INFO",
        "message": "request",
        "method": "GET",
        "path": "/v1/models",
        "status": 200,
        "request_id": "req_1",
    }


@pytest.mark.parametrize("format", ["text", "json"])
def test_clients_cannot_inject_lines(format: LogFormat) -> None:
    record = Record("req_1", "GET\n", "/\r\nINFO forged\x1b[31m" + "x" * 1000, text="a\nb", status=404)
    line = logged(record, format, with_text=True)
    assert line.count("\n") == 1
    assert "\x1b" not in line
    assert "\r" not in line
    assert len(line) < 700


def test_monitoring_requests_are_not_logged() -> None:
    assert logged(Record("req_1", "GET", "/health", status=200), "text") == ""


@pytest.mark.parametrize("format", ["text", "json"])
def test_failures_have_a_traceback(format: LogFormat) -> None:
    stream = io.StringIO()
    configure_logging(format, stream)
    logging.getLogger("some.library").info("chatter")
    try:
        raise ValueError("the reason")
    except ValueError:
        logging.getLogger("runtime.server.http.middleware").exception("request %s: failed", "req_1")
    output = stream.getvalue()
    assert "request req_1: failed" in output
    assert "ValueError: the reason" in output
    assert "chatter" not in output
