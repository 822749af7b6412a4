"""Many files through one engine, with engines that are not models."""

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

RATE = 100


class Reader:
    """An audio of so many seconds in blocks of one second; breaks after ``breaks`` of them."""

    def __init__(self, seconds: int, value: float, breaks: int | None = None) -> None:
        self.duration: float | None = float(seconds)
        self._value, self._breaks = value, breaks
        self.closed = False
        self.read = 0

    def __enter__(self) -> Reader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.closed = True

    def blocks(self) -> Iterator[np.ndarray]:
        for number in range(int(self.duration or 0)):
            if number == self._breaks:
                raise AudioInvalidError("clip.wav: is truncated")
            self.read += 1
            yield np.full(RATE, self._value, np.float32)


class Windows:
    """A long form in windows of 3 s, whose text is that of :class:`Echo`."""

    def __init__(self, samples: np.ndarray, options: SegmentOptions, timings: Timings) -> None:
        self._samples, self._options, self._timings = samples, options, timings
        self._seek, self._waiting = 0, False
        self.spans: list[Span] = []

    @property
    def done(self) -> int:
        return min(self._seek, len(self._samples))

    @property
    def complete(self) -> bool:
        return self._seek >= len(self._samples)

    def next_job(self) -> SegmentJob | None:
        if self._waiting or self.complete:
            return None
        self._waiting = True
        return SegmentJob(self, self._samples[self._seek : self._seek + 3 * RATE], self._options, self._timings, 0.0)

    def take(self, result: SegmentResult) -> None:
        self._waiting = False
        self.spans.append(Span(self._seek, 3 * RATE, result, None))
        self._seek += 3 * RATE


class Echo:
    """Says of each segment its value and length; segments of a value over 100 loop unless they are guarded."""

    capabilities = Capabilities(context=True, language=True, language_detection=True)
    audio_in_prompt = False
    sample_rate = RATE
    segment_seconds = 4.0

    def __init__(self, rows: int = 2) -> None:
        self.plan = BatchPlan(rows, 100, 1, 1, 1000)
        self.jobs: list[SegmentJob] = []

    def check(self, options: SegmentOptions) -> None: ...

    def transcribe(self, samples: np.ndarray, options: SegmentOptions, timings: Timings) -> SegmentResult:
        raise AssertionError

    def placement(self) -> dict[str, dict[str, dict[str, int]]]:
        raise AssertionError

    def run_probe(self, probe: Probe) -> list[Any]:
        raise AssertionError

    def live(self) -> Any:
        raise AssertionError

    def long_form(self, samples: np.ndarray, options: SegmentOptions, timings: Timings) -> LongForm:
        return Windows(samples, options, timings)

    def read(self, tokens: Sequence[int], language: str | None, *, ended: bool) -> tuple[str | None, str]:
        raise AssertionError

    def probes(self, samples: np.ndarray, tokens: list[int], options: SegmentOptions) -> list[Probe]:
        raise AssertionError

    def run(self, next_job: Callable[[], SegmentJob | None]) -> Iterator[tuple[Any, SegmentResult]]:
        """As many at a time as there are rows, the last one first."""
        while True:
            taken: deque[SegmentJob] = deque()
            while len(taken) < self.plan.rows and (job := next_job()):
                taken.append(job)
            if not taken:
                return
            self.jobs += taken
            while taken:
                job = taken.pop()
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


def file(index: int, seconds: int, value: float | None = None, breaks: int | None = None, **options: Any) -> AudioFile:
    made = AudioFile(index, RATE, Timings(), options=SegmentOptions(**options))
    made.reader = Reader(seconds, index if value is None else value, breaks)  # type: ignore[assignment]
    return made


def work(engine: Echo, files: Iterator[AudioFile] | list[AudioFile], **options: Any) -> list[AudioFile]:
    checked: Engine = engine
    return list(SegmentScheduler(checked, files, vad=False, **options).run())


