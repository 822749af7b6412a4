"""Decoded spans of audio: joined, shifted in time, and turned into the segments of a transcript."""

from __future__ import annotations

import math

import msgspec

from runtime.engines.base import SegmentResult, Span
from runtime.pipeline.join_text import join_texts
from runtime.results import FinishReason, Segment, Word


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


_WORST: dict[FinishReason, int] = {"stop": 0, "length": 1, "repetition": 2}


def later(result: SegmentResult, seconds: float) -> SegmentResult:
    """A result whose times count from so much earlier."""
    phrases = [
        msgspec.structs.replace(phrase, start=phrase.start + seconds, end=phrase.end + seconds)
        for phrase in result.phrases
    ]
    words = result.words and [
        msgspec.structs.replace(word, start=word.start + seconds, end=word.end + seconds) for word in result.words
    ]
    return msgspec.structs.replace(result, phrases=phrases, words=words)


def joined(parts: list[SegmentResult]) -> SegmentResult:
    """The results of consecutive parts of a segment as one, with the worst of their finish reasons.

    Their times are those of the segment already (:func:`later`).
    """
    counts = [max(1, len(part.tokens)) for part in parts]
    logs = [count * math.log(max(part.confidence, 1e-30)) for part, count in zip(parts, counts, strict=True)]
    return SegmentResult(
        text=join_texts([part.text for part in parts]),
        language=next((part.language for part in parts if part.language), None),
        tokens=[token for part in parts for token in part.tokens],
        confidence=math.exp(sum(logs) / sum(counts)),
        finish_reason=max((part.finish_reason for part in parts), key=_WORST.__getitem__),
        audio_tokens=sum(part.audio_tokens for part in parts),
        prompt_tokens=sum(part.prompt_tokens for part in parts),
        phrases=[phrase for part in parts for phrase in part.phrases],
        words=_joined_words(parts),
    )


def _joined_words(parts: list[SegmentResult]) -> list[Word] | None:
    """The words of all parts; None when a part has none to tell."""
    words: list[Word] = []
    for part in parts:
        if part.words is None:
            return None
        words += part.words
    return words
