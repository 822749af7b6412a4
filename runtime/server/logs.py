"""Access log and application log on standard error, as text or JSON.

Each request is one line. Audio and prompts are never logged; transcripts only if ``Settings.log_text`` is set.
"""

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

# Monitoring systems request these paths every few seconds.
_QUIET_PATHS = frozenset({"/health", "/ready", "/metrics"})
_MAX_PATH_LENGTH = 200


@dataclass(slots=True)
class Record:
    """Access log entry of one request, filled in while the request is processed."""

    id: str
    method: str
    path: str
    model: str = ""
    status: int = 0
    audio_seconds: float | None = None
    text: str | None = None
    started: float = field(default_factory=time.perf_counter)

    @property
    def seconds(self) -> float:
        """Seconds since the request arrived."""
        return time.perf_counter() - self.started

    def set_transcript(self, transcript: Transcript) -> None:
        """Record text and audio duration of the result."""
        self.audio_seconds, self.text = transcript.duration, transcript.text

    def log(self, *, with_text: bool) -> None:
        """Write the entry, with the transcript if ``with_text`` is set."""
        # Quoting prevents log injection. The query is left out because it may contain a key.
        fields: dict[str, Any] = {
            "method": quote(self.method[:16], safe=""),
            "path": quote(self.path[:_MAX_PATH_LENGTH], safe="/"),
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
        level = logging.DEBUG if self.path in _QUIET_PATHS else logging.INFO
        access_log.log(level, "request", extra={"fields": fields})


class TextFormatter(logging.Formatter):
    """Format records as ``2026-01-31T12:00:00Z INFO POST /v1/audio/transcriptions 200 0.41 s model=…``."""

    converter = staticmethod(time.gmtime)

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(message)s", "%Y-%m-%dT%H:%M:%SZ")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 (logging's name)
        """Format the message; values of an access log entry that clients control are escaped."""
        if fields := getattr(record, "fields", None):
            rest = dict(fields)
            head = f"{rest.pop('method')} {rest.pop('path')} {rest.pop('status')} {rest.pop('seconds'):.3f} s"
            record.message = " ".join([head, *(f"{name}={_escape(value)}" for name, value in rest.items())])
        return super().formatMessage(record)


class JsonFormatter(logging.Formatter):
    """Format each record as a JSON object on one line."""

    converter = staticmethod(time.gmtime)

    def format(self, record: logging.LogRecord) -> str:
        """Return time, level, message, and the fields of an access log entry."""
        line: dict[str, Any] = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%SZ"),
            "level": record.levelname,
            "message": record.getMessage(),
        }
        line |= getattr(record, "fields", {})
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return msgspec.json.encode(line).decode()


def _escape(value: Any) -> str:
    """Return ``value`` as text; a string that is not an identifier is encoded as JSON."""
    return msgspec.json.encode(value).decode() if isinstance(value, str) and not value.isidentifier() else str(value)


def configure_logging(format: LogFormat, stream: TextIO | None = None) -> None:
    """Configure logging of this process: ``runtime`` from INFO, other libraries from WARNING.

    Args:
        format: format of a line.
        stream: destination; standard error by default.
    """
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter() if format == "json" else TextFormatter())
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    logging.getLogger("runtime").setLevel(logging.INFO)
    # These libraries warn of every malformed form and request and quote from it. The client receives an error, and the
    # access log has the status.
    logging.getLogger("python_multipart").setLevel(logging.ERROR)
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
