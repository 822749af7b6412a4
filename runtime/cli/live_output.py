"""Output of ``stream`` to pipes and files: lines of text or JSON, or subtitles, written as events arrive."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import Any, Protocol, TextIO

import msgspec
import typer

from runtime.pipeline.events import Event, Final
from runtime.results import Segment, fields_of
from runtime.writers import VTT_HEADER, on_one_line, srt_cue, vtt_cue


class StreamFormat(StrEnum):
    """Format of the events of a stream."""

    txt = "txt"
    json = "json"
    srt = "srt"
    vtt = "vtt"


class Output(Protocol):
    """Shows the events of a stream."""

    def show(self, events: Sequence[Event]) -> None:
        """Write new events."""

    def note(self, text: str) -> None:
        """Write a message to standard error."""

    def close(self) -> None:
        """Restore the terminal."""


class _FlushedOutput:
    """Writes results to ``out`` and flushes it each time; writes messages to standard error."""

    def __init__(self, out: TextIO) -> None:
        self._out = out

    def _write(self, text: str) -> None:
        self._out.write(text)
        self._out.flush()

    def note(self, text: str) -> None:
        typer.echo(text, err=True)

    def close(self) -> None:
        """Do nothing: there is no terminal to restore."""


class TextLines(_FlushedOutput):
    """Writes a line of text for each final segment."""

    def show(self, events: Sequence[Event]) -> None:
        self._write("".join(f"{on_one_line(segment.text)}\n" for segment in segments_with_text(events)))


class JsonLines(_FlushedOutput):
    """Writes a line of JSON for each event, with the kind of event under ``type``."""

    def show(self, events: Sequence[Event]) -> None:
        self._write("".join(map(event_as_json, events)))


class SrtCues(_FlushedOutput):
    """Writes SubRip subtitles, a cue for each final segment."""

    def __init__(self, out: TextIO) -> None:
        super().__init__(out)
        self._cues = 0

    def show(self, events: Sequence[Event]) -> None:
        for segment in segments_with_text(events):
            self._cues += 1
            self._write(("\n" if self._cues > 1 else "") + srt_cue(segment, self._cues))


class VttCues(_FlushedOutput):
    """Writes WebVTT subtitles, a cue for each final segment."""

    def __init__(self, out: TextIO) -> None:
        super().__init__(out)
        self._has_header = False

    def show(self, events: Sequence[Event]) -> None:
        header = "" if self._has_header else VTT_HEADER
        self._has_header = True
        self._write(header + "".join(f"\n{vtt_cue(segment)}" for segment in segments_with_text(events)))


def segments_with_text(events: Sequence[Event]) -> list[Segment]:
    """Return the final segments among ``events`` whose text is not empty."""
    finals = (event.result for event in events if isinstance(event, Final))
    return [segment for segment in finals if on_one_line(segment.text)]


def event_as_json(event: Event) -> str:
    """Return the event's fields as one line of JSON, ``type`` first; times are rounded to 1 ms."""
    fields: dict[str, Any] = fields_of(event)
    for times in (fields, fields.get("result", {})):
        for name in ("start", "end"):
            if name in times:
                times[name] = round(times[name], 3)
    return msgspec.json.encode(fields).decode() + "\n"
