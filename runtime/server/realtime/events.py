"""The engine's events of a live stream as OpenAI's server events.

An *item* is what a client sees of an utterance. With voice activity detection every segment is an item. Without it an
item is a *turn*, all audio up to a commit, however many segments that is; their texts are joined as offline.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from runtime.pipeline.events import Event, Final, Partial
from runtime.pipeline.join_text import is_unspaced, join_texts

ServerEvent = dict[str, Any]

_TRANSCRIPTION = "conversation.item.input_audio_transcription"


def new_id(kind: str) -> str:
    """An id that nobody guesses: ``kind``, an underscore and 20 hexadecimal digits."""
    return f"{kind}_{secrets.token_hex(10)}"


def server_event(kind: str, **fields: Any) -> ServerEvent:
    """An event with an id of its own."""
    return {"type": kind, "event_id": new_id("event"), **fields}


def error_event(
    message: str,
    *,
    kind: str = "invalid_request_error",
    code: str | None = None,
    param: str | None = None,
    event_id: str | None = None,
) -> ServerEvent:
    """What was wrong; ``event_id`` is the client's, of the event that it was wrong with."""
    error = {"type": kind, "code": code, "message": message, "param": param, "event_id": event_id}
    return server_event("error", error=error)


@dataclass(slots=True, eq=False)
class _Item:
    """An utterance: ``start`` is in seconds of the connection's audio, ``sent`` what deltas have told of it."""

    start: float
    id: str = field(default_factory=lambda: new_id("item"))
    sent: str = ""
    committed: bool = False


@dataclass(slots=True, eq=False)
class _Turn:
    """What is known of a turn: texts of its segments, None for one that is open, and their languages by seconds."""

    item: _Item
    texts: dict[int, str | None] = field(default_factory=dict)
    languages: dict[str, float] = field(default_factory=dict)

    @property
    def language(self) -> str | None:
        """The language of most of its speech."""
        return max(self.languages, key=lambda name: self.languages[name]) if self.languages else None

    def finals(self, before: int | None = None) -> list[str]:
        """Texts of the segments up to the first that is open, or up to the segment ``before``."""
        texts: list[str] = []
        for number in sorted(self.texts):
            text = self.texts[number]
            if text is None or number == before:
                break
            texts.append(text)
        return texts

    def with_open(self, segment: int, text: str) -> str | None:
        """The finished texts and ``text``, the beginning of the next; None while a segment before it is open.

        Which space is put before a text depends on its first letter: without one nothing of it can be told yet.
        """
        if any(number < segment and known is None for number, known in self.texts.items()):
            return None
        certain = any(char.isalnum() or is_unspaced(char) for char in text)
        return join_texts([*self.finals(segment), *([text] if certain else [])])


