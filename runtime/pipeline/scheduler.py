"""Many audios through one engine: pieces of all of them are decoded together."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field

import msgspec
import numpy as np
import numpy.typing as npt

from runtime.audio import AudioReader
from runtime.audio.prefetch import prefetch
from runtime.audio.segmentation import Piece, SpeechCutter, fixed_pieces, split_piece
from runtime.decoding.greedy import REPETITION_PENALTY
from runtime.engines.base import Engine, SegmentJob, SegmentOptions, SegmentResult, Span
from runtime.errors import AsrError
from runtime.pipeline.spans import joined, later
from runtime.results import FinishReason, Timings

Floats = npt.NDArray[np.float32]

# A segment that was cut off or looped is decoded again in pieces of about half its length.
# A little more than half, so that two parts need not be cut at the middle.
_PART = 0.6
_SHORTEST_PART = 2.0


@dataclass(slots=True)
class _Slot:
    """One piece on its way. Its samples are let go when it is done."""

    start: int
    length: int
    piece: Piece | None
    result: SegmentResult | None = None
    again: FinishReason | None = None
    parts: list[SegmentResult | None] = field(default_factory=list)
    offsets: list[float] = field(default_factory=list)  # of the parts, seconds from the piece's beginning

    def span(self) -> Span:
        """What is kept of a piece that is done."""
        assert self.result
        return Span(self.start, self.length, self.result, self.again)


@dataclass(slots=True, eq=False)
class File:
    """An audio on its way through the engine. ``error`` is what was wrong with it, if anything.

    ``known`` are pieces that were heard before, by first sample and length: they are not decoded again.
    """

    index: int
    rate: int
    timings: Timings
    began: float = field(default_factory=time.perf_counter)
    reader: AudioReader | None = None
    options: SegmentOptions = field(default_factory=SegmentOptions)
    error: AsrError | None = None
    known: dict[tuple[int, int], Span] = field(default_factory=dict)
    slots: list[_Slot] = field(default_factory=list)
    samples: int | None = None
    _left: int = 0
    _done: int = 0

    @property
    def duration(self) -> float:
        """Seconds in all; until they are read, what the header says, or what has been seen."""
        if self.samples is not None:
            return self.samples / self.rate
        declared = self.reader.duration if self.reader else None
        seen = self.slots[-1].start + self.slots[-1].length if self.slots else 0
        return seen / self.rate if declared is None else declared

    @property
    def done(self) -> float:
        """Seconds that are done: finished pieces, and the silence before each."""
        return self.duration if self.complete else self._done / self.rate

    @property
    def complete(self) -> bool:
        """Whether everything was read and every piece is finished, or something was wrong."""
        return self.error is not None or (self.samples is not None and not self._left)

    @property
    def spans(self) -> list[Span]:
        """All pieces of a complete file, in order."""
        return [each.span() for each in self.slots if each.result]

    def add(self, piece: Piece) -> int:
        """Remember a piece; its number."""
        self.slots.append(_Slot(piece.start, len(piece.samples), piece))
        self._left += 1
        return len(self.slots) - 1

    def job(self, number: int) -> SegmentJob:
        """What the engine is to do for a piece."""
        piece = self.slots[number].piece
        assert piece
        return self._job(number, None, piece, self.options)

    def take(self, number: int, part: int | None, result: SegmentResult) -> list[SegmentJob]:
        """Put a result where it belongs: the piece is done, or these jobs are to be done for it.

        A text that was cut or looped is decoded again: in shorter parts, and with a penalty on repetitions.
        """
        slot = self.slots[number]
        if part is not None:
            slot.parts[part] = later(result, slot.offsets[part])
            heard = [each for each in slot.parts if each]
            if len(heard) < len(slot.parts):
                return []
            result = joined(heard)
        elif result.finish_reason != "stop" and not self.options.max_new_tokens and slot.piece:
            longest = max(_SHORTEST_PART, _PART * slot.length / self.rate)
            pieces = split_piece(slot.piece, self.rate, longest=longest)
            slot.again, slot.parts = result.finish_reason, [None] * len(pieces)
            slot.offsets = [(piece.start - slot.start) / self.rate for piece in pieces]
            guarded = msgspec.structs.replace(self.options, repetition_penalty=REPETITION_PENALTY)
            return [self._job(number, index, piece, guarded) for index, piece in enumerate(pieces)]
        self.finish(number, result)
        return []

    def _job(self, number: int, part: int | None, piece: Piece, options: SegmentOptions) -> SegmentJob:
        return SegmentJob((self, number, part), piece.samples, options, self.timings, self.began)

    def finish(self, number: int, result: SegmentResult) -> None:
        """A piece is done."""
        slot = self.slots[number]
        before = self.slots[number - 1] if number else None
        self._done += slot.start + slot.length - (before.start + before.length if before else 0)
        self._left -= 1
        slot.result, slot.piece = result, None


@dataclass(frozen=True, slots=True)
class _Found:
    """A piece of a file's speech."""

    file: File
    piece: Piece


