"""Decode the segments of many audios together in one engine."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from runtime.audio.prefetch import prefetch
from runtime.audio.segmentation import Piece
from runtime.engines.base import Engine, SegmentJob, SegmentResult, Span
from runtime.errors import AsrError
from runtime.pipeline.audio_file import AudioFile, JobKey, concatenate, cut

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class _PieceRead:
    """A piece of a file's speech."""

    file: AudioFile
    piece: Piece


@dataclass(frozen=True, slots=True)
class _LongFormOpened:
    """A file that is decoded in long form; its audio is read when its turn comes."""

    file: AudioFile


@dataclass(frozen=True, slots=True)
class _ReadEnded:
    """The end of a file: its length in samples and the seconds that reading took, or the error."""

    file: AudioFile
    samples: int = 0
    seconds: float = 0.0
    error: AsrError | None = None


_ReadEvent = _PieceRead | _LongFormOpened | _ReadEnded

# Long forms at a time: each holds all samples and features of its audio, 0.35 GB an hour.
_MAX_LONG_FORMS = 2


class SegmentScheduler:
    """Feeds one engine with the segments of many files, and yields each file when it is complete."""

    def __init__(
        self,
        engine: Engine,
        files: Iterable[AudioFile],
        *,
        vad: bool,
        on_progress: Callable[[AudioFile], object] | None = None,
        on_segment: Callable[[AudioFile, Span], object] | None = None,
        read_ahead: bool = True,
    ) -> None:
        """Args:
        engine: decodes the segments.
        files: taken one by one, in another thread when reading ahead.
        vad: cut by voice activity and leave silence out.
        on_progress: called with a file after each of its segments.
        on_segment: called with a file and each segment that is done before the file is complete; not in long form,
            whose windows depend on one another.
        read_ahead: read and detect speech in a thread beside the engine.
        """
        self._engine, self._files, self._vad = engine, files, vad
        self._on_progress, self._on_segment = on_progress, on_segment
        self._read_ahead = read_ahead
        self._follow_ups: deque[SegmentJob] = deque()
        self._complete: deque[AudioFile] = deque()
        self._held: _LongFormOpened | None = None
        self._long_forms = 0

    def run(self) -> Generator[AudioFile, None, None]:
        """Yield every file once it is complete, in the order of completion."""
        # Twice the rows: what the engine takes at once, and as much in waiting.
        events = prefetch(self._read(), 2 * self._engine.plan.rows) if self._read_ahead else self._read()
        with closing(events) as self._events:
            for key, result in self._engine.run(self._next_job):
                self._take(key, result)
                yield from self._drain()
            yield from self._drain()

    def _drain(self) -> Iterator[AudioFile]:
        while self._complete:
            yield self._complete.popleft()

    def _read(self) -> Generator[_ReadEvent, None, None]:
        """Read all files, one after the other."""
        for file in self._files:
            if file.error or not file.reader:
                yield _ReadEnded(file, error=file.error)
                continue
            if file.use_long_form:
                yield _LongFormOpened(file)
                continue
            samples, seconds, start = 0, 0.0, time.perf_counter()
            try:
                with file.reader as reader:
                    blocks = _CountingBlocks(reader.blocks())
                    for piece in cut(blocks, self._engine, file.options, vad=self._vad):
                        seconds += time.perf_counter() - start
                        yield _PieceRead(file, piece)
                        start = time.perf_counter()
                    samples = blocks.samples
            except AsrError as error:
                yield _ReadEnded(file, error=error)
                continue
            yield _ReadEnded(file, samples, seconds + time.perf_counter() - start)

    def _next_job(self) -> SegmentJob | None:
        if self._follow_ups:
            return self._follow_ups.popleft()
        while event := self._held or next(self._events, None):
            self._held = None
            if isinstance(event, _LongFormOpened) and self._long_forms >= _MAX_LONG_FORMS:
                self._held = event
                return None
            if job := self._job_of(event):
                return job
        return None

    def _job_of(self, event: _ReadEvent) -> SegmentJob | None:
        """Note what was read; return the job that it gives, if any."""
        file = event.file
        if isinstance(event, _ReadEnded):
            file.error, file.samples = event.error, event.samples
            file.timings.segment = event.seconds
            self._check_complete(file)
        elif file.error:
            return None
        elif isinstance(event, _LongFormOpened):
            return self._start_long_form(file)
        else:
            slot = file.add(event.piece)
            if not self._reuse_known(file, slot):
                return file.job(slot)
        return None

    def _start_long_form(self, file: AudioFile) -> SegmentJob | None:
        """Read all of a file's audio and return its first window's job; None for an error or without a window."""
        assert file.reader
        job = None
        try:
            with file.reader as reader, file.timings.measure("segment"):
                samples = concatenate(reader.blocks())
            job = file.start_long_form(self._engine.long_form(samples, file.options, file.timings), len(samples))
        except AsrError as error:
            file.error = error
        if job is None:
            self._check_complete(file)
        else:
            self._long_forms += 1
        return job

    def _reuse_known(self, file: AudioFile, index: int) -> bool:
        slot = file.slots[index]
        span = file.known.get((slot.start, slot.length))
        if span is None:
            return False
        slot.decoded_again = span.decoded_again
        file.finish(index, span.result)
        if not self._check_complete(file):
            self._report(file)
        return True

    def _take(self, key: JobKey, result: SegmentResult) -> None:
        file = key.file
        self._follow_ups.extend(file.take(key, result))
        if key.slot is None and file.complete:
            self._long_forms -= 1
        slot = None if key.slot is None else file.slots[key.slot]
        if (slot is None or slot.result) and not self._check_complete(file):
            self._report(file)
            if self._on_segment and slot:
                self._on_segment(file, slot.span())

    def _check_complete(self, file: AudioFile) -> bool:
        """Return whether a file is complete; if so, note it to be yielded."""
        if not file.complete:
            return False
        file.timings.total = time.perf_counter() - file.began
        self._complete.append(file)
        if not file.error:
            self._report(file)
        return True

    def _report(self, file: AudioFile) -> None:
        if self._on_progress:
            self._on_progress(file)


class _CountingBlocks:
    """Blocks of audio that count their samples."""

    def __init__(self, blocks: Iterator[Floats]) -> None:
        self._blocks, self.samples = blocks, 0

    def __iter__(self) -> Iterator[Floats]:
        for block in self._blocks:
            self.samples += len(block)
            yield block