@pytest.mark.parametrize("ahead", [True, False])
@pytest.mark.parametrize("rows", [1, 3])
def test_every_file_gets_its_own_pieces_in_order(rows: int, ahead: bool) -> None:
    files = work(Echo(rows), [file(index, seconds) for index, seconds in enumerate([9, 1, 17, 4])], read_ahead=ahead)
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
        assert not any(slot.piece for slot in each.slots)  # samples of what is done are let go


def test_a_bad_file_stops_no_other_and_what_was_heard_of_it_is_dropped() -> None:
    wrong = file(1, 0)
    wrong.error = AudioInvalidError("no language")
    files = work(Echo(), [file(0, 6), wrong, file(2, 30, breaks=20), file(3, 5)])
    found = {each.index: each for each in files}
    assert sorted(found) == [0, 1, 2, 3]
    assert (found[0].error, found[3].error) == (None, None)
    assert str(found[1].error) == "no language"
    assert str(found[2].error) == "clip.wav: is truncated"


def test_a_loop_is_decoded_again_once_in_shorter_pieces_with_a_penalty() -> None:
    engine = Echo()
    (looped,) = work(engine, [file(0, 4, value=101)])
    (span,) = looped.spans
    assert span.decoded_again == "repetition"
    assert span.result.finish_reason == "stop"
    assert [job.options.repetition_penalty for job in engine.jobs] == [1.0, REPETITION_PENALTY, REPETITION_PENALTY]
    first, *again = engine.jobs
    assert np.array_equal(np.concatenate([job.samples for job in again]), first.samples)
    assert span.result.text == " ".join(f"101:{len(job.samples) / RATE:g}" for job in again)
    assert (span.result.tokens, span.result.audio_tokens, span.result.language) == ([101, 101], 2, "English")
    assert span.result.confidence == pytest.approx(0.5)

    engine = Echo()
    (still,) = work(engine, [file(0, 4, value=201)])
    assert (still.spans[0].decoded_again, still.spans[0].result.finish_reason) == ("repetition", "repetition")
    assert len(engine.jobs) == 3  # once, and not for ever


def test_words_of_parts_have_the_times_of_the_whole() -> None:
    engine = Echo()
    (found,) = work(engine, [file(0, 4, value=101)])
    first = len(engine.jobs[1].samples) / RATE
    expected = [Word("101", 0.25, first, 0.5), Word("101", first + 0.25, 4.0, 0.5)]
    assert found.spans[0].result.words == expected
    (without,) = work(Echo(), [file(0, 4, value=301)])
    assert without.spans[0].result.words is None


def test_times_count_from_the_beginning_of_the_audio() -> None:
    """Those of parts from the piece's beginning, those of segments from the file's."""
    engine = Echo()
    (looped,) = work(engine, [file(0, 8, value=101, timestamps=True)])
    assert len(looped.spans) > 1
    for number, span in enumerate(looped.spans):
        parts = {job.key[2]: len(job.samples) / RATE for job in engine.jobs if job.key[1] == number}
        ends = np.cumsum([parts[index] for index in range(len(parts) - 1)])  # the whole piece has the key None
        starts = [0.25, *(ends[:-1] + 0.25)]
        assert [phrase.start for phrase in span.result.phrases] == pytest.approx(starts)
        assert [phrase.end for phrase in span.result.phrases] == pytest.approx(ends)
        segments = segments_of(span, RATE)
        assert [segment.end for segment in segments] == pytest.approx(span.start / RATE + ends)
        assert [segment.decoded_again for segment in segments] == [None] * (len(ends) - 1) + ["repetition"]
    assert max(len(span.result.phrases) for span in looped.spans) > 1
    (still,) = work(Echo(), [file(0, 4, value=201, timestamps=True)])
    assert [segment.finish_reason for segment in segments_of(still.spans[0], RATE)] == ["stop", "repetition"]


