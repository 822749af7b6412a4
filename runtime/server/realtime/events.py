"""Translation of a live stream's events to OpenAI's server events.

OpenAI's events describe *items*. With voice activity detection, every segment is an item. Without it, an item is a
*turn*: all audio up to a commit, which may have several segments. Their texts are joined as in offline transcription.
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
    """Return a random id: ``kind``, an underscore and 20 hexadecimal digits."""
    return f"{kind}_{secrets.token_hex(10)}"


def server_event(kind: str, **fields: Any) -> ServerEvent:
    """Return a server event of type ``kind`` with a new id."""
    return {"type": kind, "event_id": new_id("event"), **fields}


def error_event(
    message: str,
    *,
    kind: str = "invalid_request_error",
    code: str | None = None,
    param: str | None = None,
    event_id: str | None = None,
) -> ServerEvent:
    """Return an error event. ``event_id`` is the id of the client's event that caused it."""
    error = {"type": kind, "code": code, "message": message, "param": param, "event_id": event_id}
    return server_event("error", error=error)


@dataclass(slots=True, eq=False)
class _Item:
    """Item of a conversation.

    Attributes:
        start: start in seconds of the connection's audio.
        sent: text sent in deltas so far.
        committed: the commit was sent.
    """

    start: float
    id: str = field(default_factory=lambda: new_id("item"))
    sent: str = ""
    committed: bool = False


@dataclass(slots=True, eq=False)
class _Turn:
    """Segments of a turn.

    Attributes:
        item: the turn's item.
        texts: final text by segment index; None for a segment that is not final.
        languages: seconds of speech by language.
    """

    item: _Item
    texts: dict[int, str | None] = field(default_factory=dict)
    languages: dict[str, float] = field(default_factory=dict)

    @property
    def language(self) -> str | None:
        """Language with the longest speech."""
        return max(self.languages, key=lambda name: self.languages[name]) if self.languages else None

    def final_texts(self, before: int | None = None) -> list[str]:
        """Return the texts of the segments before the first one that is not final, or before segment ``before``."""
        texts: list[str] = []
        for index in sorted(self.texts):
            text = self.texts[index]
            if text is None or index == before:
                break
            texts.append(text)
        return texts

    def stable_text(self, segment: int, text: str) -> str | None:
        """Return the turn's text up to ``text``, the stable start of a segment; None if an earlier one is not final.

        The separator before a segment depends on its first letter, so ``text`` is left out until it has a letter.
        """
        if any(index < segment and final is None for index, final in self.texts.items()):
            return None
        has_letter = any(char.isalnum() or is_unspaced(char) for char in text)
        return join_texts([*self.final_texts(segment), *([text] if has_letter else [])])


class EventTranslator:
    """Translates the events of a connection's consecutive streams.

    Attributes:
        legacy: use the event names from before the API's general availability.
        count: items committed so far.
    """

    def __init__(self, *, partials: bool = False) -> None:
        """Args:
        partials: also send unstable text and times of items, which OpenAI's events do not have.
        """
        self.legacy = False
        self.count = 0
        self._partials = partials
        self._previous: str | None = None
        self._offset = 0.0
        self._codes: Mapping[str, str] = {}
        self._segments: dict[int, _Item] = {}
        self._turn: _Turn | None = None

    def start_stream(self, seconds: float, *, turn: bool, codes: Mapping[str, str]) -> None:
        """Start a stream.

        Args:
            seconds: start of the stream in seconds of the connection's audio.
            turn: the whole stream is one item; otherwise each segment is.
            codes: ISO codes by English name of the language.
        """
        self._offset, self._codes, self._segments = seconds, codes, {}
        self._turn = _Turn(_Item(seconds)) if turn else None

    def translate(self, event: Event) -> list[ServerEvent]:
        """Translate an event of the open stream."""
        if self._turn:
            return self._translate_in_turn(self._turn, event)
        if isinstance(event, Partial):
            events = self._speech_started(event.segment, event.start)
            item = self._segments[event.segment]
            return events + self._delta(item, event.stable) + self._partial(item, event, event.stable, event.unstable)
        if isinstance(event, Final):
            result = event.result
            events = self._speech_started(event.segment, result.start)
            item, end = self._segments.pop(event.segment), self._offset + result.end
            stopped = server_event("input_audio_buffer.speech_stopped", audio_end_ms=round(1000 * end), item_id=item.id)
            return [
                *events,
                stopped,
                *self._committed(item),
                *self._completed(item, result.text, end, result.language),
            ]
        return self._speech_started(event.segment, event.start)

    def commit_turn(self) -> list[ServerEvent]:
        """Commit the open turn."""
        assert self._turn
        return self._committed(self._turn.item)

    def complete_turn(self, seconds: float) -> list[ServerEvent]:
        """Complete the open turn, whose stream has ended after ``seconds`` of the connection's audio."""
        assert self._turn
        turn, self._turn = self._turn, None
        events = [] if turn.item.committed else self._committed(turn.item)
        return events + self._completed(turn.item, join_texts(turn.final_texts()), seconds, turn.language)

    def fail_open_items(self, message: str, kind: str, code: str | None) -> list[ServerEvent]:
        """Fail all open items because the stream failed."""
        items = [self._turn.item] if self._turn else list(self._segments.values())
        self._segments, self._turn = {}, None
        error = {"type": kind, "code": code, "message": message, "param": None}
        return [
            server_event(f"{_TRANSCRIPTION}.failed", item_id=item.id, content_index=0, error=error) for item in items
        ]

    def _translate_in_turn(self, turn: _Turn, event: Event) -> list[ServerEvent]:
        turn.texts.setdefault(event.segment, None)
        if isinstance(event, Final):
            result = event.result
            turn.texts[event.segment] = result.text
            if result.language and result.text:
                turn.languages[result.language] = turn.languages.get(result.language, 0.0) + result.end - result.start
            return self._delta(turn.item, join_texts(turn.final_texts()))
        if isinstance(event, Partial):
            stable = turn.stable_text(event.segment, event.stable)
            if stable is None:
                return []
            whole = join_texts([*turn.final_texts(event.segment), event.stable + event.unstable])
            return self._delta(turn.item, stable) + self._partial(turn.item, event, stable, whole[len(stable) :])
        return []

    def _speech_started(self, segment: int, start: float) -> list[ServerEvent]:
        """Return ``speech_started`` for a new segment; nothing for a known one."""
        if segment in self._segments:
            return []
        item = self._segments[segment] = _Item(self._offset + start)
        audio_start = round(1000 * item.start)
        return [server_event("input_audio_buffer.speech_started", audio_start_ms=audio_start, item_id=item.id)]

    def _delta(self, item: _Item, text: str) -> list[ServerEvent]:
        """Return the part of the item's stable text that was not sent yet."""
        assert text.startswith(item.sent), "stable text has changed"
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
        """Return the events for an item whose audio is complete, linked to the previous item."""
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
        """Return the remaining delta and the whole text of an item that ends at ``end`` seconds."""
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
        return [*self._delta(item, text), server_event(f"{_TRANSCRIPTION}.completed", **fields)]
