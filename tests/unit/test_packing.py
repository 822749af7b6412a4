"""Pieces of speech that are decoded in one window: how they are joined, divided, and timed in the recording."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest

from runtime.audio.cut_points import Piece
from runtime.engines.base import Part, SegmentOptions, SegmentResult, Span
from runtime.pipeline import stretches
from runtime.pipeline.packing import Packed, pack
from runtime.pipeline.spans import segments_of
from runtime.pipeline.stretches import SegmentInProgress
from runtime.results import TimedText, Word

RATE = 16_000


def piece(start: float, seconds: float, value: float = 0.0) -> Piece:
    return Piece(int(start * RATE), np.full(int(seconds * RATE), value, np.float32), seconds)


def window(*pieces: Piece) -> Packed:
    (packed,) = pack(pieces, 30 * RATE)
    assert isinstance(packed, Packed)
    return packed


def result(phrases: list[tuple[float, float, str]], **fields: Any) -> SegmentResult:
    timed = [TimedText(start, end, text, [len(text)]) for start, end, text in phrases]
    text = " ".join(each.text for each in timed)
    return SegmentResult(text, "English", [1], 0.5, "stop", 10, 2, phrases=timed, **fields)


def span(packed: Packed, of: SegmentResult) -> Span:
    return Span(packed.start, packed.extent, of, None, packed.parts)


def test_pieces_are_joined_up_to_the_length_of_a_window() -> None:
    pieces = [piece(0, 10, 1), piece(15, 19, 2), piece(40, 2, 3), piece(50, 28, 4)]
    steps: list[Piece | None] = [None, pieces[0], None, *pieces[1:]]
    first, second, joined, alone, *_ = pack([*steps, piece(99, 2)], 29 * RATE)
    assert (first, second) == (None, None)  # steps are passed on at once
    assert isinstance(joined, Packed)
    assert joined.parts == [Part(0, 0, 10 * RATE), Part(10 * RATE, 15 * RATE, 19 * RATE)]
    assert (joined.start, joined.extent, joined.speech) == (0, 34 * RATE, 29.0)
    assert np.array_equal(joined.samples, np.concatenate([pieces[0].samples, pieces[1].samples]))
    # 2 s would fit to 28 s only in a longer window
    assert isinstance(alone, Piece)
    assert alone is pieces[2]


def test_a_piece_that_fills_a_window_is_unchanged() -> None:
    full = [piece(0, 29), piece(40, 29)]
    assert list(pack(full, 29 * RATE)) == full
    assert list(pack([], 29 * RATE)) == []


def test_unknown_speech_of_a_piece_makes_that_of_the_window_unknown() -> None:
    assert window(piece(0, 1), Piece(50_000, np.zeros(RATE, np.float32))).speech is None


@pytest.mark.parametrize(
    ("phrase", "expected"),
    [
        ((0.0, 2.5), (1.0, 3.5)),  # within the first piece
        ((4.0, 6.0), (10.0, 12.0)),  # the second one begins at 4 s in the window, at 10 s in the recording
        ((3.8, 6.0), (10.0, 12.0)),  # begins in the silence at the end of the first
        ((2.0, 4.2), (3.0, 5.0)),  # ends in the silence at the start of the second
        ((2.0, 6.0), (3.0, 12.0)),  # a sentence with the pause in it
        ((7.0, 9.9), (13.0, 14.0)),  # a timestamp behind the end of the audio
    ],
)
def test_times_in_a_window_are_times_of_the_recording(
    phrase: tuple[float, float], expected: tuple[float, float]
) -> None:
    packed = window(piece(1, 4), piece(10, 4))
    (segment,) = segments_of(span(packed, result([(*phrase, "said")])), RATE)
    assert (segment.start, segment.end) == expected


@pytest.mark.parametrize("phrase", [(3.9, 4.1), (4.0, 4.0), (3.99, 4.0), (4.0, 4.01), (8.0, 9.0)])
def test_no_time_is_in_a_pause(phrase: tuple[float, float]) -> None:
    packed = window(piece(1, 4), piece(10, 4))
    (segment,) = segments_of(span(packed, result([(*phrase, "said")])), RATE)
    assert any(first <= segment.start <= segment.end <= last for first, last in [(1.0, 5.0), (10.0, 14.0)])


def test_segments_follow_one_another() -> None:
    packed = window(piece(1, 4), piece(10, 4), piece(20, 3))
    phrases = [(0.0, 3.9, "a"), (3.9, 5.0, "b"), (5.0, 7.9, "c"), (7.9, 11.0, "d")]
    times = [(each.start, each.end) for each in segments_of(span(packed, result(phrases)), RATE)]
    assert times == [(1.0, 4.9), (10.0, 11.0), (11.0, 13.9), (20.0, 23.0)]


def test_words_have_times_of_the_recording() -> None:
    packed = window(piece(1, 4), piece(10, 4))
    (segment,) = segments_of(span(packed, result([], words=[Word("hi", 5.0, 5.5, 0.5)])), RATE)
    assert segment.words == [Word("hi", 11.0, 11.5, 0.5)]


def test_a_window_without_text_is_one_segment() -> None:
    packed = window(piece(1, 4), piece(10, 4))
    (segment,) = segments_of(span(packed, result([], dropped_text="you")), RATE)
    assert (segment.start, segment.end, segment.text, segment.dropped_text) == (1.0, 14.0, "", "you")


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """No sample is speech, so that no text is too short for it."""
    monkeypatch.setattr(stretches, "clear_speech", lambda *_: 0.0)


@pytest.mark.usefixtures("quiet")
def test_pieces_in_another_language_are_decoded_alone() -> None:
    work = SegmentInProgress(window(piece(1, 2), piece(5, 3), piece(10, 4), piece(20, 5)), SegmentOptions(), RATE)
    assert work.job(None)[1].timestamps
    jobs = work.take(None, SegmentResult("", None, [], 0.0, "stop", 10, 1, foreign_parts=[2]))
    stretch = [work.job(job) for job in jobs]
    assert [len(each.samples) / RATE for each, _ in stretch] == [5.0, 4.0, 5.0]
    assert all(options.timestamps and not isinstance(each, Packed) for each, options in stretch)
    texts = [("one", "English"), ("deux", "French"), ("three", "English")]
    for job, (text, language) in zip(jobs, texts, strict=True):
        answer = SegmentResult(text, language, [1], 0.5, "stop", 10, 2, phrases=[TimedText(0.5, 1.5, text, [1])])
        assert work.take(job, answer) == []
    assert work.whole.result
    whole = Span(RATE, 24 * RATE, work.whole.result, work.decoded_again, work.parts)
    segments = segments_of(whole, RATE)
    assert [(each.text, each.language) for each in segments] == texts
    assert [(each.start, each.end) for each in segments] == [(1.5, 2.5), (10.5, 11.5), (20.5, 21.5)]
    assert work.decoded_again is None


def test_a_loop_in_a_window_is_decoded_again_in_its_samples() -> None:
    work = SegmentInProgress(window(piece(1, 4, 0.1), piece(60, 6, 0.2)), SegmentOptions(), RATE)
    jobs = work.take(None, msgspec.structs.replace(result([(0.0, 5.0, "again again")]), finish_reason="repetition"))
    parts = [work.job(job)[0].samples for job in jobs]
    assert np.array_equal(np.concatenate(parts), work.piece.samples)


@pytest.mark.usefixtures("quiet")
def test_a_text_without_times_is_decoded_piece_by_piece() -> None:
    """No segment lasts as long as a window, whatever the model says."""
    pieces = [piece(10 * index, 7) for index in range(4)]
    work = SegmentInProgress(window(*pieces), SegmentOptions(), RATE)
    jobs = work.take(None, result([(0.0, 28.0, "all of it")]))
    assert len(jobs) == 4
    for number, job in enumerate(jobs):
        work.take(job, result([(1.0, 6.0, f"{number}")]))
    assert work.whole.result
    segments = segments_of(Span(0, 37 * RATE, work.whole.result, None, work.parts), RATE)
    assert [(each.start, each.end) for each in segments] == [(10.0 * n + 1, 10.0 * n + 6) for n in range(4)]

    short = SegmentInProgress(window(*pieces), SegmentOptions(), RATE)
    assert short.take(None, result([(0.0, 14.0, "two pieces"), (14.0, 28.0, "two more")])) == []
