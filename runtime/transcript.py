"""What comes of audio: segments, and transcripts of them."""

from __future__ import annotations

from typing import Any

import msgspec

from runtime.decoding.autoregressive import FinishReason
from runtime.engine import Timings, Word
from runtime.work import Span


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


def segment_of(span: Span, rate: int) -> Segment:
    """What is told of a finished piece of audio at ``rate`` Hz."""
    begin, words = span.start / rate, span.result.words
    return Segment(
        start=round(span.start / rate, 3),
        end=round((span.start + span.length) / rate, 3),
        text=span.result.text,
        language=span.result.language,
        confidence=round(span.result.confidence, 4),
        finish_reason=span.result.finish_reason,
        tokens=span.result.tokens,
        decoded_again=span.decoded_again,
        words=None if words is None else [_in_audio(word, begin) for word in words],
    )


def _in_audio(word: Word, begin: float) -> Word:
    """A word of a segment that begins after ``begin`` seconds, with times of the audio."""
    start, end = round(begin + word.start, 3), round(begin + word.end, 3)
    return Word(word.text, start, end, round(word.confidence, 4))


def segments_of(span: Span, rate: int) -> list[Segment]:
    """The same, as the parts that have times of their own, where timestamps were asked for.

    What is said of the text's end and of its decoding, is said of the last part.
    """
    whole = segment_of(span, rate)
    if not span.result.phrases:
        return [whole]
    parts = [
        msgspec.structs.replace(
            whole,
            start=round(span.start / rate + phrase.start, 3),
            end=round(span.start / rate + phrase.end, 3),
            text=phrase.text,
            tokens=phrase.tokens,
            finish_reason="stop",
            decoded_again=None,
        )
        for phrase in span.result.phrases
    ]
    last = msgspec.structs.replace(parts[-1], finish_reason=whole.finish_reason, decoded_again=whole.decoded_again)
    return [*parts[:-1], last]
