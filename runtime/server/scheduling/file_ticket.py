"""A file in the server's scheduler: its pieces, its jobs, and the delivery of its results."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, ParamSpec, Protocol

import numpy as np
import numpy.typing as npt

from runtime.audio.segmentation import Piece
from runtime.engines.base import LongForm, SegmentJob, SegmentResult
from runtime.errors import AsrError
from runtime.pipeline.audio_file import AudioFile, JobKey, concatenate, cut_in_steps
from runtime.pipeline.spans import segments_of
from runtime.results import Segment, Transcript
from runtime.server.errors import AudioTooLong, EngineFailure, GivenUp
from runtime.transcriber import Transcriber, ValidatedRequest

log = logging.getLogger(__name__)

Floats = npt.NDArray[np.float32]
P = ParamSpec("P")


class Ticket(Protocol):
    """The owner of a job. Once it is ``over``, everything that is in flight for it is dropped."""

    kind: str

    @property
    def over(self) -> bool: ...

    def take(self, key: Any, result: SegmentResult) -> None:
        """Take the result of a job; called in the engine's thread."""

    def dropped(self) -> None:
        """Note that a job ended without a result."""

    def fail(self, error: BaseException) -> None:
        """End with ``error``, from any thread; do nothing when it is over."""


def guarded(call: Callable[P, object]) -> Callable[P, None]:
    """Wrap a client's callback: an exception is logged and does not affect others."""

    def guarded_call(*values: P.args, **named: P.kwargs) -> None:
        try:
            call(*values, **named)
        except Exception:  # (a client's callback: its event loop may be closed)
            log.exception("a client's callback failed")

    return guarded_call


