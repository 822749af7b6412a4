"""Transcripts as text and as JSON."""

from __future__ import annotations

from typing import Any

import msgspec

from runtime.transcriber import Transcript


def as_json(transcript: Transcript, **extra: Any) -> str:
    """One line of JSON, ``extra`` fields first; durations are rounded to a tenth of a millisecond."""
    fields = {key: _printable(value) for key, value in extra.items()} | msgspec.to_builtins(transcript)
    fields["timings"] = {stage: round(seconds, 4) for stage, seconds in fields["timings"].items()}
    return msgspec.json.encode(fields).decode()


def _printable(value: Any) -> Any:
    """File names may hold bytes that are no UTF-8; JSON may not."""
    return value.encode(errors="replace").decode() if isinstance(value, str) else value


def as_text(transcript: Transcript) -> str:
    """The text alone."""
    return transcript.text
