"""The server's scheduler: order of jobs, bounds on reading ahead, cancellation and failures of single clients."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from runtime.engines.base import SegmentJob, SegmentOptions, SegmentResult
from runtime.errors import AudioInvalidError, OptionError
from runtime.pipeline.events import Event
from runtime.results import Segment, Transcript
from runtime.server.errors import AudioTooLong, Closing, EngineFailure, GivenUp
from runtime.server.metrics import Metrics
from runtime.server.scheduling.fairness import LIVE_AHEAD_SECONDS, LIVE_WEIGHT
from runtime.server.scheduling.file_ticket import FileTicket
from runtime.server.scheduling.scheduler import GROUP_SECONDS, Scheduler
from runtime.server.scheduling.stream_ticket import Latency, StreamTicket
from runtime.transcriber import Request, ValidatedRequest
from tests.helpers.stepped_engine import RATE, WAIT, FakeSession, FakeTranscriber, SteppedEngine, wav


@dataclass
class Waiter:
    """Collects the results of a file, in any thread."""

    items: list[Segment | Transcript | BaseException] = field(default_factory=list)
    done: threading.Event = field(default_factory=threading.Event)

    def __call__(self, item: Segment | Transcript | BaseException) -> None:
        self.items.append(item)
        if not isinstance(item, Segment):
            self.done.set()

    def outcome(self) -> Segment | Transcript | BaseException:
        assert self.done.wait(WAIT), "no outcome was delivered"
        return self.items[-1]

    def transcript(self) -> Transcript:
        outcome = self.outcome()
        assert isinstance(outcome, Transcript), outcome
        return outcome


class Harness:
    """A scheduler with a stepped engine."""

    def __init__(self, rows: int = 2, *, automatic: bool = False, longest: float = 10_000) -> None:
        self.engine = SteppedEngine(rows, automatic=automatic)
        self.metrics = Metrics()
        self.transcriber = FakeTranscriber(self.engine)
        self.scheduler = Scheduler("m", self.transcriber, self.metrics, longest=longest)

    def submit(self, value: int, seconds: float, source: io.BytesIO | None = None) -> tuple[FileTicket, Waiter]:
        waiter = Waiter()
        request = self.transcriber.validate(Request(source or wav(value, seconds), name="a.wav"))
        return self.scheduler.submit(request, waiter), waiter

    def attach(self, session: FakeSession) -> tuple[StreamTicket, list[object]]:
        deliveries: list[object] = []
        ticket = self.scheduler.attach(
            lambda changed, ended: StreamTicket(
                session, RATE, changed, deliver=deliveries.append, progressed=lambda: None, ended=ended,
                latency=Latency(self.metrics, "m"),
            )
        )  # fmt: skip
        return ticket, deliveries

    def sample(self, name: str) -> float | None:
        registry: CollectorRegistry = self.metrics.registry
        return registry.get_sample_value(name, {"model": "m"})

    def until(self, predicate: Callable[[], bool]) -> None:
        """Wait until ``predicate`` is true; it is checked after each action of the scheduler."""
        with self.scheduler._changed:
            assert self.scheduler._changed.wait_for(predicate, WAIT)

    def started(self, value: int) -> int:
        """Return how many segments with ``value`` the engine started."""
        return sum(each == value for each, _ in self.engine.started)


@pytest.fixture
def harness() -> Iterator[Harness]:
    yield from running(Harness())


def running(harness: Harness) -> Iterator[Harness]:
    """Start the scheduler, yield once, stop it, and check that no thread and no request is left."""
    before = set(threading.enumerate())
    harness.scheduler.start()
    try:
        yield harness
    finally:
        harness.engine.allow(10**9)
        harness.scheduler.stop(Closing("the test is over"))
        assert set(threading.enumerate()) <= before  # all threads have ended
        assert harness.sample("asr_rows_in_use") == 0
        assert harness.sample("asr_queue_requests") == 0


def test_a_short_file_passes_a_long_one(harness: Harness) -> None:
    long, long_waiter = harness.submit(1, 400)
    harness.engine.wait_rows(1)
    harness.until(lambda: len(long.ready) > 0)
    harness.engine.step()
    harness.engine.wait_rows(2)  # one piece per step, because it fills a group
    short, short_waiter = harness.submit(2, 5)
    harness.until(lambda: short.read)
    harness.engine.step(19)  # until a row is free
    harness.engine.wait(lambda: len(harness.engine.started) >= 3)
    assert [value for value, _ in harness.engine.started[:3]] == [1, 1, 2]
    harness.engine.step(5)
    assert short_waiter.transcript().text == "2:5"
    assert not long_waiter.done.is_set()
    assert long.attained > short.attained == 5.0


def test_a_long_file_advances_beside_endless_short_ones() -> None:
    for harness in running(Harness(rows=1, automatic=True)):
        _, long_waiter = harness.submit(1, 120)
        shorts = [harness.submit(2, 5)[1] for _ in range(4)]
        while not long_waiter.done.is_set():  # four short files wait at any time
            for waiter in shorts:
                waiter.transcript()
            shorts = [harness.submit(2, 5)[1] for _ in range(4)]
            assert len(harness.engine.started) < 1000
        assert long_waiter.transcript().duration == 120.0


def test_groups_are_bounded_and_rows_step_between_them() -> None:
    for harness in running(Harness(rows=8)):
        submitted = [harness.submit(value, value) for value in range(1, 20)]
        for ticket, _ in submitted:
            harness.until(lambda ticket=ticket: ticket.read)  # type: ignore[misc]
        harness.engine.allow(10**9)
        for value, (_, waiter) in enumerate(submitted, 1):
            assert waiter.transcript().text == f"{value}:{value}"
        seconds_by_step: dict[int, float] = {}
        for steps, seconds in harness.engine.groups:
            seconds_by_step[steps] = seconds_by_step.get(steps, 0.0) + seconds
        assert max(seconds_by_step.values()) <= GROUP_SECONDS
        assert len(seconds_by_step) < len(harness.engine.started)


def test_segments_are_delivered_in_order_whatever_ends_first() -> None:
    """Looped segments are decoded again; later segments wait for them."""
    for harness in running(Harness(rows=4, automatic=True)):
        waiters = [harness.submit(value, 110)[1] for value in (3, 501, 4)]
        for waiter, value in zip(waiters, (3, 501, 4), strict=True):
            transcript = waiter.transcript()
            segments = waiter.items[:-1]
            assert segments == transcript.segments
            assert [each.start for each in transcript.segments] == sorted(each.start for each in transcript.segments)
            assert transcript.segments[0].start == 0
            assert transcript.segments[-1].end == transcript.duration == 110
            reasons = {each.decoded_again for each in transcript.segments}
            assert reasons == ({"repetition"} if value > 500 else {None})
        assert harness.sample("asr_batch_size_count") == len(harness.engine.started)


def test_reading_ahead_of_a_long_file_is_bounded(harness: Harness) -> None:
    long, long_waiter = harness.submit(1, 2000)
    for _ in range(20):
        limit = 2 * harness.engine.plan.rows
        harness.until(lambda limit=limit: len(long.ready) >= limit)  # type: ignore[misc]
        assert len(long.ready) <= limit
        harness.engine.step(10)
    harness.engine.allow(10**9)
    assert long_waiter.transcript().duration == 2000


def test_reading_ahead_of_many_short_files_is_bounded(harness: Harness) -> None:
    submitted = [harness.submit(value, 5) for value in range(1, 31)]
    tickets = [ticket for ticket, _ in submitted]
    limit = 4 * harness.engine.plan.rows
    for _ in range(3):
        harness.until(
            lambda: sum(len(each.ready) for each in tickets) >= limit and not any(each.reading for each in tickets)
        )
        assert sum(len(each.ready) for each in tickets) == limit
        harness.engine.step()
    harness.engine.allow(10**9)
    for value, (_, waiter) in enumerate(submitted, 1):
        assert waiter.transcript().text == f"{value}:5"


def test_a_cancelled_file_frees_its_row(harness: Harness) -> None:
    first, cancelled = harness.submit(1, 19)
    second, other = harness.submit(2, 19)
    harness.engine.wait_rows(1)
    harness.until(lambda: first.read and second.read)
    harness.engine.step()
    harness.engine.wait_rows(2)
    _, waiting = harness.submit(3, 1)
    assert harness.started(3) == 0
    first.fail(GivenUp())
    harness.engine.wait(lambda: harness.started(3) == 1)  # without a step
    assert isinstance(cancelled.outcome(), GivenUp)
    assert harness.scheduler.files == 2
    harness.engine.allow(100)
    assert waiting.transcript().text == "3:1"
    assert other.transcript().text == "2:19"
    first.fail(GivenUp())  # the second call does nothing
    assert len(cancelled.items) == 1


def test_the_source_is_released_when_no_thread_reads_it() -> None:
    """Cancellation stops a blocked read at its next block; only then the source is released."""
    reading, resume = threading.Event(), threading.Event()

    class BlockedSource(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            reading.set()
            assert resume.wait(WAIT)
            return super().read(size)

    for harness in running(Harness()):
        ticket, waiter = harness.submit(1, 1, BlockedSource(wav(1, 100).getvalue()))
        assert reading.wait(WAIT)
        ticket.fail(GivenUp())
        released = threading.Event()
        ticket.when_released(released.set)
        assert isinstance(waiter.outcome(), GivenUp)
        assert not released.is_set()
        resume.set()
        assert released.wait(WAIT)
        called_again = threading.Event()
        ticket.when_released(called_again.set)
        assert called_again.is_set()
        assert harness.engine.started == []


def test_long_silence_is_read_in_steps() -> None:
    """One read scans at most 11 s, so that the reading threads serve other files in between."""
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


def test_an_invalid_file_fails_alone() -> None:
    for harness in running(Harness(automatic=True, longest=30)):
        closed = wav(1, 5)
        closed.close()
        header = wav(1, 31)
        unknown = bytearray(wav(1, 31).getvalue())
        # As a pipe writes the header: the length is unknown.
        unknown[4:8] = unknown[-31 * 4000 - 4 : -31 * 4000] = b"\xff" * 4
        waiters = {
            name: harness.submit(1, 5, source)[1]
            for name, source in {
                "closed": closed,
                "text": io.BytesIO(b"this is no audio"),
                "header": header,
                "unknown": io.BytesIO(bytes(unknown)),
                "good": wav(7, 5),
            }.items()
        }
        assert isinstance(waiters["closed"].outcome(), EngineFailure)
        error = waiters["text"].outcome()
        assert isinstance(error, AudioInvalidError)
        assert str(error).startswith("a.wav: is not audio")
        for name in ("header", "unknown"):
            too_long = waiters[name].outcome()
            assert isinstance(too_long, AudioTooLong), name
            assert "30 s" in str(too_long)
        assert waiters["good"].transcript().text == "7:5"
        with pytest.raises(OptionError, match="Klingon"):
            harness.transcriber.validate(Request(wav(1, 1), language="Klingon"))


@pytest.mark.parametrize("error", [RuntimeError("secret"), MemoryError()])
def test_an_engine_error_fails_the_jobs_in_flight_only(error: BaseException, caplog: pytest.LogCaptureFixture) -> None:
    for harness in running(Harness(rows=2)):
        harness.engine.errors[13] = error
        _, running_waiter = harness.submit(1, 19)
        harness.engine.wait_rows(1)
        ticket, bad = harness.submit(13, 19)
        harness.until(lambda ticket=ticket: ticket.read)  # type: ignore[misc]
        _, waiting = harness.submit(2, 19)
        _, other = harness.submit(3, 19)
        harness.engine.allow(1)
        for waiter in (running_waiter, bad):
            failure = waiter.outcome()
            assert isinstance(failure, EngineFailure)
            assert "secret" not in str(failure)
        harness.engine.allow(1000)
        assert waiting.transcript().text == "2:19"
        assert other.transcript().text == "3:19"
        assert "engine of m failed with 2 segments" in caplog.text


def test_an_engine_that_cannot_start_fails_all_files_and_recovers() -> None:
    for harness in running(Harness(automatic=True)):
        harness.engine.run_error = RuntimeError("no memory for rows")
        waiters = [harness.submit(1, 5)[1] for _ in range(3)]
        assert all(isinstance(waiter.outcome(), EngineFailure) for waiter in waiters)
        harness.engine.run_error = None
        assert harness.submit(2, 5)[1].transcript().text == "2:5"


def test_an_error_in_a_callback_does_not_affect_other_clients(
    harness: Harness, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(item: object) -> None:
        raise ValueError("callback failed in the test")

    ticket = harness.scheduler.submit(harness.transcriber.validate(Request(wav(1, 5))), fail)
    harness.engine.allow(10**9)
    harness.until(lambda: ticket.over)
    assert harness.submit(2, 5)[1].transcript().text == "2:5"
    assert "callback failed in the test" in caplog.text


def test_stopping_fails_pending_requests_and_refuses_new_ones() -> None:
    for harness in running(Harness()):
        session = FakeSession()
        stream, deliveries = harness.attach(session)
        waiters = [harness.submit(1, 100)[1], harness.submit(2, 100)[1]]
        harness.engine.wait_rows(1)
        assert not harness.scheduler.wait_idle(0)
        harness.scheduler.stop(Closing("bye"))
        for outcome in (*(waiter.outcome() for waiter in waiters), deliveries[-1]):
            assert isinstance(outcome, Closing)
            assert str(outcome) == "bye"
        assert stream.over
        assert harness.scheduler.wait_idle(0)
        assert not harness.scheduler.running
        with pytest.raises(Closing):
            harness.submit(1, 1)


def test_live_streams_go_before_files_up_to_a_bound() -> None:
    for harness in running(Harness(rows=1)):
        streams = [harness.attach(FakeSession()) for _ in range(2)]
        file, waiter = harness.submit(1, 200)
        harness.engine.wait_rows(1)
        audio = constant_audio(9, 10)
        for _ in range(30):  # endless speech: each stream always has a job
            for ticket, _ in streams:
                ticket.feed(audio)
                ticket.commit()
        files_before = harness.started(1)
        while not file.over:
            harness.until(lambda file=file: file.ready or file.read)  # type: ignore[misc]
            harness.engine.step()
        assert isinstance(waiter.outcome(), Transcript)
        harness.engine.allow(10**9)
        live_seconds = file_seconds = 0.0
        for value, length in harness.engine.started[files_before:]:
            if value == 9:
                live_seconds += length
            else:
                file_seconds += length
            assert file_seconds > 180 or live_seconds <= LIVE_AHEAD_SECONDS + 10 + LIVE_WEIGHT * (file_seconds + 20)
        order = [value for value, _ in harness.engine.started[files_before:]]
        assert order[: int(LIVE_AHEAD_SECONDS / 10)] == [9] * int(LIVE_AHEAD_SECONDS / 10)
        assert harness.scheduler.streams == 2
        for ticket, deliveries in streams:
            ticket.finish()
            harness.until(lambda ticket=ticket: ticket.over)  # type: ignore[misc]
            assert deliveries[-1] is None


def test_live_audio_gets_the_next_free_row(harness: Harness) -> None:
    """More files wait than there are rows, and the engine could take their jobs ahead."""
    ticket, deliveries = harness.attach(FakeSession())
    harness.submit(1, 3)
    harness.engine.wait_rows(1)
    for value, seconds in ((2, 15), (3, 10), (4, 10)):
        file, _ = harness.submit(value, seconds)
        harness.until(lambda file=file: file.read)  # type: ignore[misc]
    harness.engine.step()
    harness.engine.wait_rows(2)
    harness.engine.step(2)
    harness.engine.wait(lambda: harness.started(3) == 1)
    ticket.feed(constant_audio(9, 2))
    ticket.finish()
    harness.engine.step(10)
    harness.engine.wait(lambda: len(harness.engine.started) == 4)
    assert [value for value, _ in harness.engine.started] == [1, 2, 3, 9]
    assert harness.sample("asr_rows_in_use") == 2
    harness.engine.allow(10**9)
    harness.until(lambda: ticket.over)
    assert isinstance(deliveries[-2], list)


def constant_audio(value: int, seconds: float) -> Any:
    """Return float32 samples at :data:`RATE` that all are ``value`` / 1000."""
    return np.full(round(seconds * RATE), value / 1000, np.float32)


def test_a_session_that_fails_ends_alone(harness: Harness) -> None:
    class FailsAtNextJob(FakeSession):
        def next_job(self) -> SegmentJob | None:
            raise ZeroDivisionError

    class FailsAtResult(FakeSession):
        def take(self, key: Any, result: SegmentResult) -> list[Event]:
            raise ZeroDivisionError

    good, deliveries = harness.attach(FakeSession())
    for session in (FailsAtNextJob(), FailsAtResult()):
        ticket, ended = harness.attach(session)
        ticket.feed(constant_audio(1, 1))
        harness.engine.allow(10)
        harness.until(lambda ticket=ticket: ticket.over)  # type: ignore[misc]
        assert isinstance(ended[-1], EngineFailure)
    failing = FakeSession()
    failing.feed_error = ZeroDivisionError()
    ticket, ended = harness.attach(failing)
    with pytest.raises(EngineFailure):
        ticket.feed(constant_audio(1, 1))
    assert isinstance(ended[-1], EngineFailure)
    ticket.feed(constant_audio(1, 1))  # ignored: the stream is over
    good.feed(constant_audio(2, 1))
    good.finish()
    harness.until(lambda: good.over)
    assert deliveries[-1] is None


def test_long_form_delivers_its_windows_and_holds_two_audios_at_a_time(harness: Harness) -> None:
    def submit_long(value: int, seconds: float) -> tuple[FileTicket, Waiter]:
        waiter = Waiter()
        request = Request(wav(value, seconds), name="a.wav", long_form=True)
        return harness.scheduler.submit(ValidatedRequest(request, SegmentOptions()), waiter), waiter

    long = [submit_long(value, 7) for value in (1, 2, 3, 4)]
    short = harness.submit(5, 2)
    harness.until(lambda: harness.engine.long_forms == 2 and sum(ticket.read for ticket, _ in long) == 2)
    assert sum(ticket.scanned > 0 for ticket, _ in long) == 2
    harness.engine.allow(10**9)
    for value, (_, waiter) in enumerate(long, 1):
        transcript = waiter.transcript()
        assert [segment.text for segment in transcript.segments] == [f"{value}:3", f"{value}:3", f"{value}:1"]
        assert transcript.duration == 7.0
    assert short[1].transcript().text == "5:2"
