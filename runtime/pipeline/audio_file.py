"""One audio on its way through an engine: its pieces, their results, and what is decoded again."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from runtime.audio import AudioReader
from runtime.audio.segmentation import Piece, SpeechCutter, fixed_pieces
from runtime.engines.base import Engine, LongForm, Part, SegmentJob, SegmentOptions, SegmentResult, Span
from runtime.errors import AsrError
from runtime.pipeline.packing import Packed, pack
from runtime.pipeline.stretches import SegmentInProgress
from runtime.results import DecodedAgain, Timings

Floats = npt.NDArray[np.float32]


class JobKey(NamedTuple):
    """Identifies a job: its file, its slot (None: a window of long form), and the stretch of it when decoded again."""

    file: AudioFile
    slot: int | None
    part: int | None


@dataclass(slots=True)
class Slot:
    """A piece of an audio, or several that are decoded together. Its samples are dropped when it is decoded."""

    start: int
    length: int
    segment: SegmentInProgress | None
    result: SegmentResult | None = None
    decoded_again: DecodedAgain | None = None
    parts: list[Part] = field(default_factory=list)

    def span(self) -> Span:
        """Return the decoded piece."""
        assert self.result
        return Span(self.start, self.length, self.result, self.decoded_again, self.parts)


@dataclass(slots=True, eq=False)
class AudioFile:
    """An audio on its way through the engine. ``error`` is set when it failed.

    ``rate`` is the engine's sample rate in Hz. ``known`` are pieces decoded earlier, by first sample and length: they
    are not decoded again. ``warnings`` say how the audio was changed to be read. ``use_long_form`` decodes the whole
    audio by the model's own windows.
    """

    index: int
    rate: int
    timings: Timings
    began: float = field(default_factory=time.perf_counter)
    reader: AudioReader | None = None
    options: SegmentOptions = field(default_factory=SegmentOptions)
    use_long_form: bool = False
    error: AsrError | None = None
    warnings: list[str] = field(default_factory=list)
    known: dict[tuple[int, int], Span] = field(default_factory=dict)
    slots: list[Slot] = field(default_factory=list)
    samples: int | None = None
    _long_form: LongForm | None = None
    _long_form_spans: list[Span] | None = None
    _open: int = 0
    _done: int = 0

    @property
    def duration(self) -> float:
        """Seconds in all; until everything is read, the header's duration or what was read so far."""
        if self.samples is not None:
            return self.samples / self.rate
        declared = self.reader.duration if self.reader else None
        last = self.slots[-1].start + self.slots[-1].length if self.slots else 0
        return last / self.rate if declared is None else declared

    @property
    def done(self) -> float:
        """Seconds that are decoded, with the silence before each piece."""
        if self.complete:
            return self.duration
        return (self._long_form.done if self._long_form else self._done) / self.rate

    @property
    def complete(self) -> bool:
        """Whether everything is read and decoded, or the audio failed."""
        if self.error is not None:
            return True
        return self.samples is not None and not self._open and self._long_form is None

    @property
    def spans(self) -> list[Span]:
        """All decoded pieces in order."""
        if self._long_form:
            return self._long_form.spans
        if self._long_form_spans is not None:
            return self._long_form_spans
        return [slot.span() for slot in self.slots if slot.result]

    def leading_spans(self, first: int) -> list[Span]:
        """Return the decoded pieces from number ``first`` up to the first one that is not decoded."""
        if self.use_long_form:
            return self.spans[first:]
        spans = []
        for slot in self.slots[first:]:
            if not slot.result:
                break
            spans.append(slot.span())
        return spans

    def add(self, piece: Piece) -> int:
        """Add a piece; return the index of its slot."""
        segment = SegmentInProgress(piece, self.options, self.rate)
        self.slots.append(
            Slot(
                piece.start,
                piece.extent if isinstance(piece, Packed) else len(piece.samples),
                segment,
                parts=segment.parts,
            )
        )
        self._open += 1
        return len(self.slots) - 1

    def job(self, slot: int) -> SegmentJob:
        """Return the job that decodes a slot's piece."""
        return self._job(slot, None)

    def start_long_form(self, long_form: LongForm, samples: int) -> SegmentJob | None:
        """Decode the audio of ``samples`` by the model's own windows; return the first window's job, if any."""
        self._long_form, self.samples = long_form, samples
        return self._next_window(long_form)

    def _next_window(self, long_form: LongForm) -> SegmentJob | None:
        job = long_form.next_job()
        if job:
            return msgspec.structs.replace(job, key=JobKey(self, None, None))
        # Everything is decoded: keep the texts and drop samples and features.
        self._long_form, self._long_form_spans = None, long_form.spans
        return None

    def take(self, key: JobKey, result: SegmentResult) -> list[SegmentJob]:
        """Take a job's result; return the jobs that follow from it.

        A text that was cut off, looped or ended too early is decoded again: :mod:`runtime.pipeline.stretches`. In long
        form the next window follows.
        """
        if key.slot is None:
            assert self._long_form
            self._long_form.take(result)
            job = self._next_window(self._long_form)
            return [job] if job else []
        slot = self.slots[key.slot]
        assert slot.segment
        jobs = [self._job(key.slot, part) for part in slot.segment.take(key.part, result)]
        if slot.segment.whole.result:
            slot.decoded_again = slot.segment.decoded_again
            self.finish(key.slot, slot.segment.whole.result)
        return jobs

    def _job(self, slot: int, part: int | None) -> SegmentJob:
        segment = self.slots[slot].segment
        assert segment
        piece, options = segment.job(part)
        return SegmentJob(
            JobKey(self, slot, part),
            piece.samples,
            options,
            self.timings,
            self.began,
            speech=piece.speech,
            parts=piece.parts if isinstance(piece, Packed) else [],
        )

    def finish(self, index: int, result: SegmentResult) -> None:
        """Store the final result of a slot."""
        slot = self.slots[index]
        before = self.slots[index - 1] if index else None
        self._done += slot.start + slot.length - (before.start + before.length if before else 0)
        self._open -= 1
        slot.result, slot.segment = result, None


def cut_in_steps(
    blocks: Iterable[Floats], engine: Engine, options: SegmentOptions, *, vad: bool
) -> Iterator[Piece | None]:
    """Yield the pieces of :func:`cut`, and None after each block of audio, so that a caller can do other work."""
    if not vad:
        yield from fixed_pieces(blocks, engine.sample_rate, engine.segment_seconds)
        return
    pieces = _speech_in_steps(blocks, engine)
    if engine.window_seconds is None or options.max_new_tokens:  # a number of tokens is that of one piece
        yield from pieces
    else:
        yield from pack(pieces, int(engine.window_seconds * engine.sample_rate))


def _speech_in_steps(blocks: Iterable[Floats], engine: Engine) -> Iterator[Piece | None]:
    cutter = SpeechCutter(engine.sample_rate, engine.segment_seconds)
    for block in blocks:
        yield from cutter.hear(block)
        yield None
    yield from cutter.end()


def cut(blocks: Iterable[Floats], engine: Engine, options: SegmentOptions, *, vad: bool) -> Iterator[Piece]:
    """Cut consecutive mono samples at the engine's rate into pieces that it can take.

    ``vad`` leaves silence out; then short pieces are joined where the engine has windows of a fixed length.
    """
    return (piece for piece in cut_in_steps(blocks, engine, options, vad=vad) if piece)


def concatenate(blocks: Iterable[Floats]) -> Floats:
    """Join blocks of mono samples to one array [n] float32."""
    parts = list(blocks)
    return np.concatenate(parts) if parts else np.zeros(0, np.float32)
