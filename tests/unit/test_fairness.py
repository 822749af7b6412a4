"""The order in which files and live streams get the engine, and the seconds charged to a live stream."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.engines.base import LiveSegment, SegmentJob, SegmentOptions
from runtime.results import Timings
from runtime.server.metrics import Metrics
from runtime.server.scheduling.fairness import LIVE_AHEAD_SECONDS, LIVE_WEIGHT, OLDEST_EVERY, Fairness
from runtime.server.scheduling.stream_ticket import Latency, StreamTicket
from tests.helpers.stepped_engine import RATE


@dataclass(eq=False)
class QueuedFile:
    """A file as :class:`Fairness` sees it."""

    arrival: int
    attained: float = 0.0


def test_the_file_with_least_service_is_next_and_every_eighth_turn_the_oldest() -> None:
    fairness = Fairness()
    files = [QueuedFile(0, 100.0), QueuedFile(1, 5.0), QueuedFile(2, 5.0)]
    chosen = []
    for _ in range(2 * OLDEST_EVERY):
        chosen.append(fairness.next_file(files))
        fairness.gave_file(1.0)
    assert [each.arrival for each in chosen if each] == ([1] * (OLDEST_EVERY - 1) + [0]) * 2
    assert fairness.next_file([]) is None


@given(st.lists(st.tuples(st.floats(0.1, 20.0), st.floats(0.1, 20.0)), min_size=10, max_size=200))
def test_endless_streams_leave_files_their_share(turns: list[tuple[float, float]]) -> None:
    """Both sides have a job in each turn: the seconds of live streams are bounded by the seconds of files."""
    fairness, live, files = Fairness(), 0.0, 0.0
    for live_seconds, file_seconds in turns:
        if fairness.files_first:
            fairness.gave_file(file_seconds)
            files += file_seconds
        else:
            fairness.gave_live(live_seconds, file_waits=True)
            live += live_seconds
        assert live <= LIVE_AHEAD_SECONDS + 20.0 + LIVE_WEIGHT * files + 1e-6
    fairness.gave_live(20.0, file_waits=False)  # without waiting files nothing is owed to them
    assert not fairness.files_first


class GrowingSession:
    """A live session with one growing segment; ``settled`` gives the samples that the engine keeps."""

    complete, duration, behind = False, 0.0, 0.0

    def __init__(self, seconds: float, settled: Callable[[int], int]) -> None:
        self._seconds, self._settled = seconds, settled

    def grow(self, seconds: float) -> None:
        self._seconds += seconds

    def next_job(self) -> SegmentJob:
        samples = np.zeros(round(self._seconds * RATE), np.float32)
        settled = self._settled(len(samples) - RATE)  # as of the previous job, one second earlier
        live = LiveSegment(SimpleNamespace(settled=settled), final=False)
        return SegmentJob("key", samples, SegmentOptions(), Timings(), 0.0, live=live)


def settled_windows(samples: int) -> int:
    """Return the settled samples of an engine that keeps finished windows of 8 s."""
    return samples // (8 * RATE) * 8 * RATE


def settled_nothing(samples: int) -> int:
    """Return the settled samples of an engine that encodes the whole segment each time."""
    del samples
    return 0


def charged(session: GrowingSession) -> float:
    """Return the seconds charged for the next job of ``session``."""
    ticket = StreamTicket(
        session,  # type: ignore[arg-type]  # only next_job is called
        RATE,
        threading.Condition(),
        deliver=lambda _: None,
        progressed=lambda: None,
        ended=lambda _: None,
        latency=Latency(Metrics(), "m"),
    )
    next_job = ticket.next_job()
    assert next_job
    return next_job[1]


def test_a_growing_segment_is_charged_for_the_audio_that_is_encoded_again() -> None:
    """An engine with windows encodes the last window only; one without encodes the whole segment."""
    for seconds, windowed in ((5.0, 5.0), (8.0, 8.0), (9.0, 1.0), (19.0, 3.0), (29.0, 5.0)):
        assert charged(GrowingSession(seconds, settled_windows)) == pytest.approx(windowed)
        assert charged(GrowingSession(seconds, settled_nothing)) == pytest.approx(seconds)


@pytest.mark.parametrize(("settled", "turns"), [(settled_windows, 13), (settled_nothing, 5)])
def test_files_get_their_turn_after_the_same_seconds_of_either_engine(
    settled: Callable[[int], int], turns: int
) -> None:
    """Streams of an engine without windows use up their lead in fewer jobs."""
    fairness, session, jobs = Fairness(), GrowingSession(12.0, settled), 0
    while not fairness.files_first:
        fairness.gave_live(charged(session), file_waits=True)
        session.grow(1.0)
        jobs += 1
    assert jobs == turns
