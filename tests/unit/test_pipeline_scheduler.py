"""Schedule the segments of many files on one fake engine."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from types import TracebackType
from typing import Any

import numpy as np
import pytest

from runtime.decoding.loops import REPETITION_PENALTY
from runtime.engines.base import Engine, LongForm, Probe, SegmentJob, SegmentOptions, SegmentResult, Span
from runtime.engines.batch_plan import BatchPlan
from runtime.engines.capabilities import Capabilities
from runtime.errors import AudioInvalidError
from runtime.pipeline.audio_file import AudioFile
from runtime.pipeline.scheduler import SegmentScheduler
from runtime.pipeline.spans import segments_of
from runtime.results import TimedText, Timings, Word
from tests.helpers.long_form import FixedWindows

RATE = 100


class Reader:
    """Constant audio of ``seconds`` in blocks of one second; raises an error after ``fail_after`` blocks."""

    def __init__(self, seconds: int, value: float, fail_after: int | None = None) -> None:
        self.duration: float | None = float(seconds)
        self._value, self._fail_after = value, fail_after
        self.closed = False
        self.blocks_read = 0

    def __enter__(self) -> Reader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.closed = True

    def blocks(self) -> Iterator[np.ndarray]:
        for number in range(int(self.duration or 0)):
            if number == self._fail_after:
                raise AudioInvalidError("clip.wav: is truncated")
            self.blocks_read += 1
            yield np.full(RATE, self._value, np.float32)


class FakeEngine:
    """Gives each segment's value and length as its text.

    Segments of a value over 100 loop without a repetition penalty, those of a value over 200 with one too.
    """

    capabilities = Capabilities(context=True, language=True, language_detection=True)
    audio_in_prompt = False
    sample_rate = RATE
    segment_seconds = 4.0
    window_seconds: float | None = None

    def __init__(self, rows: int = 2) -> None:
        self.plan = BatchPlan(rows, 100, 1, 1, 1000)
        self.long_forms = 0
        self.jobs: list[SegmentJob] = []

    def check(self, options: SegmentOptions) -> None: ...

    def transcribe(
        self, samples: np.ndarray, options: SegmentOptions, timings: Timings, speech: float | None = None
    ) -> SegmentResult:
        raise AssertionError

    def shorten_context(self, options: SegmentOptions) -> tuple[SegmentOptions, int]:
        raise AssertionError

    def placement(self) -> dict[str, dict[str, dict[str, int]]]:
        raise AssertionError

    def run_probe(self, probe: Probe) -> list[Any]:
        raise AssertionError

    def live(self) -> Any:
        raise AssertionError

    def long_form(self, samples: np.ndarray, options: SegmentOptions, timings: Timings) -> LongForm:
        self.long_forms += 1
        return FixedWindows(samples, options, timings, 3 * RATE)

    def read(self, tokens: Sequence[int], language: str | None, *, ended: bool) -> tuple[str | None, str]:
        raise AssertionError

    def probes(self, samples: np.ndarray, tokens: list[int], options: SegmentOptions) -> list[Probe]:
        raise AssertionError

    def run(self, next_job: Callable[[], SegmentJob | None]) -> Iterator[tuple[Any, SegmentResult]]:
        """Take as many jobs at a time as there are rows, and yield the result of the last one first."""
        while True:
            batch: deque[SegmentJob] = deque()
            while len(batch) < self.plan.rows and (job := next_job()):
                batch.append(job)
            if not batch:
                return
            self.jobs += batch
            while batch:
                job = batch.pop()
                value, seconds = int(job.samples[0]), len(job.samples) / RATE
                looped = value > 100 and (job.options.repetition_penalty == 1.0 or value > 200)
                yield (
                    job.key,
                    SegmentResult(
                        text=f"{value}:{seconds:g}",
                        language="English" if value % 2 else None,
                        tokens=[value],
                        confidence=0.25 if looped else 0.5,
                        finish_reason="repetition" if looped else "stop",
                        audio_tokens=1,
                        prompt_tokens=2,
                        words=None if value == 301 else [Word(str(value), 0.25, seconds, 0.5)],
                        phrases=[TimedText(0.25, seconds, str(value), [value])] if job.options.timestamps else [],
                    ),
                )


def file(
    index: int, seconds: int, value: float | None = None, fail_after: int | None = None, **options: Any
) -> AudioFile:
    """Return a file whose samples all are ``value``, by default its index."""
    audio_file = AudioFile(index, RATE, Timings(), options=SegmentOptions(**options))
    audio_file.reader = Reader(seconds, index if value is None else value, fail_after)  # type: ignore[assignment]
    return audio_file


def transcribe(engine: FakeEngine, files: Iterator[AudioFile] | list[AudioFile], **options: Any) -> list[AudioFile]:
    checked: Engine = engine  # the type checker compares it with the protocol
    return list(SegmentScheduler(checked, files, vad=False, **options).run())


@pytest.mark.parametrize("ahead", [True, False])
@pytest.mark.parametrize("rows", [1, 3])
def test_every_file_gets_its_own_pieces_in_order(rows: int, ahead: bool) -> None:
    files = transcribe(
        FakeEngine(rows), [file(index, seconds) for index, seconds in enumerate([9, 1, 17, 4])], read_ahead=ahead
    )
    assert sorted(each.index for each in files) == [0, 1, 2, 3]
    for each in files:
        assert each.error is None
        spans = each.spans
        assert spans[0].start == 0
        assert sum(span.length for span in spans) == each.samples
        assert all(a.start + a.length == b.start for a, b in pairwise(spans))
        assert [span.result.text for span in spans] == [f"{each.index}:{span.length / RATE:g}" for span in spans]
        assert each.duration == each.done == [9, 1, 17, 4][each.index]
        assert each.reader is not None
        assert each.reader.closed  # type: ignore[attr-defined]
        assert not any(slot.segment for slot in each.slots)  # samples of finished segments are released


def test_an_invalid_file_fails_alone() -> None:
    invalid = file(1, 0)
    invalid.error = AudioInvalidError("no language")
    files = transcribe(FakeEngine(), [file(0, 6), invalid, file(2, 30, fail_after=20), file(3, 5)])
    by_index = {each.index: each for each in files}
    assert sorted(by_index) == [0, 1, 2, 3]
    assert (by_index[0].error, by_index[3].error) == (None, None)
    assert str(by_index[1].error) == "no language"
    assert str(by_index[2].error) == "clip.wav: is truncated"


def test_a_loop_is_decoded_again_once_in_shorter_pieces_with_a_penalty() -> None:
    engine = FakeEngine()
    (looped,) = transcribe(engine, [file(0, 4, value=101)])
    (span,) = looped.spans
    assert span.decoded_again == "repetition"
    assert span.result.finish_reason == "stop"
    assert [job.options.repetition_penalty for job in engine.jobs] == [1.0, REPETITION_PENALTY, REPETITION_PENALTY]
    first, *parts = engine.jobs
    assert np.array_equal(np.concatenate([job.samples for job in parts]), first.samples)
    assert span.result.text == " ".join(f"101:{len(job.samples) / RATE:g}" for job in parts)
    assert (span.result.tokens, span.result.audio_tokens, span.result.language) == ([101, 101], 2, "English")
    assert span.result.confidence == pytest.approx(0.5)

    engine = FakeEngine()
    (still,) = transcribe(engine, [file(0, 4, value=201)])
    assert (still.spans[0].decoded_again, still.spans[0].result.finish_reason) == ("repetition", "repetition")
    assert len(engine.jobs) == 3  # decoded again only once


def test_word_times_of_parts_count_from_the_segment_start() -> None:
    engine = FakeEngine()
    (looped,) = transcribe(engine, [file(0, 4, value=101)])
    first = len(engine.jobs[1].samples) / RATE
    expected = [Word("101", 0.25, first, 0.5), Word("101", first + 0.25, 4.0, 0.5)]
    assert looped.spans[0].result.words == expected
    (without,) = transcribe(FakeEngine(), [file(0, 4, value=301)])
    assert without.spans[0].result.words is None


def test_segment_times_count_from_the_start_of_the_audio() -> None:
    """Phrases of parts have times from the piece's start, segments have times from the file's start."""
    engine = FakeEngine()
    (looped,) = transcribe(engine, [file(0, 8, value=101, timestamps=True)])
    assert len(looped.spans) > 1
    for number, span in enumerate(looped.spans):
        parts = {job.key[2]: len(job.samples) / RATE for job in engine.jobs if job.key[1] == number}
        ends = np.cumsum([parts[index] for index in range(len(parts) - 1)])  # the key of the whole piece is None
        starts = [0.25, *(ends[:-1] + 0.25)]
        assert [phrase.start for phrase in span.result.phrases] == pytest.approx(starts)
        assert [phrase.end for phrase in span.result.phrases] == pytest.approx(ends)
        segments = segments_of(span, RATE)
        assert [segment.end for segment in segments] == pytest.approx(span.start / RATE + ends)
        assert [segment.decoded_again for segment in segments] == [None] * (len(ends) - 1) + ["repetition"]
    assert max(len(span.result.phrases) for span in looped.spans) > 1
    (still,) = transcribe(FakeEngine(), [file(0, 4, value=201, timestamps=True)])
    assert [segment.finish_reason for segment in segments_of(still.spans[0], RATE)] == ["stop", "repetition"]


def test_a_segment_with_max_new_tokens_is_not_decoded_again() -> None:
    (bounded,) = transcribe(FakeEngine(), [file(0, 4, value=101, max_new_tokens=5)])
    assert (bounded.spans[0].decoded_again, bounded.spans[0].result.finish_reason) == (None, "repetition")


def test_known_spans_are_not_decoded_again() -> None:
    delivered: list[tuple[int, Span]] = []
    (whole,) = transcribe(
        FakeEngine(), [file(0, 17)], on_segment=lambda each, span: delivered.append((each.index, span))
    )
    assert len(delivered) == len(whole.spans) - 1  # the last span completes the file
    assert all(index == 0 and span in whole.spans for index, span in delivered)
    engine, unfinished = FakeEngine(), file(0, 17)
    unfinished.known = {(span.start, span.length): span for span in whole.spans[1:3]} | {(5, 5): whole.spans[0]}
    (resumed,) = transcribe(engine, [unfinished])
    assert resumed.spans == whole.spans
    assert len(engine.jobs) == len(whole.spans) - 2
    complete = file(0, 17)
    complete.known = {(span.start, span.length): span for span in whole.spans}
    (known,) = transcribe(FakeEngine(), [complete])
    assert (known.spans, known.done) == (whole.spans, 17.0)


def test_progress_grows_up_to_the_duration() -> None:
    progress: dict[int, list[float]] = {}
    transcribe(
        FakeEngine(3),
        [file(0, 17), file(1, 3)],
        on_progress=lambda each: progress.setdefault(each.index, []).append(each.done),
    )
    for index, seconds in ((0, 17.0), (1, 3.0)):
        assert progress[index] == sorted(progress[index])
        assert progress[index][-1] == seconds


def test_reading_ahead_is_bounded() -> None:
    """An hour of audio is not read while the first rows are decoded."""
    long = file(0, 3600)
    reader: Any = long.reader
    running = SegmentScheduler(
        FakeEngine(2), [long], vad=False, on_progress=lambda _: counts.append(reader.blocks_read)
    )
    counts: list[int] = []
    assert [each.index for each in running.run()] == [0]
    # Rows, waiting pieces and one piece in each thread, each of 4 s; and some seconds to cut from.
    assert counts[0] <= 4.0 * (2 + 2 * 2 + 2) + 8


def test_closing_early_ends_the_reading_thread() -> None:
    before = threading.active_count()
    results = SegmentScheduler(FakeEngine(), (file(index, 5) for index in range(1000)), vad=False).run()
    next(results)
    results.close()
    assert threading.active_count() == before


def test_an_error_in_the_reading_thread_is_raised_in_the_caller() -> None:
    def files() -> Iterator[AudioFile]:
        yield file(0, 5)
        raise RuntimeError("the caller's own iterator")

    with pytest.raises(RuntimeError, match="the caller's own"):
        transcribe(FakeEngine(), files())


def test_long_form_runs_beside_other_files() -> None:
    """Its windows run one after another, and other files use the free rows."""
    engine, done = FakeEngine(2), list[float]()
    files = [file(1, 10), file(2, 9)]
    files[0].use_long_form = True
    complete = transcribe(engine, files, on_progress=lambda each: done.append(each.done) if each.index == 1 else None)
    by_index = {each.index: each for each in complete}
    assert [span.result.text for span in by_index[1].spans] == ["1:3", "1:3", "1:3", "1:1"]
    assert sum(span.length for span in by_index[2].spans) == 9 * RATE
    assert done == [3.0, 6.0, 9.0, 10.0]
    assert by_index[1].duration == 10.0


def test_long_form_of_an_empty_audio_is_empty() -> None:
    empty = file(0, 0)
    empty.use_long_form = True
    (complete,) = transcribe(FakeEngine(), [empty])
    assert (complete.spans, complete.duration, complete.error) == ([], 0.0, None)


def test_truncated_audio_fails_in_long_form() -> None:
    truncated = file(0, 9, fail_after=4)
    truncated.use_long_form = True
    (complete,) = transcribe(FakeEngine(), [truncated])
    assert isinstance(complete.error, AudioInvalidError)


def test_two_long_forms_are_held_at_a_time() -> None:
    """Each holds all of its audio, so more than two are not read, however many rows there are."""
    engine = FakeEngine(6)
    files = [file(index, 9) for index in range(5)]
    for each in files:
        each.use_long_form = True
    complete: list[AudioFile] = []
    held: list[int] = []
    scheduler = SegmentScheduler(
        engine, files, vad=False, on_progress=lambda _: held.append(engine.long_forms - len(complete))
    )
    for each in scheduler.run():
        complete.append(each)  # noqa: PERF402  (the callback above looks at it)
    assert len(complete) == 5
    assert max(held) == 2
