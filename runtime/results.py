"""Results of transcription: what callers, writers, the server and batches read. Imports no engine and no pipeline."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import msgspec

FinishReason = Literal["stop", "length", "repetition"]
Task = Literal["transcribe", "translate"]


class Word(msgspec.Struct, frozen=True):
    """A word as it stands in the text, punctuation included: times in seconds, confidence 0..1.

    Times are from the segment's first sample in a :class:`SegmentResult`, from that of the audio in a transcript.
    """

    text: str
    start: float
    end: float
    confidence: float


class TimedText(msgspec.Struct, frozen=True):
    """A part of a segment's text and its tokens; its times in seconds from the segment's beginning."""

    start: float
    end: float
    text: str
    tokens: list[int]


class Timings(msgspec.Struct):
    """Seconds spent in each stage, added up over segments.

    What was done for several segments at once is shared out among them. ``segment`` is reading, voice activity and
    cutting. ``first_token`` and ``total`` are times from the beginning to the first token and to the end, by the clock:
    stages overlap, and segments of other audio may be among them.
    """

    load: float = 0.0
    segment: float = 0.0
    features: float = 0.0
    encode: float = 0.0
    prefill: float = 0.0
    decode: float = 0.0
    first_token: float = 0.0
    total: float = 0.0

    def add(self, stage: str, seconds: float) -> None:
        """Add to ``stage``."""
        setattr(self, stage, getattr(self, stage) + seconds)

    @contextmanager
    def measure(self, stage: str) -> Iterator[None]:
        """Add the block's duration to ``stage``."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.add(stage, time.perf_counter() - began)


class Segment(msgspec.Struct, frozen=True):
    """A piece of the audio that was decoded at once: times in seconds, confidence 0..1.

    ``tokens`` are the generated ids in the order of decoding, special ones (a header with the language) included, the
    stop id not. ``decoded_again`` says why it was decoded a second time, in shorter pieces and with a penalty on
    repetitions; None when it was not. ``words`` have their own times, and are None where the model tells none.
    """

    start: float
    end: float
    text: str
    language: str | None
    confidence: float
    finish_reason: FinishReason
    tokens: list[int]
    decoded_again: FinishReason | None = None
    words: list[Word] | None = None


class TokenCounts(msgspec.Struct, frozen=True):
    """Over all segments: rows of audio, prompt positions, generated text tokens.

    Where audio is a part of the prompt (Qwen3-ASR), its rows are among the prompt's positions. Where a decoder looks at
    it (Whisper) or the text comes from its frames, they are not.
    """

    audio: int
    prompt: int
    generated: int

    @property
    def text(self) -> int:
        """Prompt positions that are no audio. A prompt that audio is a part of is longer than it; others are shorter:
        Whisper's has 448 positions at most for 1500 rows, and a text that comes from frames has none.
        """
        return self.prompt - self.audio if self.prompt >= self.audio else self.prompt


class Transcript(msgspec.Struct, frozen=True):
    """The complete result. ``language`` is that of most of the speech, or None when nobody spoke."""

    text: str
    language: str | None
    duration: float
    segments: list[Segment]
    timings: Timings
    tokens: TokenCounts
    model: str
    provider: str
    versions: dict[str, str]


def fields_of(value: Any) -> Any:
    """A transcript, a segment, or what holds them, as plain values for JSON: without ``words`` where there are none."""
    return _without_empty_words(msgspec.to_builtins(value))


def _without_empty_words(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_empty_words(each) for key, each in value.items() if not (key == "words" and each is None)}
    return [_without_empty_words(each) for each in value] if isinstance(value, list) else value