@dataclass(frozen=True, slots=True)
class _Ended:
    """A file has no more pieces: its length in samples and the seconds that reading it took, or what was wrong."""

    file: File
    samples: int = 0
    seconds: float = 0.0
    error: AsrError | None = None


_Event = _Found | _Ended


class Work:
    """Files to transcribe with one engine, each yielded when it is complete."""

    def __init__(
        self,
        engine: Engine,
        files: Iterable[File],
        *,
        vad: bool,
        on_progress: Callable[[File], object] | None = None,
        on_segment: Callable[[File, Span], object] | None = None,
        ahead: bool = True,
    ) -> None:
        """Args:
        engine: what transcribes.
        files: taken one by one, in another thread when reading goes ahead.
        vad: cut by voice activity, and leave silence out.
        on_progress: called with a file after each of its pieces.
        ahead: read and look for speech in a thread beside the engine.
        """
        self._engine, self._files, self._vad, self._on_progress, self._on_segment = (
            engine,
            files,
            vad,
            on_progress,
            on_segment,
        )
        self._ahead = ahead
        self._again: deque[SegmentJob] = deque()
        self._complete: deque[File] = deque()

    def finished(self) -> Generator[File, None, None]:
        """Every file once it is complete, in the order in which they are."""
        # Twice the rows: what the engine takes at once, and as much in waiting.
        events = prefetch(self._read(), 2 * self._engine.plan.rows) if self._ahead else self._read()
        with closing(events) as self._events:
            for (file, number, part), result in self._engine.run(self._next_job):
                self._take(file, number, part, result)
                yield from self._drain()
            yield from self._drain()

    def _drain(self) -> Iterator[File]:
        while self._complete:
            yield self._complete.popleft()

    def _read(self) -> Generator[_Event, None, None]:
        """Pieces of all files, one file after the other."""
        for file in self._files:
            if file.error or not file.reader:
                yield _Ended(file, error=file.error)
                continue
            count, seconds, began = 0, 0.0, time.perf_counter()
            try:
                with file.reader as reader:
                    seen = _Counted(reader.blocks())
                    for piece in cut(seen, self._engine, vad=self._vad):
                        seconds += time.perf_counter() - began
                        yield _Found(file, piece)
                        began = time.perf_counter()
                    count = seen.samples
            except AsrError as error:
                yield _Ended(file, error=error)
                continue
            yield _Ended(file, count, seconds + time.perf_counter() - began)

    def _next_job(self) -> SegmentJob | None:
        if self._again:
            return self._again.popleft()
        for event in self._events:
            file = event.file
            if isinstance(event, _Ended):
                file.error, file.samples = event.error, event.samples
                file.timings.segment = event.seconds
                self._settled(file)
            elif not file.error:
                number = file.add(event.piece)
                if not self._heard_before(file, number):
                    return file.job(number)
        return None

    def _heard_before(self, file: File, number: int) -> bool:
        slot = file.slots[number]
        span = file.known.get((slot.start, slot.length))
        if span is None:
            return False
        slot.again = span.decoded_again
        file.finish(number, span.result)
        if not self._settled(file):
            self._tell(file)
        return True

    def _take(self, file: File, number: int, part: int | None, result: SegmentResult) -> None:
        self._again.extend(file.take(number, part, result))
        if file.slots[number].result and not self._settled(file):
            self._tell(file)
            if self._on_segment:
                self._on_segment(file, file.slots[number].span())

    def _settled(self, file: File) -> bool:
        """Whether a file is complete; it is remembered then, to be yielded."""
        if not file.complete:
            return False
        file.timings.total = time.perf_counter() - file.began
        self._complete.append(file)
        if not file.error:
            self._tell(file)
        return True

    def _tell(self, file: File) -> None:
        if self._on_progress:
            self._on_progress(file)


def cut_in_steps(blocks: Iterable[Floats], engine: Engine, *, vad: bool) -> Iterator[Piece | None]:
    """The pieces of :func:`cut`, and None after each block of audio: time to do something else."""
    if not vad:
        yield from fixed_pieces(blocks, engine.sample_rate, engine.segment_seconds)
        return
    cutter = SpeechCutter(engine.sample_rate, engine.segment_seconds)
    for block in blocks:
        yield from cutter.hear(block)
        yield None
    yield from cutter.end()


def cut(blocks: Iterable[Floats], engine: Engine, *, vad: bool) -> Iterator[Piece]:
    """Consecutive mono samples at the engine's rate in pieces that it can take; ``vad`` leaves silence out."""
    return (piece for piece in cut_in_steps(blocks, engine, vad=vad) if piece)


class _Counted:
    """Blocks, and the samples that were in them."""

    def __init__(self, blocks: Iterator[Floats]) -> None:
        self._blocks, self.samples = blocks, 0

    def __iter__(self) -> Iterator[Floats]:
        for block in self._blocks:
            self.samples += len(block)
            yield block