def test_a_bound_that_was_asked_for_is_no_reason_to_decode_again() -> None:
    (bounded,) = work(Echo(), [file(0, 4, value=101, max_new_tokens=5)])
    assert (bounded.spans[0].decoded_again, bounded.spans[0].result.finish_reason) == (None, "repetition")


def test_what_was_heard_before_is_not_decoded_again() -> None:
    saved: list[tuple[int, Span]] = []
    (whole,) = work(Echo(), [file(0, 17)], on_segment=lambda each, span: saved.append((each.index, span)))
    assert len(saved) == len(whole.spans) - 1  # the last one ends the file
    assert all(index == 0 and span in whole.spans for index, span in saved)
    engine, again = Echo(), file(0, 17)
    again.known = {(span.start, span.length): span for span in whole.spans[1:3]} | {(5, 5): whole.spans[0]}
    (resumed,) = work(engine, [again])
    assert resumed.spans == whole.spans
    assert len(engine.jobs) == len(whole.spans) - 2
    everything = file(0, 17)
    everything.known = {(span.start, span.length): span for span in whole.spans}
    (known,) = work(Echo(), [everything])
    assert (known.spans, known.done) == (whole.spans, 17.0)


def test_progress_grows_to_the_duration() -> None:
    received: dict[int, list[float]] = {}
    work(
        Echo(3),
        [file(0, 17), file(1, 3)],
        on_progress=lambda each: received.setdefault(each.index, []).append(each.done),
    )
    for index, seconds in ((0, 17.0), (1, 3.0)):
        assert received[index] == sorted(received[index])
        assert received[index][-1] == seconds


def test_reading_stays_a_little_ahead() -> None:
    """An hour is not read while the first rows are decoded."""
    long = file(0, 3600)
    running = SegmentScheduler(Echo(2), [long], vad=False, on_progress=lambda each: counts.append(each.reader.read))  # type: ignore[union-attr]
    counts: list[int] = []
    assert [each.index for each in running.run()] == [0]
    assert counts[0] <= 4.0 * (2 + 2 * 2 + 2) + 8  # rows, what waits, one in each hand; and a block or two to cut from


def test_leaving_early_ends_the_thread() -> None:
    before = threading.active_count()
    going = SegmentScheduler(Echo(), (file(index, 5) for index in range(1000)), vad=False).run()
    next(going)
    going.close()
    assert threading.active_count() == before


def test_what_the_reading_thread_raises_is_raised_here() -> None:
    def files() -> Iterator[AudioFile]:
        yield file(0, 5)
        raise RuntimeError("the caller's own iterator")

    with pytest.raises(RuntimeError, match="the caller's own"):
        work(Echo(), files())


def test_long_form_runs_beside_other_files() -> None:
    """Its windows follow one another, and the rows between them serve the other files."""
    engine, done = Echo(2), list[float]()
    files = [file(1, 10), file(2, 9)]
    files[0].use_long_form = True
    complete = work(engine, files, on_progress=lambda each: done.append(each.done) if each.index == 1 else None)
    by_index = {each.index: each for each in complete}
    assert [span.result.text for span in by_index[1].spans] == ["1:3", "1:3", "1:3", "1:1"]
    assert sum(span.length for span in by_index[2].spans) == 9 * RATE
    assert done == [3.0, 6.0, 9.0, 10.0]
    assert by_index[1].duration == 10.0


def test_long_form_of_an_empty_audio_is_empty() -> None:
    empty = file(0, 0)
    empty.use_long_form = True
    (complete,) = work(Echo(), [empty])
    assert (complete.spans, complete.duration, complete.error) == ([], 0.0, None)


def test_a_truncated_audio_fails_in_long_form_too() -> None:
    broken = file(0, 9, breaks=4)
    broken.use_long_form = True
    (complete,) = work(Echo(), [broken])
    assert isinstance(complete.error, AudioInvalidError)