class FileTicket:
    """A file in the scheduler: read and cut in one thread, decoded in another, results delivered in order.

    The scheduler's lock guards everything; only :meth:`read_on` works outside of it.

    Attributes:
        arrival: number in the order of arrival.
        attained: seconds of its audio that the engine has received.
        ready: slots whose pieces wait for the engine.
        reading: a thread is reading it.
        read: everything is read.
        over: it is complete, failed, or cancelled.
    """

    kind = "file"

    def __init__(
        self,
        arrival: int,
        transcriber: Transcriber,
        request: ValidatedRequest,
        changed: threading.Condition,
        *,
        longest: float,
        deliver: Callable[[Segment | Transcript | BaseException], None],
        ended: Callable[[FileTicket], None],
    ) -> None:
        """Args:
        arrival: number in the order of arrival.
        transcriber: its engine decodes the file.
        request: its source is a binary stream, which must stay open until :meth:`when_released` reports.
        changed: the scheduler's lock; notified of progress.
        longest: seconds of audio that are accepted.
        deliver: called with each segment as soon as it and all before it are final, and last with the transcript or the
            error. Called under the lock, so it must not block.
        ended: called once, under the lock.
        """
        self.arrival, self.attained = arrival, 0.0
        self.ready: deque[int] = deque()
        self.reading = self.read = self.over = False
        self._follow_ups: deque[SegmentJob] = deque()
        self._transcriber, self._request, self._changed, self._longest = transcriber, request, changed, longest
        self._deliver, self._ended = guarded(deliver), ended
        self._rate = transcriber.engine.sample_rate
        self._file: AudioFile | None = None
        self._pieces: Iterator[Piece | None] | None = None
        self._blocks: list[Floats] = []  # of a file in long form
        self._samples, self._seconds, self._delivered, self._exhausted = 0, 0.0, 0, False
        self._released: list[Callable[[], None]] = []

    @property
    def waiting(self) -> bool:
        """Whether it has a job for the engine."""
        return bool(self._follow_ups or self.ready)

    @property
    def is_long_form(self) -> bool:
        """Whether all of its audio is held until it is decoded."""
        return self._request.request.long_form

    @property
    def scanned(self) -> float:
        """Seconds that were read, speech or silence."""
        return self._samples / self._rate

    @property
    def next_seconds(self) -> float:
        """Seconds of audio of the next job, while :attr:`waiting`."""
        assert self._file
        job = self._follow_ups[0] if self._follow_ups else self._file.job(self.ready[0])
        return len(job.samples) / self._rate

    def next_job(self) -> SegmentJob:
        """Return the next job, while :attr:`waiting`."""
        assert self._file
        job = self._follow_ups.popleft() if self._follow_ups else self._file.job(self.ready.popleft())
        self.attained += len(job.samples) / self._rate
        return job

    def take(self, key: JobKey, result: SegmentResult) -> None:
        """Take the result of a job; deliver what became final."""
        with self._changed:
            if not self.over:
                self._follow_ups.extend(key.file.take(key, result))
                self._deliver_final(key.file)

    def dropped(self) -> None:
        """Do nothing: only jobs of a file that is over are dropped."""

    def _deliver_final(self, file: AudioFile) -> None:
        """Deliver the segments that became final, and the transcript when the file is complete."""
        for span in file.leading_spans(self._delivered):
            for segment in segments_of(span, self._rate):
                self._deliver(segment)
            self._delivered += 1
        if file.complete:
            file.timings.total = time.perf_counter() - file.began
            self._end(self._transcriber.transcript_of(file))

    def read_on(self) -> None:
        """Read the next piece or block, and all the rest at the end. For the thread that set :attr:`reading`."""
        error: BaseException | None = None
        start = time.perf_counter()
        try:
            pieces, ended = self._read_some()
            seconds = time.perf_counter() - start
            long_form = self._start_long_form() if ended and not self.over else None
            with self._changed:
                self._seconds += seconds
                self._advance(pieces, long_form, ended=ended)
        except GivenUp:
            pass
        except AsrError as audio_error:
            error = audio_error
        except Exception:  # (the boundary of one upload: its client gets an error, the log has the reason)
            if not self.over:  # otherwise its stream may have been closed in the meantime
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
        """Return the next pieces, at most one before the last block, and whether they are the last ones."""
        if self._pieces is None:
            file = self._file = self._transcriber.open_file(self.arrival, self._request)
            assert file.reader
            if file.duration > self._longest:
                raise self._too_long()
            blocks = self._watched(file.reader.blocks())
            if file.use_long_form:
                self._pieces = self._collect(blocks)
            else:
                self._pieces = cut_in_steps(blocks, self._transcriber.engine, file.options, vad=self._transcriber.vad)
        pieces = []
        for piece in self._pieces:
            if piece:
                pieces.append(piece)
            if not self._exhausted:  # so that a short file is known to have ended before it is decoded
                return pieces, False
        return pieces, True

    def _collect(self, blocks: Iterator[Floats]) -> Iterator[None]:
        """Keep all blocks for long form."""
        for block in blocks:
            self._blocks.append(block)
            yield None

    def _start_long_form(self) -> LongForm | None:
        file = self._file
        if file is None or not file.use_long_form:
            return None
        samples, self._blocks = concatenate(self._blocks), []
        return self._transcriber.engine.long_form(samples, file.options, file.timings)

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
            f"{self._request.request.name}: is longer than the {self._longest:g} s that this server takes; "
            "send it in parts"
        )

    def _advance(self, pieces: list[Piece], long_form: LongForm | None, *, ended: bool) -> None:
        """Add the pieces that were read; finish reading when they are the last ones."""
        if self.over:
            return
        assert self._file
        self.ready.extend(self._file.add(piece) for piece in pieces)
        if not ended:
            return
        if long_form and (job := self._file.start_long_form(long_form, self._samples)):
            self._follow_ups.append(job)
        self.read = True
        self._close()
        self._file.samples, self._file.timings.segment = self._samples, self._seconds
        self._deliver_final(self._file)

    def fail(self, error: BaseException) -> None:
        """End with ``error``; do nothing when it is over."""
        with self._changed:
            self._end(error)

    def when_released(self, call: Callable[[], None]) -> None:
        """Call ``call``, from any thread, as soon as no thread reads the source any more."""
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
        self._follow_ups.clear()
        if not self.reading:
            self._close()
        self._ended(self)  # first, so that its place in the queue is free when the client is told
        self._deliver(outcome)
        self._changed.notify_all()

    def _close(self) -> None:
        """Release the source; no thread reads it."""
        if self._file and self._file.reader:
            self._file.reader.close()
        if self.over:
            self._file = self._pieces = None
            self._blocks = []
        for call in self._released:
            call()
        self._released.clear()
