"""What of a segment is decoded again: loops, the rest behind the last timestamp, texts too short for their speech."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from runtime.audio.cut_points import Piece
from runtime.decoding.loops import REPETITION_PENALTY
from runtime.decoding.short_text import SURE_MARGIN, is_short, stop_margin
from runtime.engines.base import Head, SegmentOptions, SegmentResult
from runtime.pipeline import stretches
from runtime.pipeline.stretches import SegmentInProgress
from runtime.results import TimedText

RATE = 16_000
SURE, UNSURE = math.log(0.99), math.log(0.8)


def result(text: str, tokens: int = 10, stop: float | None = SURE, **fields: Any) -> SegmentResult:
    values: dict[str, Any] = {"language": "English", "finish_reason": "stop", "stop_log_probability": stop} | fields
    return SegmentResult(
        text=text, tokens=[1] * tokens, confidence=0.5, audio_tokens=1, prompt_tokens=1, text_tokens=tokens, **values
    )


def segment(seconds: float, start: int = 0, **options: Any) -> SegmentInProgress:
    piece = Piece(start, np.zeros(int(seconds * RATE), np.float32))
    return SegmentInProgress(piece, SegmentOptions(**options), RATE)


@pytest.fixture(autouse=True)
def all_speech(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every sample is speech."""
    monkeypatch.setattr(
        stretches, "clear_speech", lambda samples, start=0, stop=None: ((stop or len(samples)) - start) / RATE
    )


def decode(work: SegmentInProgress, answer: Callable[[Piece, SegmentOptions], SegmentResult]) -> list[float]:
    """Decode everything with ``answer``; return the seconds of each job."""
    jobs: list[int | None] = [None]
    seconds = []
    while jobs:
        part = jobs.pop(0)
        piece, options = work.job(part)
        seconds.append(len(piece.samples) / RATE)
        jobs += work.take(part, answer(piece, options))
    assert work.whole.result
    assert work.whole.result.head is None
    return seconds


def test_a_text_that_ends_early_is_decoded_again_in_parts() -> None:
    """The language is asked again: the options of the parts are those of the segment."""
    work = segment(16.0)
    asked: list[SegmentOptions] = []

    def answer(piece: Piece, options: SegmentOptions) -> SegmentResult:
        asked.append(options)
        whole = len(piece.samples) > 12 * RATE
        language = "English" if whole or piece.start == 0 else "French"
        return result("Ciao mondo!", 4) if whole else result(language, 40, language=language)

    assert decode(work, answer) == pytest.approx([16.0, 8.0, 8.0], abs=2)
    assert work.whole.result
    assert (work.decoded_again, work.whole.result.text) == ("short", "English French")
    assert set(asked) == {SegmentOptions()}


def test_parts_that_are_short_are_divided_further() -> None:
    work = segment(20.0)

    def answer(piece: Piece, _: SegmentOptions) -> SegmentResult:
        return result("one", 8)

    seconds = decode(work, answer)
    assert min(seconds) > 1.0
    assert work.whole.result
    assert work.whole.result.text.split() == ["one"] * (work.whole.result.text_tokens // 8)
    assert work.whole.result.text_tokens >= 40


@pytest.mark.parametrize(
    "parts",
    [result("", 0), result("loop", 40, finish_reason="repetition", stop=None)],
    ids=["no more text", "a loop"],
)
def test_the_first_text_stays_unless_the_parts_have_more(parts: SegmentResult) -> None:
    work = segment(10.0)
    decode(work, lambda piece, _: result("Ciao mondo!", 4) if len(piece.samples) == 10 * RATE else parts)
    assert work.whole.result
    assert (work.whole.result.text, work.decoded_again) == ("Ciao mondo!", "short")


@pytest.mark.parametrize(
    ("tokens", "fields", "options", "again"),
    [
        (17, {}, {}, True),
        (19, {}, {}, False),
        (34, {"stop": UNSURE}, {}, True),
        (36, {"stop": UNSURE}, {}, False),
        (4, {"stop": None}, {}, False),
        (4, {}, {"max_new_tokens": 4}, False),
        (0, {"language": None}, {}, False),
    ],
    ids=["short", "enough", "unsure", "enough though unsure", "no stop", "a given length", "no speech"],
)
def test_when_a_text_of_ten_seconds_is_too_short(
    tokens: int, fields: dict[str, Any], options: dict[str, Any], again: bool
) -> None:
    work = segment(10.0, **options)
    assert bool(work.take(None, result("text" if tokens else "", tokens, **fields))) == again


def test_silence_explains_a_short_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stretches, "clear_speech", lambda *_: 3.5)
    assert segment(10.0).take(None, result("one two three", 9)) == []
    monkeypatch.setattr(stretches, "clear_speech", lambda *_: 8.0)
    assert segment(10.0).take(None, result("one two three", 9)) != []


