"""What ``stream`` writes into pipes and files: lines of text or JSON, subtitles, each as soon as it is known."""

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
    """What a stream's events are written as."""

    txt = "txt"
    json = "json"
    srt = "srt"
    vtt = "vtt"


class Output(Protocol):
    """Where events go."""

    def show(self, events: Sequence[Event]) -> None:
        """Write what became known."""

    def note(self, text: str) -> None:
        """Say something that is no result, on standard error."""

    def close(self) -> None:
        """Leave the terminal as others expect it."""


class _Written:
    """Results go to ``out`` at once, whoever reads it; what is said goes elsewhere."""

    def __init__(self, out: TextIO) -> None:
        self._out = out

    def _write(self, text: str) -> None:
        self._out.write(text)
        self._out.flush()

    def note(self, text: str) -> None:
        """See :class:`Output`."""
        typer.echo(text, err=True)

    def close(self) -> None:
        """See :class:`Output`."""


class TextLines(_Written):
    """A line a segment, when it is final."""

    def show(self, events: Sequence[Event]) -> None:
        """See :class:`Output`."""
        self._write("".join(f"{on_one_line(segment.text)}\n" for segment in spoken(events)))


class JsonLines(_Written):
    """A line an event, with what it is under ``type``."""

    def show(self, events: Sequence[Event]) -> None:
        """See :class:`Output`."""
        self._write("".join(map(event_as_json, events)))


class SrtCues(_Written):
    """SubRip subtitles, a cue a segment, when it is final."""

    def __init__(self, out: TextIO) -> None:
        super().__init__(out)
        self._cues = 0

    def show(self, events: Sequence[Event]) -> None:
        """See :class:`Output`."""
        for segment in spoken(events):
            self._cues += 1
            self._write(("\n" if self._cues > 1 else "") + srt_cue(segment, self._cues))


class VttCues(_Written):
    """WebVTT subtitles, a cue a segment, when it is final."""

    def __init__(self, out: TextIO) -> None:
        super().__init__(out)
        self._begun = False

    def show(self, events: Sequence[Event]) -> None:
        """See :class:`Output`."""
        header = "" if self._begun else VTT_HEADER
        self._begun = True
        self._write(header + "".join(f"\n{vtt_cue(segment)}" for segment in spoken(events)))


def spoken(events: Sequence[Event]) -> list[Segment]:
    """The segments that became final and have a text."""
    finals = (event.result for event in events if isinstance(event, Final))
    return [segment for segment in finals if on_one_line(segment.text)]


def event_as_json(event: Event) -> str:
    """One line of JSON: the event's fields under their names, ``type`` first; seconds to the millisecond."""
    fields: dict[str, Any] = fields_of(event)
    for times in (fields, fields.get("result", {})):
        for name in ("start", "end"):
            if name in times:
                times[name] = round(times[name], 3)
    return msgspec.json.encode(fields).decode() + "\n"
