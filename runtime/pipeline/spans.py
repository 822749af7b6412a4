"""Decoded spans of audio: shifted in time, joined, and turned into the segments of a transcript."""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec

from runtime.engines.base import Part, SegmentResult, Span
from runtime.pipeline.join_text import join_texts
from runtime.results import FinishReason, Segment, Word

# Joined pieces have 0.25 s without speech on both sides, and the model's times are not exact to a tenth of a second: a
# text that has less than this of a piece is not said there.
_STRAY_SECONDS = 0.5

_SEVERITY: dict[FinishReason, int] = {"stop": 0, "length": 1, "repetition": 2}


def segment_of(span: Span, rate: int) -> Segment:
    """Return a span of audio at ``rate`` Hz as one segment of a transcript."""
    words = span.result.words
    return Segment(
        start=round(span.start / rate, 3),
        end=round((span.start + span.length) / rate, 3),
        text=span.result.text,
        language=span.result.language,
        confidence=round(span.result.confidence, 4),
        finish_reason=span.result.finish_reason,
        tokens=span.result.tokens,
        decoded_again=span.decoded_again,
        words=None if words is None else [_in_audio(word, span, rate) for word in words],
        no_speech_prob=None if span.result.no_speech_prob is None else round(span.result.no_speech_prob, 4),
        dropped_text=span.result.dropped_text,
    )


def _in_audio(word: Word, span: Span, rate: int) -> Word:
    """Return a word of a span with times of the audio."""
    return Word(word.text, *_times(word.start, word.end, span, rate), round(word.confidence, 4))


def _times(start: float, end: float, span: Span, rate: int) -> tuple[float, float]:
    """Return times within a span as times of the audio, rounded to milliseconds.

    Args:
        start: seconds from the start of what was decoded.
        end: the same, not before ``start``.
        span: the span; with parts, pauses between them were not decoded.
        rate: sampling rate in Hz.
    """
    if not span.parts:
        return round(span.start / rate + start, 3), round(span.start / rate + end, 3)
    stray = min(_STRAY_SECONDS, (end - start) / 2)

    def share(part: Part) -> float:
        return min(end, (part.offset + part.length) / rate) - max(start, part.offset / rate)

    touched = [part for part in span.parts if share(part) >= 0] or span.parts[-1:]
    said = [part for part in touched if share(part) > stray] or [max(touched, key=share)]
    first, last = said[0], said[-1]
    begin = max(0.0, start - first.offset / rate)
    until = min(last.length / rate, end - last.offset / rate)
    return round(first.start / rate + begin, 3), round(last.start / rate + until, 3)


def segments_of(span: Span, rate: int) -> list[Segment]:
    """Return a span as its timed parts, if timestamps were requested or pieces were joined, else as one segment.

    Finish reason and ``decoded_again`` belong to the last part.
    """
    whole = segment_of(span, rate)
    if not span.result.phrases:
        return [whole]
    parts = []
    for phrase in span.result.phrases:
        start, end = _times(phrase.start, phrase.end, span, rate)
        parts.append(
            msgspec.structs.replace(
                whole,
                start=start,
                end=end,
                text=phrase.text,
                language=phrase.language or whole.language,
                tokens=phrase.tokens,
                finish_reason="stop",
                decoded_again=None,
            )
        )
    last = msgspec.structs.replace(parts[-1], finish_reason=whole.finish_reason, decoded_again=whole.decoded_again)
    return [*parts[:-1], last]


def shift_times(result: SegmentResult, seconds: float) -> SegmentResult:
    """Return a result whose times are ``seconds`` later."""
    phrases = [
        msgspec.structs.replace(phrase, start=phrase.start + seconds, end=phrase.end + seconds)
        for phrase in result.phrases
    ]
    words = result.words and [
        msgspec.structs.replace(word, start=word.start + seconds, end=word.end + seconds) for word in result.words
    ]
    return msgspec.structs.replace(result, phrases=phrases, words=words)


def join_results(parts: Sequence[SegmentResult]) -> SegmentResult:
    """Join the results of a segment's consecutive parts; the finish reason is the worst of theirs.

    The no-speech probability is the lowest of theirs: there is speech if one part has speech. Times must already count
    from the segment's start (:func:`shift_times`).
    """
    unheard = [part.no_speech_prob for part in parts if part.no_speech_prob is not None]
    dropped = [part.dropped_text for part in parts if part.dropped_text is not None]
    counts = [max(1, len(part.tokens)) for part in parts]
    logs = [count * math.log(max(part.confidence, 1e-30)) for part, count in zip(parts, counts, strict=True)]
    return SegmentResult(
        text=join_texts([part.text for part in parts]),
        language=next((part.language for part in parts if part.language), None),
        tokens=[token for part in parts for token in part.tokens],
        confidence=math.exp(sum(logs) / sum(counts)),
        finish_reason=max((part.finish_reason for part in parts), key=_SEVERITY.__getitem__),
        audio_tokens=sum(part.audio_tokens for part in parts),
        prompt_tokens=sum(part.prompt_tokens for part in parts),
        phrases=[
            phrase if phrase.language else msgspec.structs.replace(phrase, language=part.language)
            for part in parts
            for phrase in part.phrases
        ],
        words=_join_words(parts),
        no_speech_prob=min(unheard, default=None),
        dropped_text=join_texts(dropped) if dropped else None,
        text_tokens=sum(part.text_tokens for part in parts),
        stop_log_probability=parts[-1].stop_log_probability,
    )


def _join_words(parts: Sequence[SegmentResult]) -> list[Word] | None:
    """Return the words of all parts; None when a part has no word times."""
    words: list[Word] = []
    for part in parts:
        if part.words is None:
            return None
        words += part.words
    return words
