"""Who gets the engine's rows: fairness, bounds, and what happens to the others when somebody leaves or fails."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from runtime.engines.base import LiveSegment, SegmentJob, SegmentOptions, SegmentResult
from runtime.errors import AudioInvalidError, OptionError
from runtime.pipeline.events import Event
from runtime.results import Segment, Timings, Transcript
from runtime.server.errors import AudioTooLong, Closing, EngineFailure, GivenUp
from runtime.server.metrics import Metrics
from runtime.server.scheduling.fairness import LIVE_AHEAD_SECONDS, LIVE_WEIGHT, OLDEST_EVERY, Fairness
from runtime.server.scheduling.file_ticket import FileTicket
from runtime.server.scheduling.scheduler import GROUP_SECONDS, Scheduler
from runtime.server.scheduling.stream_ticket import Latency, StreamTicket
from runtime.server.scheduling.throughput import Throughput
from runtime.transcriber import Request
from tests.helpers.stepped_engine import RATE, WAIT, FakeTranscriber, Session, SteppedEngine, wav


@dataclass
class Waiter:
    """Who waits for a file's results, in any thread."""

    received: list[Segment | Transcript | BaseException] = field(default_factory=list)
    done: threading.Event = field(default_factory=threading.Event)

    def __call__(self, item: Segment | Transcript | BaseException) -> None:
        self.received.append(item)
        if not isinstance(item, Segment):
            self.done.set()

    def outcome(self) -> Segment | Transcript | BaseException:
        assert self.done.wait(WAIT), "nobody told how it ended"
        return self.received[-1]

    def transcript(self) -> Transcript:
        outcome = self.outcome()
        assert isinstance(outcome, Transcript), outcome
        return outcome


class Bench:
    """A scheduler with a stepped engine."""

    def __init__(self, rows: int = 2, *, free: bool = False, longest: float = 10_000) -> None:
        self.engine = SteppedEngine(rows, free=free)
        self.metrics = Metrics()
        self.transcriber = FakeTranscriber(self.engine)
        self.scheduler = Scheduler("m", self.transcriber, self.metrics, longest=longest)

    def submit(self, value: int, seconds: float, source: io.BytesIO | None = None) -> tuple[FileTicket, Waiter]:
        waiter = Waiter()
        request = self.transcriber.validate(Request(source or wav(value, seconds), name="a.wav"))
        return self.scheduler.submit(request, waiter), waiter

    def attach(self, session: Session) -> tuple[StreamTicket, list[object]]:
        received: list[object] = []
        ticket = self.scheduler.attach(
            lambda changed, ended: StreamTicket(
                session, RATE, changed, deliver=received.append, progressed=lambda: None, ended=ended,
                latency=Latency(self.metrics, "m"),
            )
        )  # fmt: skip
        return ticket, received

    def sample(self, name: str) -> float | None:
        registry: CollectorRegistry = self.metrics.registry
        return registry.get_sample_value(name, {"model": "m"})

    def until(self, true: Callable[[], bool]) -> None:
        """Wait for something that the scheduler does."""
        with self.scheduler._changed:
            assert self.scheduler._changed.wait_for(true, WAIT)

    def begun(self, value: int) -> int:
        return sum(each == value for each, _ in self.engine.begun)


@pytest.fixture
def bench() -> Iterator[Bench]:
    yield from benches(Bench())


def benches(made: Bench) -> Iterator[Bench]:
    before = set(threading.enumerate())
    made.scheduler.start()
    try:
        yield made
    finally:
        made.engine.let(10**9)
        made.scheduler.stop(Closing("the test is over"))
        assert set(threading.enumerate()) <= before  # no thread stays behind
        assert made.sample("asr_rows_in_use") == 0
        assert made.sample("asr_queue_requests") == 0


@dataclass(eq=False)
class Queued:
    arrival: int
    attained: float = 0.0


def test_the_least_served_is_next_and_the_oldest_now_and_then() -> None:
    fairness = Fairness()
    files = [Queued(0, 100.0), Queued(1, 5.0), Queued(2, 5.0)]
    chosen = []
    for _ in range(2 * OLDEST_EVERY):
        chosen.append(fairness.next_file(files))
        fairness.gave_file(1.0)
    assert [each.arrival for each in chosen if each] == ([1] * (OLDEST_EVERY - 1) + [0]) * 2
    assert fairness.next_file([]) is None


