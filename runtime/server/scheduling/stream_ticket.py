"""A live stream in the server's scheduler: its session, its jobs, and how late its texts are."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from runtime.engines.base import SegmentJob, SegmentResult
from runtime.errors import AsrError
from runtime.pipeline.events import Event, Final, Speech
from runtime.server.errors import EngineFailure
from runtime.server.metrics import Metrics
from runtime.server.scheduling.file_ticket import guarded

log = logging.getLogger(__name__)

Floats = npt.NDArray[np.float32]

# Resolution in seconds of arrival times, and their number: finer than latencies are counted is of no use.
_ARRIVAL_STEP = 0.05
_MAX_ARRIVALS = 4096


class Session(Protocol):
    """The part of :class:`runtime.pipeline.streaming.LiveSession` that is used here; calls are serialized."""

    @property
    def complete(self) -> bool: ...

    @property
    def duration(self) -> float: ...

    @property
    def behind(self) -> float: ...

    def feed(self, samples: Floats) -> list[Event]: ...

    def commit(self) -> list[Event]: ...

    def finish(self) -> list[Event]: ...

    def next_job(self) -> SegmentJob | None: ...

    def take(self, key: Any, result: SegmentResult) -> list[Event]: ...


def _ignore(*_: object) -> None:
    """Callback of a stream that is over."""


class StreamTicket:
    """A live stream in the scheduler. Its session has its own lock, because it works while others are scheduled.

    A thread that holds both locks took the session's first; the scheduler only tries to take it. ``over`` and
    ``behind`` are read without a lock: each write is atomic.

    Attributes:
        over: every final text was delivered, it failed, or it was cancelled.
        behind: seconds of audio that were fed and are not decoded yet.
    """

    kind = "stream"

    def __init__(
        self,
        session: Session,
        rate: int,
        changed: threading.Condition,
        *,
        deliver: Callable[[list[Event] | BaseException | None], None],
        progressed: Callable[[], None],
        ended: Callable[[StreamTicket], None],
        latency: Latency,
    ) -> None:
        """Args:
        session: cuts the audio and makes the jobs.
        rate: of its audio, in Hz.
        changed: the scheduler's lock; notified when there may be a job.
        deliver: called with events, and last with None or the error. It must not block.
        progressed: called when ``behind`` has decreased. It must not block.
        ended: called once, under the scheduler's lock.
        latency: records how late texts are.
        """
        self.over, self.behind = False, 0.0
        self._session, self._rate, self._changed = session, rate, changed
        self._deliver, self._progressed = guarded(deliver), guarded(progressed)
        self._ended, self._latency = ended, latency
        self._lock = threading.Lock()
        self._in_flight = False

    def feed(self, samples: Floats) -> None:
        """Feed mono samples [n] at the engine's rate. Voice activity takes time: do not call this in the event loop."""

        def fed() -> list[Event]:
            events = self._session.feed(samples)
            self._latency.fed(self._session.duration)
            return events

        self._do(fed)

    def commit(self) -> None:
        """End the open segment now."""
        self._do(self._session.commit)

    def finish(self) -> None:
        """End the stream: no more audio follows."""
        self._do(self._session.finish)

    def _do(self, act: Callable[[], list[Event]]) -> None:
        with self._lock:
            if self.over:
                return
            try:
                self._publish(act())
            except AsrError:
                raise
            except Exception as error:  # (the boundary of one stream: its client gets an error, the log has the reason)
                log.exception("a live stream failed")
                failure = EngineFailure()
                self.fail(failure)
                raise failure from error
        with self._changed:
            self._changed.notify_all()

    def next_job(self) -> tuple[SegmentJob, float] | None:
        """Return the next job and the seconds of audio to charge for it; None when there is none.

        Also None while audio is being fed; the end of feeding notifies the scheduler.
        """
        if self._in_flight or not self._lock.acquire(blocking=False):
            return None
        try:
            job = self._session.next_job()
            self._in_flight = job is not None
            self._measure()
            return (job, self._charge(job)) if job else None
        except Exception:  # (the boundary of one stream, as above)
            log.exception("a live stream has no next job")
            self.fail(EngineFailure())
            return None
        finally:
            self._lock.release()

    def _charge(self, job: SegmentJob) -> float:
        """Return the seconds of audio that the engine computes for a job.

        Audio of a growing segment whose encoder output is settled is not computed again; everything else is, the whole
        segment where an encoder attends to all of it.
        """
        samples = len(job.samples)
        if job.live is not None and not job.live.final:
            samples -= min(samples, job.live.state.settled)
        return samples / self._rate

    def take(self, key: Any, result: SegmentResult) -> None:
        """Take the result of a job; publish its events."""
        with self._lock:
            self._in_flight = False
            if not self.over:
                self._publish(self._session.take(key, result))

    def dropped(self) -> None:
        """Note that a job ended without a result."""
        self._in_flight = False

    def fail(self, error: BaseException | None) -> None:
        """End with ``error``; None when the stream is complete."""
        with self._changed:
            if not self.over:
                self.over = True
                self._ended(self)  # first, so that its place is free when the client is told
                self._deliver(error)
                # The callbacks' owner holds this ticket: break the cycle so that both, and their audio, are freed now.
                self._deliver = self._progressed = _ignore
                self._changed.notify_all()

    def _publish(self, events: list[Event]) -> None:
        if events:
            self._latency.delivered(events)
            self._deliver(events)
        self._measure()
        if self._session.complete:
            self.fail(None)

    def _measure(self) -> None:
        before, self.behind = self.behind, self._session.behind
        if self.behind < before:
            self._progressed()


class Latency:
    """Measures how late the texts of one stream are, relative to the arrival of their audio."""

    def __init__(self, metrics: Metrics, model: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._metrics, self._model, self._clock = metrics, model, clock
        self._arrivals: deque[tuple[float, float]] = deque(maxlen=_MAX_ARRIVALS)
        self._without_text: dict[int, float] = {}

    def fed(self, duration: float) -> None:
        """Note that the stream has ``duration`` seconds now."""
        if not self._arrivals or duration >= self._arrivals[-1][0] + _ARRIVAL_STEP:
            self._arrivals.append((duration, self._clock()))

    def delivered(self, events: list[Event]) -> None:
        """Record the latency of events that are delivered now."""
        now = self._clock()
        for event in events:
            if isinstance(event, Speech):
                self._without_text[event.segment] = now
            elif (start := self._without_text.pop(event.segment, None)) is not None:
                self._metrics.first_partial.labels(self._model).observe(now - start)
            if isinstance(event, Final):
                while len(self._arrivals) > 1 and self._arrivals[0][0] < event.result.end:
                    self._arrivals.popleft()
                if self._arrivals:
                    self._metrics.final.labels(self._model).observe(now - self._arrivals[0][1])
