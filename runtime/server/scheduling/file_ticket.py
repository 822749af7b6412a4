"""What a file holds in the scheduler: its place, its pieces on their way, and where its results go."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, ParamSpec, Protocol

from runtime.audio.segmentation import Piece
from runtime.engines.base import SegmentJob, SegmentResult
from runtime.errors import AsrError
from runtime.pipeline.scheduler import File, Floats, cut_in_steps
from runtime.pipeline.spans import segment_of
from runtime.results import Segment, Transcript
from runtime.server.errors import AudioTooLong, EngineFailure, GivenUp
from runtime.transcriber import Request, Transcriber

log = logging.getLogger(__name__)

P = ParamSpec("P")


class Ticket(Protocol):
    """Who asked for a job. Once it is ``over``, everything that is still on its way for it is dropped."""

    kind: str

    @property
    def over(self) -> bool: ...

    def take(self, key: Any, result: SegmentResult) -> None:
        """The result of a job; called in the engine's thread."""

    def dropped(self) -> None:
        """A job ended without a result."""

    def fail(self, error: BaseException) -> None:
        """End with ``error``, from any thread; nothing when it is over already."""


def guarded(call: Callable[P, object]) -> Callable[P, None]:
    """``call``, of which an exception goes to the log alone: whom it cannot tell must not stop the others."""

    def told(*values: P.args, **named: P.kwargs) -> None:
        try:
            call(*values, **named)
        except Exception:  # (a client's callback: its event loop may be gone)
            log.exception("somebody could not be told")

    return told