@given(st.lists(st.tuples(st.floats(0.1, 20.0), st.floats(0.1, 20.0)), min_size=10, max_size=200))
def test_streams_that_never_stop_leave_files_their_share(turns: list[tuple[float, float]]) -> None:
    """Whoever has a job of so many seconds each turn: what live streams got is bounded by what files got."""
    fairness, live, files = Fairness(), 0.0, 0.0
    for of_live, of_file in turns:
        if fairness.files_first:
            fairness.gave_file(of_file)
            files += of_file
        else:
            fairness.gave_live(of_live, file_waits=True)
            live += of_live
        assert live <= LIVE_AHEAD_SECONDS + 20.0 + LIVE_WEIGHT * files + 1e-6
    fairness.gave_live(20.0, file_waits=False)  # who does not wait is owed nothing
    assert not fairness.files_first


def test_a_short_file_passes_a_long_one(bench: Bench) -> None:
    long, heard = bench.submit(1, 400)
    bench.engine.wait_rows(1)
    bench.until(lambda: len(long.ready) > 0)
    bench.engine.step()
    bench.engine.wait_rows(2)  # a piece each step, for it takes a whole group
    short, answer = bench.submit(2, 5)
    bench.until(lambda: short.read)
    bench.engine.step(19)  # until a row is free
    bench.engine.wait(lambda: len(bench.engine.begun) >= 3)
    assert [value for value, _ in bench.engine.begun[:3]] == [1, 1, 2]
    bench.engine.step(5)
    assert answer.transcript().text == "2:5"
    assert not heard.done.is_set()
    assert long.attained > short.attained == 5.0


def test_a_long_file_goes_on_beside_short_ones_that_never_stop() -> None:
    for bench in benches(Bench(rows=1, free=True)):
        _, heard = bench.submit(1, 120)
        shorts = [bench.submit(2, 5)[1] for _ in range(4)]
        while not heard.done.is_set():  # there are always four
            for waiter in shorts:
                waiter.transcript()
            shorts = [bench.submit(2, 5)[1] for _ in range(4)]
            assert len(bench.engine.begun) < 1000
        assert heard.transcript().duration == 120.0


def test_groups_are_short_and_rows_step_between_them() -> None:
    for bench in benches(Bench(rows=8)):
        submitted = [bench.submit(value, value) for value in range(1, 20)]
        for ticket, _ in submitted:
            bench.until(lambda ticket=ticket: ticket.read)  # type: ignore[misc]
        bench.engine.let(10**9)
        for value, (_, waiter) in enumerate(submitted, 1):
            assert waiter.transcript().text == f"{value}:{value}"
        between: dict[int, float] = {}
        for steps, seconds in bench.engine.groups:
            between[steps] = between.get(steps, 0.0) + seconds
        assert max(between.values()) <= GROUP_SECONDS
        assert len(between) < len(bench.engine.begun)


def test_segments_are_told_in_order_whatever_ends_first() -> None:
    """Those that loop are decoded again; what comes after them waits."""
    for bench in benches(Bench(rows=4, free=True)):
        waiters = [bench.submit(value, 110)[1] for value in (3, 501, 4)]
        for waiter, value in zip(waiters, (3, 501, 4), strict=True):
            transcript = waiter.transcript()
            segments = waiter.received[:-1]
            assert segments == transcript.segments
            assert [each.start for each in transcript.segments] == sorted(each.start for each in transcript.segments)
            assert transcript.segments[0].start == 0
            assert transcript.segments[-1].end == transcript.duration == 110
            again = {each.decoded_again for each in transcript.segments}
            assert again == ({"repetition"} if value > 500 else {None})
        assert bench.sample("asr_batch_size_count") == len(bench.engine.begun)


def test_reading_stays_a_little_ahead_however_long_a_file(bench: Bench) -> None:
    long, heard = bench.submit(1, 2000)
    for _ in range(20):
        full = 2 * bench.engine.plan.rows
        bench.until(lambda full=full: len(long.ready) >= full)  # type: ignore[misc]
        assert len(long.ready) <= full
        bench.engine.step(10)
    bench.engine.let(10**9)
    assert heard.transcript().duration == 2000


def test_what_many_short_files_have_in_waiting_is_bounded_too(bench: Bench) -> None:
    submitted = [bench.submit(value, 5) for value in range(1, 31)]
    tickets = [ticket for ticket, _ in submitted]
    limit = 4 * bench.engine.plan.rows
    for _ in range(3):
        bench.until(
            lambda: sum(len(each.ready) for each in tickets) >= limit and not any(each.reading for each in tickets)
        )
        assert sum(len(each.ready) for each in tickets) == limit
        bench.engine.step()
    bench.engine.let(10**9)
    for value, (_, waiter) in enumerate(submitted, 1):
        assert waiter.transcript().text == f"{value}:5"