@pytest.mark.parametrize(
    ("spans", "again"),
    [
        ([(0.0, 4.0), (4.5, 10.0)], False),
        ([(0.0, 4.0), (6.1, 10.0)], True),
        ([(2.1, 10.0)], True),
        ([(0.0, 7.8)], True),
        ([(1.5, 4.0), (5.5, 8.5)], False),
    ],
    ids=["covered", "a gap", "before", "after", "short gaps"],
)
def test_timestamps_that_leave_out_speech(spans: list[tuple[float, float]], again: bool) -> None:
    """The text is long enough for its audio, but no phrase covers two seconds of speech."""
    phrases = [TimedText(start, end, "text", [1]) for start, end in spans]
    assert bool(segment(10.0).take(None, result("text", 40, phrases=phrases))) == again


@pytest.mark.parametrize(
    ("phrases", "again"),
    [
        ([(0.0, 5.0, 15), (5.0, 10.0, 15)], False),  # 3 tokens a second, spoken slowly
        ([(0.0, 5.0, 25), (5.0, 10.0, 5)], True),  # the second phrase has too little for its time
        ([(0.0, 10.0, 17)], True),
    ],
)
def test_times_tell_a_slow_text_from_one_that_ends_early(phrases: list[tuple[float, float, int]], again: bool) -> None:
    timed_text = [TimedText(start, end, "text", [1] * tokens) for start, end, tokens in phrases]
    answer = result("text", sum(tokens for _, _, tokens in phrases), UNSURE, phrases=timed_text)
    assert bool(segment(10.0).take(None, answer)) == again
    untimed = result("text", sum(tokens for _, _, tokens in phrases), UNSURE)
    assert segment(10.0).take(None, untimed)


def test_silence_explains_a_gap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stretches, "clear_speech", lambda *_: 1.9)
    assert segment(10.0).take(None, result("text", 40, phrases=[TimedText(5.0, 10.0, "text", [1])])) == []


def test_the_margin_of_the_stop() -> None:
    assert stop_margin(math.log(0.5)) == pytest.approx(0.0)
    assert stop_margin(math.log(0.95)) == pytest.approx(SURE_MARGIN)
    assert stop_margin(0.0) > SURE_MARGIN
    assert not is_short(0, 2.9, 0.0)
    assert is_short(0, 3.0, 10.0)


def timed(text: str, samples: int, **fields: Any) -> SegmentResult:
    """Return a result whose last part, `cut`, is behind its last pair of timestamps."""
    head = result(text, 30, phrases=[TimedText(0.0, samples / RATE, text, [1])])
    return result(f"{text} cut", 31, phrases=head.phrases, head=Head(head, samples), **fields)


def test_the_rest_behind_the_last_timestamp_is_decoded_on_its_own() -> None:
    work = segment(10.0, start=160, timestamps=True)

    def answer(piece: Piece, _: SegmentOptions) -> SegmentResult:
        if len(piece.samples) == 10 * RATE:
            return timed("first", 7 * RATE)
        assert (piece.start, len(piece.samples)) == (160 + 7 * RATE, 3 * RATE)
        return result("second", 9, phrases=[TimedText(0.5, 3.0, "second", [2])])

    assert decode(work, answer) == [10.0, 3.0]
    assert work.whole.result
    assert (work.whole.result.text, work.decoded_again) == ("first second", None)
    assert [(each.start, each.end) for each in work.whole.result.phrases] == [(0.0, 7.0), (7.5, 10.0)]


def test_a_rest_without_text_keeps_the_whole_text() -> None:
    work = segment(10.0, timestamps=True)
    decode(work, lambda piece, _: timed("first", 7 * RATE) if len(piece.samples) == 10 * RATE else result("", 0))
    assert work.whole.result
    assert work.whole.result.text == "first cut"


def test_a_rest_without_speech_is_not_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stretches, "clear_speech", lambda samples, start=0, stop=None: 0.0 if start else 9.0)
    work = segment(10.0, timestamps=True)
    assert decode(work, lambda *_: timed("first", 7 * RATE)) == [10.0]
    assert work.whole.result
    assert work.whole.result.text == "first cut"


def test_a_loop_is_decoded_again_once_with_a_penalty() -> None:
    """The caller's own penalty does not hide that the parts are guarded."""
    work = segment(10.0, repetition_penalty=REPETITION_PENALTY)
    looped = result("loop", 40, stop=None, finish_reason="repetition")
    assert len(decode(work, lambda *_: looped)) == 3
    assert work.decoded_again == "repetition"