class FileTicket:
    """A file on its way: read and cut in one thread, decoded in another, its results told in order of the audio.

    The scheduler's lock guards everything; :meth:`read_on` alone does its work outside.

    Attributes:
        arrival: its place among all files.
        attained: seconds of its audio that were handed to the engine.
        ready: numbers of pieces that wait for the engine.
        reading: a thread is at it.
        read: there is nothing more to read.
        over: it is done, failed, or was given up.
    """

    kind = "file"

    def __init__(
        self,
        arrival: int,
        transcriber: Transcriber,
        request: Request,
        changed: threading.Condition,
        *,
        longest: float,
        deliver: Callable[[Segment | Transcript | BaseException], None],
        ended: Callable[[FileTicket], None],
    ) -> None:
        """Args:
        arrival: its place among all files.
        transcriber: whose engine decodes it.
        request: its source is a binary stream, open until nobody reads it any more (:meth:`when_released`).
        changed: the scheduler's lock, and whom to tell of progress.
        longest: seconds of audio that are accepted.
        deliver: told each segment as soon as it and all before it are final, and at last the transcript or what was
            wrong. Called under the lock: it must not wait.
        ended: called once, under the lock.
        """
        self.arrival, self.attained = arrival, 0.0
        self.ready: deque[int] = deque()
        self.reading = self.read = self.over = False
        self._again: deque[SegmentJob] = deque()
        self._transcriber, self._request, self._changed, self._longest = transcriber, request, changed, longest
        self._deliver, self._ended = guarded(deliver), ended
        self._rate = transcriber.engine.sample_rate
        self._file: File | None = None
        self._pieces: Iterator[Piece | None] | None = None
        self._samples, self._seconds, self._told, self._exhausted = 0, 0.0, 0, False
        self._released: list[Callable[[], None]] = []

    @property
    def waiting(self) -> bool:
        """Whether it has something for the engine."""
        return bool(self._again or self.ready)

    @property
    def scanned(self) -> float:
        """Seconds that were read, speech or not."""
        return self._samples / self._rate

    @property
    def next_seconds(self) -> float:
        """Audio of the job that is next, while :attr:`waiting`."""
        assert self._file
        samples = len(self._again[0].samples) if self._again else self._file.slots[self.ready[0]].length
        return samples / self._rate

    def next_job(self) -> SegmentJob:
        """What the engine should do next for it, while :attr:`waiting`."""
        assert self._file
        job = self._again.popleft() if self._again else self._file.job(self.ready.popleft())
        self.attained += len(job.samples) / self._rate
        return job

    def take(self, key: tuple[File, int, int | None], result: SegmentResult) -> None:
        """See :class:`Ticket`."""
        file, number, part = key
        with self._changed:
            if not self.over:
                self._again.extend(file.take(number, part, result))
                self._tell(file)

    def dropped(self) -> None:
        """See :class:`Ticket`: nothing is dropped but of a file that is over."""

    def _tell(self, file: File) -> None:
        """Deliver what became final."""
        while self._told < len(file.slots) and file.slots[self._told].result:
            self._deliver(segment_of(file.slots[self._told].span(), self._rate))
            self._told += 1
        if file.complete:
            file.timings.total = time.perf_counter() - file.began
            self._end(self._transcriber.transcript_of(file))

    def read_on(self) -> None:
        """Read on by a piece or a block, and at the end all the rest. For a thread that set :attr:`reading`."""
        error: BaseException | None = None
        began = time.perf_counter()
        try:
            pieces, ended = self._read_some()
            with self._changed:
                self._seconds += time.perf_counter() - began
                self._advance(pieces, ended)
        except GivenUp:
            pass
        except AsrError as wrong:
            error = wrong
        except Exception:  # (the boundary of one upload: its client is told, the log has the reason)
            if not self.over:  # else its stream was perhaps closed meanwhile
                log.exception("an upload cannot be read")
            error = EngineFailure()
        with self._changed:
            self.reading = False
            if error:
                self._end(error)
            if self.over:
                self._close()
            self._changed.notify_all()

    def _read_some(self) -> tuple[list[Piece], bool]:
        """The next pieces, at most one before the last block, and whether they are the last ones."""
        if self._pieces is None:
            file = self._transcriber.prepare(self.arrival, self._request)
            if file.error or not file.reader:
                raise file.error or AssertionError("a file without audio")
            self._file = file
            if file.duration > self._longest:
                raise self._too_long()
            blocks = self._watched(file.reader.blocks())
            self._pieces = cut_in_steps(blocks, self._transcriber.engine, vad=self._transcriber.vad)
        found = []
        for piece in self._pieces:
            if piece:
                found.append(piece)
            if not self._exhausted:  # a short file is known to be over before it is decoded
                return found, False
        return found, True

    def _watched(self, blocks: Iterator[Floats]) -> Iterator[Floats]:
        for block in blocks:
            if self.over:
                raise GivenUp
            self._samples += len(block)
            if self._samples > self._longest * self._rate:
                raise self._too_long()
            yield block
        self._exhausted = True

    def _too_long(self) -> AudioTooLong:
        return AudioTooLong(
            f"{self._request.name}: is longer than the {self._longest:g} s that this server takes; send it in parts"
        )

    def _advance(self, pieces: list[Piece], ended: bool) -> None:
        """Pieces were read, or the rest of them."""
        if self.over:
            return
        assert self._file
        self.ready.extend(self._file.add(piece) for piece in pieces)
        if not ended:
            return
        self.read = True
        self._close()
        self._file.samples, self._file.timings.segment = self._samples, self._seconds
        self._tell(self._file)

    def fail(self, error: BaseException) -> None:
        """See :class:`Ticket`."""
        with self._changed:
            self._end(error)

    def when_released(self, call: Callable[[], None]) -> None:
        """Have ``call`` called, by whatever thread, when nobody reads the source any more: now, or soon."""
        with self._changed:
            if self.reading:
                self._released.append(call)
                return
        call()

    def _end(self, outcome: Transcript | BaseException) -> None:
        if self.over:
            return
        self.over = True
        self.ready.clear()
        self._again.clear()
        if not self.reading:
            self._close()
        self._ended(self)  # first, so that who is told finds its place free
        self._deliver(outcome)
        self._changed.notify_all()

    def _close(self) -> None:
        """Let go of the source; no thread is at it."""
        if self._file and self._file.reader:
            self._file.reader.close()
        if self.over:
            self._file = self._pieces = None
        for call in self._released:
            call()
        self._released.clear()
