"""Results of transcription: what callers, writers, batches and the server read. Imports no engine and no pipeline."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import msgspec

FinishReason = Literal["stop", "length", "repetition"]
"""Why a text ended: the model stopped, its token budget ran out, or a loop was cut."""
DecodedAgain = Literal["length", "repetition", "short"]
"""Why a segment was decoded a second time: the finish reason of the first text, or ``short``, too little text for the
speech."""
Task = Literal["transcribe", "translate"]
"""``transcribe`` writes the spoken language, ``translate`` writes English."""


class Word(msgspec.Struct, frozen=True):
    """One word with its punctuation; times in seconds, confidence 0..1.

    Times count from the segment's first sample in a segment result, from the audio's first sample in a transcript.
    """

    text: str
    start: float
    end: float
    confidence: float


class TimedText(msgspec.Struct, frozen=True):
    """A part of a segment's text with its tokens; times in seconds from the segment's first sample.

    ``language`` is set where it may be another than the segment's.
    """

    start: float
    end: float
    text: str
    tokens: list[int]
    language: str | None = None


class Timings(msgspec.Struct):
    """Seconds spent in each stage, summed over segments.

    Time spent on several segments at once is divided among them. ``segment`` is reading, voice activity and cutting.
    ``first_token`` and ``total`` are wall-clock times from the start to the first token and to the end: stages overlap,
    and segments of other audio may run in between.
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
        """Add ``seconds`` to ``stage``."""
        setattr(self, stage, getattr(self, stage) + seconds)

    @contextmanager
    def measure(self, stage: str) -> Iterator[None]:
        """Add the duration of the ``with`` block to ``stage``."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.add(stage, time.perf_counter() - start)


class Segment(msgspec.Struct, frozen=True):
    """A stretch of audio that was decoded at once; times in seconds of the audio, confidence 0..1.

    ``tokens`` are the generated ids in decoding order: special ids such as a language header are included, the stop id
    is not. ``decoded_again`` is why the segment was decoded a second time, in shorter pieces (after ``length`` and
    ``repetition`` with a repetition penalty); None when it was not. ``words`` is None when the model has no word times.

    ``no_speech_prob`` is the model's probability, 0..1, that nobody speaks; None when it gives none. ``dropped_text``
    is what the model wrote for audio in which it heard no speech; ``text`` is without it. None when nothing was
    dropped.
    """

    start: float
    end: float
    text: str
    language: str | None
    confidence: float
    finish_reason: FinishReason
    tokens: list[int]
    decoded_again: DecodedAgain | None = None
    words: list[Word] | None = None
    no_speech_prob: float | None = None
    dropped_text: str | None = None


class TokenCounts(msgspec.Struct, frozen=True):
    """Counts over all segments: encoder rows of audio, prompt positions, generated text tokens.

    Prompt positions include the audio rows where audio is part of the prompt (Qwen3-ASR), see
    ``Engine.audio_in_prompt``.
    """

    audio: int
    prompt: int
    generated: int


class Transcript(msgspec.Struct, frozen=True):
    """The complete result for one audio. ``language`` covers most of the speech; None when there is no speech.

    ``warnings`` say how the audio was changed to be read, for example that its channels cancel one another.
    """

    text: str
    language: str | None
    duration: float
    segments: list[Segment]
    timings: Timings
    tokens: TokenCounts
    model: str
    provider: str
    versions: dict[str, str]
    warnings: list[str] = []


_OMITTED: list[tuple[str, Any]] = [
    ("words", None),
    ("no_speech_prob", None),
    ("dropped_text", None),
    ("warnings", []),
]


def fields_of(value: Any) -> Any:
    """Convert a transcript, a segment, or a container of them to plain values for JSON, without empty fields.

    Empty are ``words``, ``no_speech_prob`` and ``dropped_text`` that are None, and ``warnings`` without an item.
    """
    return _without_empty(msgspec.to_builtins(value))


def _without_empty(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_empty(each) for key, each in value.items() if (key, each) not in _OMITTED}
    return [_without_empty(each) for each in value] if isinstance(value, list) else value
