"""Decoded spans of audio: shifted in time, joined, and turned into the segments of a transcript."""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec

from runtime.engines.base import SegmentResult, Span
from runtime.pipeline.join_text import join_texts
from runtime.results import FinishReason, Segment, Word

_SEVERITY: dict[FinishReason, int] = {"stop": 0, "length": 1, "repetition": 2}


def segment_of(span: Span, rate: int) -> Segment:
    """Return a span of audio at ``rate`` Hz as one segment of a transcript."""
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
        no_speech_prob=None if span.result.no_speech_prob is None else round(span.result.no_speech_prob, 4),
        dropped_text=span.result.dropped_text,
    )


def _in_audio(word: Word, begin: float) -> Word:
    """Return a word of a segment that starts at ``begin`` seconds with times of the audio."""
    start, end = round(begin + word.start, 3), round(begin + word.end, 3)
    return Word(word.text, start, end, round(word.confidence, 4))


def segments_of(span: Span, rate: int) -> list[Segment]:
    """Return a span as its timed parts, if timestamps were requested, else as one segment.

    Finish reason and ``decoded_again`` belong to the last part.
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
        phrases=[phrase for part in parts for phrase in part.phrases],
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