def test_who_leaves_frees_the_row_for_the_next(bench: Bench) -> None:
    first, gone = bench.submit(1, 19)
    second, other = bench.submit(2, 19)
    bench.engine.wait_rows(1)
    bench.until(lambda: first.read and second.read)
    bench.engine.step()
    bench.engine.wait_rows(2)
    _, waits = bench.submit(3, 1)
    assert bench.begun(3) == 0
    first.fail(GivenUp())
    bench.engine.wait(lambda: bench.begun(3) == 1)  # without a step
    assert isinstance(gone.outcome(), GivenUp)
    assert bench.scheduler.files == 2
    bench.engine.let(100)
    assert waits.transcript().text == "3:1"
    assert other.transcript().text == "2:19"
    first.fail(GivenUp())  # twice is once
    assert len(gone.received) == 1


def test_the_source_is_let_go_when_nobody_reads_it() -> None:
    """Reading is held in the middle: giving up ends it at its next block, and not before the source is let go."""
    reading, go = threading.Event(), threading.Event()

    class Held(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            reading.set()
            assert go.wait(WAIT)
            return super().read(size)

    for bench in benches(Bench()):
        ticket, waiter = bench.submit(1, 1, Held(wav(1, 100).getvalue()))
        assert reading.wait(WAIT)
        ticket.fail(GivenUp())
        released = threading.Event()
        ticket.when_released(released.set)
        assert isinstance(waiter.outcome(), GivenUp)
        assert not released.is_set()
        go.set()
        assert released.wait(WAIT)
        again = threading.Event()
        ticket.when_released(again.set)
        assert again.is_set()
        assert bench.engine.begun == []


def test_hours_of_silence_are_read_in_steps() -> None:
    """So that they keep no thread from reading what others sent."""
    engine = SteppedEngine()
    engine.sample_rate = 16_000
    transcriber = FakeTranscriber(engine, vad=True)
    waiter, ended, changed = Waiter(), threading.Event(), threading.Condition()
    request = transcriber.validate(Request(wav(0, 300)))
    ticket = FileTicket(0, transcriber, request, changed, longest=1000, deliver=waiter, ended=lambda _: ended.set())
    steps = []
    while not ticket.over:
        ticket.reading = True
        ticket.read_on()
        steps.append(ticket.scanned)
    assert steps == sorted(steps)
    assert all(later - earlier <= 11 for earlier, later in pairwise(steps))
    assert ended.is_set()
    assert waiter.transcript().segments == []
    assert waiter.transcript().duration == 300


def test_what_is_wrong_with_a_file_is_its_own_business() -> None:
    for bench in benches(Bench(free=True, longest=30)):
        closed = wav(1, 5)
        closed.close()
        header = wav(1, 31)
        unknown = bytearray(wav(1, 31).getvalue())
        unknown[4:8] = unknown[-31 * 4000 - 4 : -31 * 4000] = b"\xff" * 4  # a pipe's header: the length is unknown
        found = {
            name: bench.submit(1, 5, source)[1]
            for name, source in {
                "closed": closed,
                "text": io.BytesIO(b"this is no audio"),
                "header": header,
                "unknown": io.BytesIO(bytes(unknown)),
                "good": wav(7, 5),
            }.items()
        }
        assert isinstance(found["closed"].outcome(), EngineFailure)
        wrong = found["text"].outcome()
        assert isinstance(wrong, AudioInvalidError)
        assert str(wrong).startswith("a.wav: is not audio")
        for name in ("header", "unknown"):
            long = found[name].outcome()
            assert isinstance(long, AudioTooLong), name
            assert "longer than the 30 s" in str(long)
        assert found["good"].transcript().text == "7:5"
        with pytest.raises(OptionError, match="Klingon"):
            bench.transcriber.validate(Request(wav(1, 1), language="Klingon"))


@pytest.mark.parametrize("error", [RuntimeError("secret"), MemoryError()])
def test_an_engine_that_fails_takes_with_it_what_was_in_flight_and_no_more(
    error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    for bench in benches(Bench(rows=2)):
        bench.engine.breaks[13] = error
        _, beside = bench.submit(1, 19)
        bench.engine.wait_rows(1)
        ticket, bad = bench.submit(13, 19)
        bench.until(lambda ticket=ticket: ticket.read)  # type: ignore[misc]
        _, waits = bench.submit(2, 19)
        _, other = bench.submit(3, 19)
        bench.engine.let(1)
        for waiter in (beside, bad):
            failure = waiter.outcome()
            assert isinstance(failure, EngineFailure)
            assert "secret" not in str(failure)
        bench.engine.let(1000)
        assert waits.transcript().text == "2:19"
        assert other.transcript().text == "3:19"
        assert "the engine of m failed with 2 segments in flight" in caplog.text


def test_an_engine_that_cannot_even_begin_fails_everybody_and_not_for_ever() -> None:
    for bench in benches(Bench(free=True)):
        bench.engine.breaks_at_once = RuntimeError("no memory for rows")
        waiters = [bench.submit(1, 5)[1] for _ in range(3)]
        assert all(isinstance(waiter.outcome(), EngineFailure) for waiter in waiters)
        bench.engine.breaks_at_once = None
        assert bench.submit(2, 5)[1].transcript().text == "2:5"


def test_a_client_who_cannot_be_told_stops_nobody(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    def broken(item: object) -> None:
        raise ValueError("nobody there")

    unheard = bench.scheduler.submit(bench.transcriber.validate(Request(wav(1, 5))), broken)
    bench.engine.let(10**9)
    bench.until(lambda: unheard.over)
    assert bench.submit(2, 5)[1].transcript().text == "2:5"
    assert "nobody there" in caplog.text


def test_stopping_ends_what_is_left_and_nothing_comes_after() -> None:
    for bench in benches(Bench()):
        session = Session()
        stream, received = bench.attach(session)
        waiters = [bench.submit(1, 100)[1], bench.submit(2, 100)[1]]
        bench.engine.wait_rows(1)
        assert not bench.scheduler.wait_idle(0)
        bench.scheduler.stop(Closing("bye"))
        for outcome in (*(waiter.outcome() for waiter in waiters), received[-1]):
            assert isinstance(outcome, Closing)
            assert str(outcome) == "bye"
        assert stream.over
        assert bench.scheduler.wait_idle(0)
        assert not bench.scheduler.running
        with pytest.raises(Closing):
            bench.submit(1, 1)


def test_a_live_stream_goes_before_files_but_not_for_ever() -> None:
    for bench in benches(Bench(rows=1)):
        streams = [bench.attach(Session()) for _ in range(2)]
        file, heard = bench.submit(1, 200)
        bench.engine.wait_rows(1)
        audio = np_value(9, 10)
        for _ in range(30):  # speakers who do not stop, of whom each always has a job
            for ticket, _ in streams:
                ticket.feed(audio)
                ticket.commit()
        files = bench.begun(1)
        while not file.over:
            bench.until(lambda file=file: file.ready or file.read)  # type: ignore[misc]
            bench.engine.step()
        assert isinstance(heard.outcome(), Transcript)
        bench.engine.let(10**9)
        live = seconds = 0.0
        for value, length in bench.engine.begun[files:]:
            if value == 9:
                live += length
            else:
                seconds += length
            assert seconds > 180 or live <= LIVE_AHEAD_SECONDS + 10 + LIVE_WEIGHT * (seconds + 20)
        order = [value for value, _ in bench.engine.begun[files:]]
        assert order[: int(LIVE_AHEAD_SECONDS / 10)] == [9] * int(LIVE_AHEAD_SECONDS / 10)
        assert bench.scheduler.streams == 2
        for ticket, received in streams:
            ticket.finish()
            bench.until(lambda ticket=ticket: ticket.over)  # type: ignore[misc]
            assert received[-1] is None


def test_what_a_speaker_said_gets_the_next_row(bench: Bench) -> None:
    """Though more files wait than there are rows, and the engine would take them ahead."""
    ticket, received = bench.attach(Session())
    bench.submit(1, 3)
    bench.engine.wait_rows(1)
    for value, seconds in ((2, 15), (3, 10), (4, 10)):
        file, _ = bench.submit(value, seconds)
        bench.until(lambda file=file: file.read)  # type: ignore[misc]
    bench.engine.step()
    bench.engine.wait_rows(2)
    bench.engine.step(2)
    bench.engine.wait(lambda: bench.begun(3) == 1)
    ticket.feed(np_value(9, 2))
    ticket.finish()
    bench.engine.step(10)
    bench.engine.wait(lambda: len(bench.engine.begun) == 4)
    assert [value for value, _ in bench.engine.begun] == [1, 2, 3, 9]
    assert bench.sample("asr_rows_in_use") == 2
    bench.engine.let(10**9)
    bench.until(lambda: ticket.over)
    assert isinstance(received[-2], list)


def np_value(value: int, seconds: float) -> Any:
    return np.full(round(seconds * RATE), value / 1000, np.float32)


def test_a_session_that_fails_ends_alone(bench: Bench) -> None:
    class Broken(Session):
        def next_job(self) -> SegmentJob | None:
            raise ZeroDivisionError

    class BrokenLater(Session):
        def take(self, key: Any, result: SegmentResult) -> list[Event]:
            raise ZeroDivisionError

    good, received = bench.attach(Session())
    for session in (Broken(), BrokenLater()):
        ticket, ended = bench.attach(session)
        ticket.feed(np_value(1, 1))
        bench.engine.let(10)
        bench.until(lambda ticket=ticket: ticket.over)  # type: ignore[misc]
        assert isinstance(ended[-1], EngineFailure)
    deaf = Session()
    deaf.fails = ZeroDivisionError()
    ticket, ended = bench.attach(deaf)
    with pytest.raises(EngineFailure):
        ticket.feed(np_value(1, 1))
    assert isinstance(ended[-1], EngineFailure)
    ticket.feed(np_value(1, 1))  # nothing: it is over
    good.feed(np_value(2, 1))
    good.finish()
    bench.until(lambda: good.over)
    assert received[-1] is None


def test_when_to_try_again() -> None:
    now = 0.0
    throughput = Throughput(lambda: now)
    assert throughput.retry_after(100) == 5
    for _ in range(10):
        throughput.ended()
        now += 2.0
    assert throughput.retry_after(1) == 2  # one ends every two seconds
    assert throughput.retry_after(80) == 20  # an eighth of them is ten
    assert throughput.retry_after(10**6) == 120
    now = 18.001
    fast = Throughput(lambda: now)
    for _ in range(100):
        fast.ended()
    assert fast.retry_after(256) == 1


class GrowingSession:
    """A live session with one growing segment, of an engine whose state has ``settled`` samples."""

    complete, duration, behind = False, 0.0, 0.0

    def __init__(self, seconds: float, settled: Callable[[int], int]) -> None:
        self._seconds, self._settled = seconds, settled

    def grow(self, seconds: float) -> None:
        self._seconds += seconds

    def next_job(self) -> SegmentJob:
        samples = np.zeros(round(self._seconds * RATE), np.float32)
        state = SimpleNamespace(settled=self._settled(len(samples) - RATE))  # by the previous job, a second before
        live = LiveSegment(state, final=False)
        return SegmentJob("key", samples, SegmentOptions(), Timings(), 0.0, live=live)


def settled_windows(samples: int) -> int:
    """Engine that keeps finished windows of 8 s."""
    return samples // (8 * RATE) * 8 * RATE


def settled_nothing(samples: int) -> int:
    """Engine that encodes the whole segment each time."""
    del samples
    return 0


def charged(session: GrowingSession) -> float:
    ticket = StreamTicket(
        session,  # type: ignore[arg-type]  # the part that next_job needs
        RATE,
        threading.Condition(),
        deliver=lambda _: None,
        progressed=lambda: None,
        ended=lambda _: None,
        latency=Latency(Metrics(), "m"),
    )
    given = ticket.next_job()
    assert given
    return given[1]


def test_a_growing_segment_is_charged_what_the_engine_computes_again() -> None:
    """An engine with windows computes the last window only, one without computes the whole segment."""
    for seconds, windowed in ((5.0, 5.0), (8.0, 8.0), (9.0, 1.0), (19.0, 3.0), (29.0, 5.0)):
        assert charged(GrowingSession(seconds, settled_windows)) == pytest.approx(windowed)
        assert charged(GrowingSession(seconds, settled_nothing)) == pytest.approx(seconds)


@pytest.mark.parametrize(("settled", "turns"), [(settled_windows, 13), (settled_nothing, 5)])
def test_files_get_their_turn_after_the_same_work_of_either_engine(settled: Callable[[int], int], turns: int) -> None:
    """Streams of an engine that encodes everything again use up their lead in fewer jobs."""
    fairness, session, jobs = Fairness(), GrowingSession(12.0, settled), 0
    while not fairness.files_first:
        fairness.gave_live(charged(session), file_waits=True)
        session.grow(1.0)
        jobs += 1
    assert jobs == turns