class Items:
    """What the events of one connection's streams, one after the other, mean to its client.

    Attributes:
        legacy: use the names of events from before the API's general availability.
        count: items committed so far.
    """

    def __init__(self, *, partials: bool = False) -> None:
        """``partials``: tell unstable text and the times of items too, which OpenAI's events have no place for."""
        self.legacy = False
        self.count = 0
        self._partials = partials
        self._previous: str | None = None
        self._offset = 0.0
        self._codes: Mapping[str, str] = {}
        self._segments: dict[int, _Item] = {}
        self._turn: _Turn | None = None

    def opened(self, seconds: float, *, turn: bool, codes: Mapping[str, str]) -> None:
        """A stream begins after so many seconds of the connection's audio: a turn, or segments by voice activity.

        ``codes`` are ISO codes of the languages' English names.
        """
        self._offset, self._codes, self._segments = seconds, codes, {}
        self._turn = _Turn(_Item(seconds)) if turn else None

    def take(self, event: Event) -> list[ServerEvent]:
        """What to tell the client of an event of the stream that is open."""
        if self._turn:
            return self._take_in_turn(self._turn, event)
        if isinstance(event, Partial):
            made = self._announced(event.segment, event.start)
            item = self._segments[event.segment]
            return made + self._heard(item, event.stable) + self._partial(item, event, event.stable, event.unstable)
        if isinstance(event, Final):
            result = event.result
            made = self._announced(event.segment, result.start)
            item, end = self._segments.pop(event.segment), self._offset + result.end
            stopped = server_event("input_audio_buffer.speech_stopped", audio_end_ms=round(1000 * end), item_id=item.id)
            return [
                *made,
                stopped,
                *self._committed(item),
                *self._completed(item, result.text, end, result.language),
            ]
        return self._announced(event.segment, event.start)

    def committed(self) -> list[ServerEvent]:
        """The client committed the turn that is open."""
        assert self._turn
        return self._committed(self._turn.item)

    def completed(self, seconds: float) -> list[ServerEvent]:
        """The stream of a committed turn is over; it ended after so many seconds of the connection's audio."""
        assert self._turn
        turn, self._turn = self._turn, None
        made = [] if turn.item.committed else self._committed(turn.item)
        return made + self._completed(turn.item, join_texts(turn.finals()), seconds, turn.language)

    def failed(self, message: str, kind: str, code: str | None) -> list[ServerEvent]:
        """The stream ended with an error: so did every item that was open."""
        items = [self._turn.item] if self._turn else list(self._segments.values())
        self._segments, self._turn = {}, None
        error = {"type": kind, "code": code, "message": message, "param": None}
        return [
            server_event(f"{_TRANSCRIPTION}.failed", item_id=item.id, content_index=0, error=error) for item in items
        ]

    def _take_in_turn(self, turn: _Turn, event: Event) -> list[ServerEvent]:
        turn.texts.setdefault(event.segment, None)
        if isinstance(event, Final):
            result = event.result
            turn.texts[event.segment] = result.text
            if result.language and result.text:
                turn.languages[result.language] = turn.languages.get(result.language, 0.0) + result.end - result.start
            return self._heard(turn.item, join_texts(turn.finals()))
        if isinstance(event, Partial):
            stable = turn.with_open(event.segment, event.stable)
            if stable is None:
                return []
            whole = join_texts([*turn.finals(event.segment), event.stable + event.unstable])
            return self._heard(turn.item, stable) + self._partial(turn.item, event, stable, whole[len(stable) :])
        return []

    def _announced(self, segment: int, start: float) -> list[ServerEvent]:
        """``speech_started`` of a segment, the first time."""
        if segment in self._segments:
            return []
        item = self._segments[segment] = _Item(self._offset + start)
        started = round(1000 * item.start)
        return [server_event("input_audio_buffer.speech_started", audio_start_ms=started, item_id=item.id)]

    def _heard(self, item: _Item, text: str) -> list[ServerEvent]:
        """The growth of an item's stable text."""
        assert text.startswith(item.sent), "text that was told is taken back"
        delta, item.sent = text[len(item.sent) :], text
        if not delta:
            return []
        return [server_event(f"{_TRANSCRIPTION}.delta", item_id=item.id, content_index=0, delta=delta)]

    def _partial(self, item: _Item, event: Partial, stable: str, unstable: str) -> list[ServerEvent]:
        if not self._partials:
            return []
        return [
            server_event(
                f"{_TRANSCRIPTION}.partial",
                item_id=item.id,
                content_index=0,
                stable=stable,
                unstable=unstable,
                start=round(item.start, 3),
                end=round(self._offset + event.end, 3),
                language=event.language,
            )
        ]

    def _committed(self, item: _Item) -> list[ServerEvent]:
        """An item's audio is complete; the item takes its place after the one before."""
        previous, self._previous = self._previous, item.id
        item.committed = True
        self.count += 1
        body = {
            "id": item.id,
            "object": "realtime.item",
            "type": "message",
            "role": "user",
            "status": "completed",
            "content": [{"type": "input_audio", "transcript": None}],
        }
        names = ["conversation.item.created"] if self.legacy else ["conversation.item.added", "conversation.item.done"]
        return [
            server_event("input_audio_buffer.committed", item_id=item.id, previous_item_id=previous),
            *(server_event(name, item=body, previous_item_id=previous) for name in names),
        ]

    def _completed(self, item: _Item, text: str, end: float, language: str | None) -> list[ServerEvent]:
        """The rest of the text, and then the whole of it."""
        fields: dict[str, Any] = {
            "item_id": item.id,
            "content_index": 0,
            "transcript": text,
            "usage": {"type": "duration", "seconds": round(end - item.start, 3)},
        }
        if language and language in self._codes:
            fields["languages"] = [{"code": self._codes[language]}]
        if self._partials:
            fields |= {"start": round(item.start, 3), "end": round(end, 3), "language": language}
        return [*self._heard(item, text), server_event(f"{_TRANSCRIPTION}.completed", **fields)]
