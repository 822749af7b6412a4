"""What a live stream holds in the scheduler: its session, and how far behind the speaker it is."""

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

# How finely it is remembered when what was heard: more finely than latencies are counted is no use.
_HEARD_EVERY = 0.05
_HEARD_REMEMBERED = 4096
# Of a segment that grows, only what is new is computed, and the unfinished encoder window that it is in: at most this.
_WINDOW_SECONDS = 8.0


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


def _nobody(*_: object) -> None:
    """Who is told of a stream that is over."""


class StreamTicket:
    """A live stream on its way. Its session has a lock of its own, for it works while others are scheduled.

    Whoever holds both locks took the session's first; the scheduler only tries it. ``over`` and the numbers are read
    without a lock: each is written whole.

    Attributes:
        over: every final was given, it failed, or it was given up.
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
        session: what cuts the audio and knows what to do next.
        rate: of its audio, in Hz.
        changed: the scheduler's lock, and whom to tell that there may be a job.
        deliver: told events, and at last None or what was wrong. It must not wait.
        progressed: told, in the same way, when ``behind`` has become less.
        ended: called once, under the scheduler's lock.
        latency: where it is noted how late texts were.
        """
        self.over, self.behind = False, 0.0
        self._session, self._rate, self._changed = session, rate, changed
        self._deliver, self._progressed = guarded(deliver), guarded(progressed)
        self._ended, self._latency = ended, latency
        self._lock = threading.Lock()
        self._in_flight = False
        self._asked_at = 0.0

    def feed(self, samples: Floats) -> None:
        """Mono samples at the engine's rate: voice activity and cutting take time, so not in the event loop."""

        def fed() -> list[Event]:
            events = self._session.feed(samples)
            self._latency.fed(self._session.duration)
            return events

        self._do(fed)

    def commit(self) -> None:
        """End the open segment now."""
        self._do(self._session.commit)

    def finish(self) -> None:
        """No more audio will come."""
        self._do(self._session.finish)

    def _do(self, act: Callable[[], list[Event]]) -> None:
        with self._lock:
            if self.over:
                return
            try:
                self._tell(act())
            except AsrError:
                raise
            except Exception as error:  # (the boundary of one stream: its client is told, the log has the reason)
                log.exception("a live stream failed")
                failure = EngineFailure()
                self.fail(failure)
                raise failure from error
        with self._changed:
            self._changed.notify_all()

    def next_job(self) -> tuple[SegmentJob, float] | None:
        """What the engine should do next for it, and how many seconds of audio that is worth.

        None too while audio is being fed; the end of that wakes the scheduler.
        """
        if self._in_flight or not self._lock.acquire(blocking=False):
            return None
        try:
            job = self._session.next_job()
            self._in_flight = job is not None
            self._measure()
            return (job, self._worth(job)) if job else None
        except Exception:  # (the boundary of one stream, as above)
            log.exception("a live stream has no next job")
            self.fail(EngineFailure())
            return None
        finally:
            self._lock.release()

    def _worth(self, job: SegmentJob) -> float:
        before, self._asked_at = self._asked_at, self._session.duration
        seconds = len(job.samples) / self._rate
        grows = job.live is not None and not job.live.final
        return min(seconds, self._asked_at - before + _WINDOW_SECONDS) if grows else seconds

    def take(self, key: Any, result: SegmentResult) -> None:
        """See :class:`runtime.server.scheduling.file_ticket.Ticket`."""
        with self._lock:
            self._in_flight = False
            if not self.over:
                self._tell(self._session.take(key, result))

    def dropped(self) -> None:
        """See :class:`runtime.server.scheduling.file_ticket.Ticket`."""
        self._in_flight = False

    def fail(self, error: BaseException | None) -> None:
        """End: with an error, or without when nobody wants it any more."""
        with self._changed:
            if not self.over:
                self.over = True
                self._ended(self)  # first, so that who is told finds its place free
                self._deliver(error)
                # Whom it told holds it: apart, both and their audio go now, and not with a later garbage collection.
                self._deliver = self._progressed = _nobody
                self._changed.notify_all()

    def _tell(self, events: list[Event]) -> None:
        if events:
            self._latency.told(events)
            self._deliver(events)
        self._measure()
        if self._session.complete:
            self.fail(None)

    def _measure(self) -> None:
        before, self.behind = self.behind, self._session.behind
        if self.behind < before:
            self._progressed()


class Latency:
    """How late the texts of one stream are, beside the audio that they are of."""

    def __init__(self, metrics: Metrics, model: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._metrics, self._model, self._clock = metrics, model, clock
        self._heard: deque[tuple[float, float]] = deque(maxlen=_HEARD_REMEMBERED)
        self._without_text: dict[int, float] = {}

    def fed(self, duration: float) -> None:
        """The stream is so many seconds long now."""
        if not self._heard or duration >= self._heard[-1][0] + _HEARD_EVERY:
            self._heard.append((duration, self._clock()))

    def told(self, events: list[Event]) -> None:
        """These are told now."""
        now = self._clock()
        for event in events:
            if isinstance(event, Speech):
                self._without_text[event.segment] = now
            elif (began := self._without_text.pop(event.segment, None)) is not None:
                self._metrics.first_partial.labels(self._model).observe(now - began)
            if isinstance(event, Final):
                while len(self._heard) > 1 and self._heard[0][0] < event.result.end:
                    self._heard.popleft()
                if self._heard:
                    self._metrics.final.labels(self._model).observe(now - self._heard[0][1])
