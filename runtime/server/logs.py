"""The server's log on standard error: a line a request, as text or as JSON. Never audio; text only when asked."""

from __future__ import annotations

import logging
import sys
import time
from dataclasses import dataclass, field
from typing import Any, Literal, TextIO
from urllib.parse import quote

import msgspec

from runtime.results import Transcript

LogFormat = Literal["text", "json"]
access_log = logging.getLogger("runtime.server.access")

# Monitors ask for these every few seconds.
_QUIET = frozenset({"/health", "/ready", "/metrics"})
_LONGEST_PATH = 200


@dataclass(slots=True)
class Record:
    """One request: what becomes known of it on its way."""

    id: str
    method: str
    path: str
    model: str = ""
    status: int = 0
    audio_seconds: float | None = None
    text: str | None = None
    began: float = field(default_factory=time.perf_counter)

    @property
    def seconds(self) -> float:
        """Since it came."""
        return time.perf_counter() - self.began

    def heard(self, transcript: Transcript) -> None:
        """Note what was transcribed."""
        self.audio_seconds, self.text = transcript.duration, transcript.text

    def log(self, *, with_text: bool) -> None:
        """Write the access line."""
        # Quoted, so that no client writes lines of its own; and without the query, which may hold a key.
        fields: dict[str, Any] = {
            "method": quote(self.method[:16], safe=""),
            "path": quote(self.path[:_LONGEST_PATH], safe="/"),
            "status": self.status,
            "seconds": round(self.seconds, 3),
        }
        if self.audio_seconds is not None:
            fields["audio_seconds"] = self.audio_seconds
        if self.model:
            fields["model"] = self.model
        fields["request_id"] = self.id
        if with_text and self.text is not None:
            fields["text"] = self.text
        level = logging.DEBUG if self.path in _QUIET else logging.INFO
        access_log.log(level, "request", extra={"fields": fields})


class TextFormatter(logging.Formatter):
    """``2026-01-31T12:00:00Z INFO POST /v1/audio/transcriptions 200 0.41 s …``; the rest as ``name=value``."""

    converter = staticmethod(time.gmtime)

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(message)s", "%Y-%m-%dT%H:%M:%SZ")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 (logging's name)
        """One line; what a client could have put there is escaped."""
        if fields := getattr(record, "fields", None):
            rest = dict(fields)
            head = f"{rest.pop('method')} {rest.pop('path')} {rest.pop('status')} {rest.pop('seconds'):.3f} s"
            record.message = " ".join([head, *(f"{name}={_plain(value)}" for name, value in rest.items())])
        return super().formatMessage(record)


class JsonFormatter(logging.Formatter):
    """An object a line."""

    converter = staticmethod(time.gmtime)

    def format(self, record: logging.LogRecord) -> str:
        """Time, level, message, and a request's fields."""
        line: dict[str, Any] = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%SZ"),
            "level": record.levelname,
            "message": record.getMessage(),
        }
        line |= getattr(record, "fields", {})
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return msgspec.json.encode(line).decode()


def _plain(value: Any) -> str:
    return msgspec.json.encode(value).decode() if isinstance(value, str) and not value.isidentifier() else str(value)


def configure_logging(format: LogFormat, stream: TextIO | None = None) -> None:
    """Send this process's log to ``stream`` (standard error): ours from INFO on, others' from WARNING on."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter() if format == "json" else TextFormatter())
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    logging.getLogger("runtime").setLevel(logging.INFO)
    # It warns of every malformed form, and quotes from it; the client is told, and the access line has the status.
    logging.getLogger("python_multipart").setLevel(logging.ERROR)
    # The same of malformed requests.
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
