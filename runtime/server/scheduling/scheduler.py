"""One engine, and everybody who waits for it: jobs of files and of live streams are decoded together in its rows."""

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

# What is encoded and prefilled at once while others wait for their next token: a segment of full length. An engine
# collects and begins jobs until there is none or its rows are full; between two groups there is none until it stepped.
GROUP_SECONDS = 20.0
# Pieces that are cut and wait, by the engine's rows: what it takes at once and as much again. A file that has none
# waiting may go beyond, up to twice that, so that a short one is not held up by what long ones have in waiting.
_AHEAD, _AHEAD_FOR_NEW = 2, 4
_READERS = 2


@dataclass(slots=True, eq=False)
class _Flight:
    """A job that somebody was given a turn for.

    ``seconds`` are the audio that it is worth; ``begun`` when the engine has asked once whether it is wanted.
    """

    ticket: Ticket
    job: SegmentJob
    seconds: float
    begun: bool = False


class Scheduler:
    """Runs the engine in a thread of its own, and reads files in two more.

    Raises nothing in these threads: what goes wrong is told to those whom it concerns. All methods may be called from
    any thread, and none but :meth:`wait_idle` and :meth:`stop` waits.
    """

    def __init__(self, name: str, transcriber: Transcriber, metrics: Metrics, *, longest: float) -> None:
        """Args:
        name: the model's, in metrics and names of threads.
        transcriber: an opened model that nobody else uses.
        metrics: where everything is counted.
        longest: seconds of audio that a file may have.
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
        """Whether the engine's thread is there to do what is asked."""
        return self._threads[0].is_alive() and not self._ending

    @property
    def files(self) -> int:
        """Files that are not done."""
        return len(self._files)

    @property
    def streams(self) -> int:
        """Live streams that are not done."""
        return len(self._streams)

    def submit(
        self, request: ValidatedRequest, deliver: Callable[[Segment | Transcript | BaseException], None]
    ) -> FileTicket:
        """Transcribe a file; see :class:`FileTicket` for how ``deliver`` is called."""
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
        """Serve the live stream that ``make`` makes, given the lock and what to call when it is over."""
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
        """Wait until nothing is left to do, ``timeout`` seconds at most; whether nothing is."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._files and not self._streams, timeout)

    def stop(self, reason: BaseException) -> None:
        """End whatever is left with ``reason``, and the threads; returns when they have ended."""
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
            with self._changed:  # should the thread itself fail, then nobody waits for ever
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
                except Exception:  # (the boundary of one request: it fails and is told, the others go on)
                    log.exception("a result could not be taken")
                    flight.ticket.fail(EngineFailure())
        except Exception:  # (whatever ONNX Runtime raises: those in flight are told, and the engine begins anew)
            log.exception("the engine of %s failed with %d segments in flight", self._name, len(self._flights))
            self._engine_failed()
        self._stepped()
        with self._changed:
            self._flights.clear()
            self._count()

    def _engine_failed(self) -> None:
        """Those in flight have lost what they had there. If none is, it was no job that failed, and none would go."""
        with self._changed:
            if not self._flights:
                self._abandon(EngineFailure())
            for ticket in {flight.ticket for flight in self._flights}:
                ticket.fail(EngineFailure())

    def _next_job(self) -> SegmentJob | None:
        """What the engine begins next: a group of jobs, then None until it has stepped."""
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
        """Whether another job may go to the engine, which encodes ahead of its rows what it can get.

        That is faster, but what a speaker said must not wait behind it: beside streams it gets no more than has rows.
        """
        wanted = sum(not flight.ticket.over for flight in self._flights)
        return not self._streams or wanted < self._engine.plan.rows

    def _fits(self, seconds: float) -> bool:
        """Whether a job is still of this group; if not, the group is over."""
        self._resting = bool(self._group) and self._group + seconds > GROUP_SECONDS
        return not self._resting

    def _stepped(self) -> None:
        """A new group can begin."""
        self._group, self._resting = 0.0, False

    def _choose(self) -> _Flight | None:
        """Whose turn it is, and the job."""
        file = self._fairness.next_file([each for each in self._files if each.waiting])
        if file is None or not self._fairness.files_first:
            for stream in tuple(self._streams):
                if given := stream.next_job():
                    job, seconds = given
                    self._streams.pop(stream)  # it goes to the end of the line
                    self._streams[stream] = None
                    self._fairness.gave_live(seconds, file_waits=bool(self._files))
                    return _Flight(stream, job, seconds)
        if file is None or not self._fits(file.next_seconds):
            return None
        seconds = file.next_seconds
        self._fairness.gave_file(seconds)
        self._changed.notify_all()  # there is room to read on
        return _Flight(file, file.next_job(), seconds)

    def _is_cancelled(self, flight: _Flight) -> bool:
        if flight.begun:  # then it is asked before a step
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
        """The file of which least was read, and now and then the oldest: as with the engine (:class:`Fairness`)."""
        rows = self._engine.plan.rows
        ahead = sum(len(each.ready) + each.reading for each in self._files)
        unread = [each for each in self._files if not (each.read or each.reading)]
        if ahead >= _AHEAD * rows:
            unread = [each for each in unread if not each.ready]
        if ahead >= _AHEAD_FOR_NEW * rows or not unread:
            return None
        self._reads += 1
        if self._reads % OLDEST_EVERY == 0:
            return min(unread, key=lambda each: (bool(each.ready), each.arrival))
        return min(unread, key=lambda each: (each.scanned, each.arrival))
