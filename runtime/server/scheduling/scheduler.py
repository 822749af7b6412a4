"""One engine for all clients: jobs of files and live streams are decoded together in its rows."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count

import msgspec

from runtime.engines.base import SegmentJob
from runtime.results import Segment, Transcript
from runtime.server.errors import Closing, EngineFailure
from runtime.server.metrics import Metrics
from runtime.server.scheduling.fairness import OLDEST_EVERY, Fairness
from runtime.server.scheduling.file_ticket import FileTicket, Ticket
from runtime.server.scheduling.stream_ticket import StreamTicket
from runtime.transcriber import Transcriber, ValidatedRequest

log = logging.getLogger(__name__)

# Seconds of audio that are encoded and prefilled at once while other texts wait for their next token: a segment of full
# length. An engine takes jobs until there is none or its rows are full; between two groups it gets none until it has
# made a step.
GROUP_SECONDS = 20.0
# Pieces that are cut and wait, in multiples of the engine's rows: what it takes at once and as much again. A file
# without waiting pieces may exceed this up to twice, so that waiting pieces of long files do not delay a short one.
_MAX_AHEAD, _MAX_AHEAD_FOR_NEW = 2, 4
_READERS = 2
# Files in long form whose audio is held at a time: 0.35 GB an hour each.
_MAX_LONG_FORMS = 2


@dataclass(slots=True, eq=False)
class _Flight:
    """A job that was chosen for the engine.

    ``seconds`` is the audio charged for it; ``begun`` is set when the engine first asks whether it is cancelled.
    """

    ticket: Ticket
    job: SegmentJob
    seconds: float
    begun: bool = False


class Scheduler:
    """Runs the engine in one thread and reads files in two more.

    Errors in these threads are delivered to the clients concerned. All methods may be called from any thread; only
    :meth:`wait_idle` and :meth:`stop` block.
    """

    def __init__(self, name: str, transcriber: Transcriber, metrics: Metrics, *, longest: float) -> None:
        """Args:
        name: name of the model, for metrics and thread names.
        transcriber: an opened model; nothing else may use its engine.
        metrics: the server's metrics.
        longest: longest audio of a file, in seconds.
        """
        self._name, self._transcriber, self._metrics, self._longest = name, transcriber, metrics, longest
        self._engine = transcriber.engine
        self._changed = threading.Condition()
        self._arrivals = count()
        self._files: dict[FileTicket, None] = {}
        self._streams: dict[StreamTicket, None] = {}
        self._fairness = Fairness()
        self._flights: set[_Flight] = set()
        self._held: _Flight | None = None
        self._group, self._resting = 0.0, False
        self._reads = 0
        self._ending = False
        # Daemons: a server that is killed while it drains must not wait for a step of the model.
        self._threads = [threading.Thread(target=self._run, name=f"asr-engine-{name}", daemon=True)]
        self._threads += [
            threading.Thread(target=self._read, name=f"asr-read-{name}-{number}", daemon=True)
            for number in range(_READERS)
        ]

    def start(self) -> None:
        """Start the threads."""
        for thread in self._threads:
            thread.start()

    @property
    def running(self) -> bool:
        """Whether the engine's thread runs and takes jobs."""
        return self._threads[0].is_alive() and not self._ending

    @property
    def files(self) -> int:
        """Number of files that are not complete."""
        return len(self._files)

    @property
    def streams(self) -> int:
        """Number of live streams that are not complete."""
        return len(self._streams)

    def submit(
        self, request: ValidatedRequest, deliver: Callable[[Segment | Transcript | BaseException], None]
    ) -> FileTicket:
        """Transcribe a file; ``deliver`` gets its segments and its outcome as :class:`FileTicket` describes."""
        with self._changed:
            self._check_open()
            ticket = FileTicket(
                next(self._arrivals),
                self._transcriber,
                request,
                self._changed,
                longest=self._longest,
                deliver=deliver,
                ended=self._file_ended,
            )
            self._files[ticket] = None
            self._count()
            self._changed.notify_all()
        return ticket

    def attach(
        self, make: Callable[[threading.Condition, Callable[[StreamTicket], None]], StreamTicket]
    ) -> StreamTicket:
        """Serve a live stream; ``make`` creates its ticket from the lock and the callback for its end."""
        with self._changed:
            self._check_open()
            ticket = make(self._changed, self._stream_ended)
            self._streams[ticket] = None
            self._count()
        return ticket

    def _check_open(self) -> None:
        if not self.running:
            raise Closing("this model's engine is not running")

    def wait_idle(self, timeout: float) -> bool:
        """Wait at most ``timeout`` seconds until all files and streams are complete; return whether they are."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._files and not self._streams, timeout)

    def stop(self, reason: BaseException) -> None:
        """End all files and streams with ``reason``, and the threads; return when the threads have ended."""
        with self._changed:
            self._abandon(reason)
            self._ending = True
            self._changed.notify_all()
        for thread in self._threads:
            if thread.ident:
                thread.join()

    def _abandon(self, reason: BaseException) -> None:
        tickets: list[Ticket] = [*self._files, *self._streams]
        for ticket in tickets:
            ticket.fail(reason)

    def _file_ended(self, ticket: FileTicket) -> None:
        self._files.pop(ticket, None)
        self._count()

    def _stream_ended(self, ticket: StreamTicket) -> None:
        self._streams.pop(ticket, None)
        self._count()

    def _count(self) -> None:
        self._metrics.queue.labels(self._name).set(len(self._files))
        self._metrics.streams.labels(self._name).set(len(self._streams))
        self._metrics.rows.labels(self._name).set(self._rows())

    def _rows(self) -> int:
        return sum(flight.begun for flight in self._flights)

    # The engine's thread.

    def _run(self) -> None:
        try:
            while self._await_job():
                self._run_engine()
        finally:
            with self._changed:  # if the thread itself fails, no client may wait forever
                self._ending = True
                self._abandon(EngineFailure())
                self._changed.notify_all()

    def _await_job(self) -> bool:
        with self._changed:
            while not self._ending:
                if self._held is None or self._held.ticket.over:
                    self._held = self._choose()
                if self._held:
                    return True
                self._changed.wait()
            return False

    def _run_engine(self) -> None:
        self._stepped()
        try:
            for flight, result in self._engine.run(self._next_job):
                with self._changed:
                    self._metrics.batch.labels(self._name).observe(self._rows())
                    self._landed(flight)
                try:
                    flight.ticket.take(flight.job.key, result)
                except Exception:  # (the boundary of one request: it fails, the others continue)
                    log.exception("a result could not be taken")
                    flight.ticket.fail(EngineFailure())
        except Exception:  # (whatever ONNX Runtime raises: jobs in flight fail, and the engine starts again)
            log.exception("the engine of %s failed with %d segments in flight", self._name, len(self._flights))
            self._engine_failed()
        self._stepped()
        with self._changed:
            self._flights.clear()
            self._count()

    def _engine_failed(self) -> None:
        """Fail the tickets with jobs in flight; without any, no job was the cause and all tickets fail."""
        with self._changed:
            if not self._flights:
                self._abandon(EngineFailure())
            for ticket in {flight.ticket for flight in self._flights}:
                ticket.fail(EngineFailure())

    def _next_job(self) -> SegmentJob | None:
        """Return the engine's next job: a group of jobs, then None until it has made a step."""
        with self._changed:
            if self._ending or self._resting or not self._room():
                return None
            flight, self._held = self._held, None
            if flight is None or flight.ticket.over:
                flight = self._choose()
            if flight is None:
                return None
            if flight.ticket.kind == "stream" and not self._fits(flight.seconds):
                self._held = flight
                return None
            self._group += flight.seconds
            self._flights.add(flight)
            self._count()
            return msgspec.structs.replace(flight.job, key=flight, is_cancelled=lambda: self._is_cancelled(flight))

    def _room(self) -> bool:
        """Return whether the engine may take another job.

        It encodes jobs ahead of its rows, which is faster, but live audio must not wait behind them: while there are
        streams, it gets only as many jobs as it has rows.
        """
        active = sum(not flight.ticket.over for flight in self._flights)
        return not self._streams or active < self._engine.plan.rows

    def _fits(self, seconds: float) -> bool:
        """Return whether a job fits into this group; if not, close the group."""
        self._resting = bool(self._group) and self._group + seconds > GROUP_SECONDS
        return not self._resting

    def _stepped(self) -> None:
        """Open a new group."""
        self._group, self._resting = 0.0, False

    def _choose(self) -> _Flight | None:
        """Choose the next job by :class:`Fairness`; None when there is none."""
        file = self._fairness.next_file([file for file in self._files if file.waiting])
        if file is None or not self._fairness.files_first:
            for stream in tuple(self._streams):
                if next_job := stream.next_job():
                    job, seconds = next_job
                    self._streams.pop(stream)  # move it to the end of the queue
                    self._streams[stream] = None
                    self._fairness.gave_live(seconds, file_waits=bool(self._files))
                    return _Flight(stream, job, seconds)
        if file is None or not self._fits(file.next_seconds):
            return None
        seconds = file.next_seconds
        self._fairness.gave_file(seconds)
        self._changed.notify_all()  # readers may continue
        return _Flight(file, file.next_job(), seconds)

    def _is_cancelled(self, flight: _Flight) -> bool:
        if flight.begun:  # the engine asks before each step
            self._stepped()
        else:
            flight.begun = True
            with self._changed:
                self._count()
        if not flight.ticket.over and not flight.job.is_cancelled():
            return False
        with self._changed:
            if flight in self._flights:
                self._landed(flight)
                flight.ticket.dropped()
        return True

    def _landed(self, flight: _Flight) -> None:
        self._flights.discard(flight)
        self._count()

    # The threads that read.

    def _read(self) -> None:
        while ticket := self._await_reading():
            ticket.read_on()

    def _await_reading(self) -> FileTicket | None:
        with self._changed:
            while not self._ending:
                if ticket := self._next_to_read():
                    ticket.reading = True
                    return ticket
                self._changed.wait()
            return None

    def _next_to_read(self) -> FileTicket | None:
        """Return the file with the least audio read, every eighth time the oldest, as :class:`Fairness` does."""
        rows = self._engine.plan.rows
        ahead = sum(len(file.ready) + file.reading for file in self._files)
        unread = [file for file in self._files if not (file.read or file.reading)]
        held = sum(file.is_long_form and (file.reading or file.scanned > 0) for file in self._files)
        if held >= _MAX_LONG_FORMS:
            unread = [file for file in unread if not file.is_long_form or file.scanned > 0]
        if ahead >= _MAX_AHEAD * rows:
            unread = [file for file in unread if not file.ready]
        if ahead >= _MAX_AHEAD_FOR_NEW * rows or not unread:
            return None
        self._reads += 1
        if self._reads % OLDEST_EVERY == 0:
            return min(unread, key=lambda file: (bool(file.ready), file.arrival))
        return min(unread, key=lambda file: (file.scanned, file.arrival))
